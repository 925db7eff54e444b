"""roi_pool: torchvision's vectors, what it means, hostile values, bad arguments."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.golden import GOLDEN
from tests.support.roi import OUTPUT_SIZE, SCALES, random_case
from xla_ops import roi_pool

FILES = sorted(p.stem for p in GOLDEN.glob("roi_pool_*.npz"))
BOTH = pytest.mark.parametrize("implementation", ["ffi", "reference"])
CHANNELS_LAST = (0, 2, 3, 1)
NAN, INF = float("nan"), float("inf")


def compiled(function, **settings):
    return jax.jit(functools.partial(function, **settings))


def value_and_gradient(x, cotangent, *arguments, **settings):
    y, pull_back = jax.vjp(lambda x: roi_pool(x, *arguments, **settings), x)
    return y, pull_back(cotangent)[0]


def oracle(x, roi, scale, output_size, cotangent=None):
    """One RoI [4] on one map [H, W, C], and the gradient, pixel by pixel."""
    scaled = (roi * roi.dtype.type(scale)).tolist()
    x1, y1, x2, y2 = (int(np.copysign(np.floor(abs(v) + 0.5), v)) for v in scaled)
    bins = []
    for start, end, count, size in zip(
        (y1, x1), (y2, x2), output_size, x.shape, strict=False
    ):
        step = roi.dtype.type(max(end - start + 1, 1)) / roi.dtype.type(count)
        edges = [
            (start + np.floor(k * step), start + np.ceil((k + 1) * step))
            for k in np.arange(count, dtype=roi.dtype)
        ]
        bins.append(np.clip(edges, 0, size).astype(int))
    y = np.zeros((*output_size, x.shape[-1]), x.dtype)
    dx = np.zeros_like(x)
    for i, (top, bottom) in enumerate(bins[0]):
        for j, (left, right) in enumerate(bins[1]):
            for c in range(x.shape[-1]):
                part = x[top:bottom, left:right, c]
                if not part.size:
                    continue
                r, s = np.unravel_index(np.argmax(part), part.shape)
                y[i, j, c] = part[r, s]
                if cotangent is not None:
                    dx[top + r, left + s, c] += cotangent[i, j, c]
    return y, dx


def test_all_files_are_here():
    assert len(FILES) == 2


@pytest.mark.parametrize("bits", ["f32", "f64"])
@BOTH
@pytest.mark.parametrize("file", FILES)
def test_golden(file, implementation, bits):
    golden = np.load(GOLDEN / f"{file}.npz")
    numbers = golden["rois"][:, 0].astype(int)
    own = np.arange(len(golden["input"]))[:, None] == numbers
    with jax.enable_x64(bits == "f64"):
        dtype = np.float64 if bits == "f64" else np.float32
        # Every image pools all RoIs; only its own pass a gradient.
        rois = np.broadcast_to(golden["rois"][None, :, 1:], (*own.shape, 4))
        cotangent = golden["cotangent"].transpose(CHANNELS_LAST)
        run = compiled(
            value_and_gradient,
            output_size=golden["output_size"].tolist(),
            spatial_scale=float(golden["spatial_scale"]),
            implementation=implementation,
        )
        y, dx = run(
            golden["input"].transpose(CHANNELS_LAST).astype(dtype),
            (own[..., None, None, None] * cotangent).astype(dtype),
            rois.astype(dtype),
        )
    want = golden[f"output_{bits}"].transpose(CHANNELS_LAST)
    np.testing.assert_array_equal(np.asarray(y)[numbers, np.arange(len(numbers))], want)
    want = golden[f"grad_input_{bits}"].transpose(CHANNELS_LAST)
    np.testing.assert_allclose(dx, want, rtol=0, atol=1e-6)


@BOTH
@pytest.mark.parametrize("output_size", [(3, 2), (7, 6)])
def test_equals_oracle(implementation, output_size):
    """RoIs of all sizes, also inside out; half of the pixels tie with others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 40, 45, 2)).astype(np.float32)
    x[..., 1] = x[..., 1].round()
    rois = rng.uniform(-20, 160, (1, 60, 4)).astype(np.float32)
    # Corners halfway between pixels.
    rois[:, :20] = rois[:, :20].round() * 4 + 2
    cotangent = rng.standard_normal((1, 60, *output_size, 2)).astype(np.float32)
    y, dx = compiled(
        value_and_gradient,
        output_size=output_size,
        spatial_scale=0.25,
        implementation=implementation,
    )(x, cotangent, rois)
    want = [
        oracle(x[0], roi, 0.25, output_size, g)
        for roi, g in zip(rois[0], cotangent[0], strict=True)
    ]
    np.testing.assert_array_equal(y[0], [y for y, _ in want])
    np.testing.assert_allclose(dx[0], sum(dx for _, dx in want), atol=1e-5)


@BOTH
def test_bins_are_rounded_as_torchvision_rounds(implementation):
    """A RoI of `size` pixels for every size: bins end where float32 arithmetic says."""
    size, bins = 200, 7
    # The greatest pixel of a bin is its last one.
    x = jnp.arange(size, dtype=jnp.float32).reshape(1, 1, size, 1)
    ends = jnp.arange(size, dtype=jnp.float32)
    rois = jnp.stack([0 * ends, 0 * ends, ends, 0 * ends], axis=-1)[None]
    run = compiled(
        roi_pool,
        output_size=(1, bins),
        spatial_scale=1.0,
        implementation=implementation,
    )
    step = np.arange(1, size + 1, dtype=np.float32) / np.float32(bins)
    last = np.ceil(np.arange(1, bins + 1, dtype=np.float32) * step[:, None]) - 1
    np.testing.assert_array_equal(run(x, rois)[0, :, 0, :, 0], np.minimum(last, 199))
    # These are not the exact fractions.
    exact = -(-np.arange(1, bins + 1) * np.arange(1, size + 1)[:, None] // bins) - 1
    assert (last != exact).any()


@BOTH
def test_ties_go_to_the_first_pixel(implementation):
    x = np.zeros((1, 4, 4, 3), np.float32)
    x[0, 1, 2, 1] = x[0, 2, 0, 1] = 5  # the earlier row, though the later column
    x[0, ..., 2] = -INF
    roi = np.asarray([[[0, 0, 3, 3]]], np.float32)
    y, dx = compiled(
        value_and_gradient,
        output_size=1,
        spatial_scale=1.0,
        implementation=implementation,
    )(x, np.ones((1, 1, 1, 1, 3), np.float32), roi)
    np.testing.assert_array_equal(y.ravel(), [0, 5, -INF])
    want = np.zeros_like(x)
    want[0, 0, 0, [0, 2]] = want[0, 1, 2, 1] = 1
    np.testing.assert_array_equal(dx, want)


@BOTH
def test_minus_infinity_beside_what_is_not_in_the_bin(implementation):
    x = np.full((1, 3, 3, 1), -INF, np.float32)
    x[0, 0] = x[0, :, 0] = 7
    roi = np.asarray([[[1, 1, 2, 2]]], np.float32)
    y, dx = compiled(
        value_and_gradient,
        output_size=1,
        spatial_scale=1.0,
        implementation=implementation,
    )(x, np.ones((1, 1, 1, 1, 1), np.float32), roi)
    assert y.item() == -INF
    np.testing.assert_array_equal(np.argwhere(dx), [[0, 1, 1, 0]])


@BOTH
def test_hostile_rois(implementation):
    whole = [[0, 0, 1e30, 1e30], [-1e30, -1e30, 1e30, 1e30], [-1e38, 0, 1e38, 10]]
    outside = [[1e30, 1e30, 2e30, 2e30], [-2e30, -2e30, -1e30, -1e30], [0, 99, 9, 99]]
    inside_out = [[8, 8, 4, 4], [8, 8, -1e30, 4]]
    undefined = [[NAN, 0, 9, 9], [0, 0, 9, NAN], [0, -INF, 9, INF], [0, 0, -INF, 9]]
    rois = jnp.asarray([whole + outside + inside_out + undefined], jnp.float32)
    x = jnp.ones((1, 5, 6, 3))
    y, dx = compiled(
        value_and_gradient,
        output_size=1,
        spatial_scale=0.25,
        implementation=implementation,
    )(x, jnp.ones((1, rois.shape[1], 1, 1, 3)), rois)
    want = np.asarray([1] * 3 + [0] * 3 + [1] * 2 + [NAN] * 4)
    want = np.broadcast_to(want[:, None, None, None], y.shape[1:])
    np.testing.assert_array_equal(y[0], want)
    # NaNs and empty bins pass no gradient.
    assert dx.sum() == 5 * 3
    assert dx[0, 0, 0].sum() == 3 * 3
    assert dx[0, 2, 2].sum() == 2 * 3


@BOTH
def test_only_bins_that_hold_a_nan_are_nan(implementation):
    x = np.ones((1, 8, 8, 20), np.float32)
    x[0, 2, 2, 3] = x[0, 3, 1, 3] = NAN
    x[0, 0, 0, 3] = x[0, 3, 3, 3] = INF
    roi = np.asarray([[[0, 0, 7, 7]]], np.float32)
    y, dx = compiled(
        value_and_gradient,
        output_size=2,
        spatial_scale=1.0,
        implementation=implementation,
    )(x, np.ones((1, 1, 2, 2, 20), np.float32), roi)
    want = np.ones((2, 2, 20), np.float32)
    want[0, 0, 3] = NAN
    np.testing.assert_array_equal(y[0, 0], want)
    # It counts as the greatest.
    assert dx[0, 2, 2, 3] == 1
    assert dx[..., 3].sum() == 4


@BOTH
@pytest.mark.parametrize(
    ("batch", "num_boxes", "channels"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)]
)
def test_empty(implementation, batch, num_boxes, channels):
    x = jnp.ones((batch, 4, 5, channels))
    y, dx = compiled(
        value_and_gradient,
        output_size=2,
        spatial_scale=1.0,
        implementation=implementation,
    )(
        x,
        jnp.ones((batch, num_boxes, 2, 2, channels)),
        jnp.ones((batch, num_boxes, 4)),
    )
    assert y.shape == (batch, num_boxes, 2, 2, channels)
    assert dx.shape == x.shape
    assert not dx.any()


@BOTH
def test_map_sizes_are_cropping(implementation):
    """What lies outside the size, NaN too, is not there."""
    case = random_case(batch=3, sizes=((9, 11),))
    (x,) = case["features"]
    sizes = np.asarray([(5, 7), (9, 11), (0, 2)], np.int32)
    for n, (height, width) in enumerate(sizes):
        x = x.at[n, height:].set(NAN).at[n, :, width:].set(NAN)
    run = compiled(
        value_and_gradient,
        output_size=OUTPUT_SIZE,
        spatial_scale=SCALES[0],
        implementation=implementation,
    )
    y, dx = run(x, case["cotangent"], case["rois"], map_sizes=sizes)
    for n, (height, width) in enumerate(sizes[:2]):
        one = slice(n, n + 1)
        want = run(x[one, :height, :width], case["cotangent"][one], case["rois"][one])
        np.testing.assert_array_equal(y[one], want[0])
        np.testing.assert_array_equal(dx[one, :height, :width], want[1])
        assert not dx[n, height:].any()
        assert not dx[n, :, width:].any()
    assert not y[2].any()
    assert not dx[2].any()


@BOTH
def test_pyramid_is_its_levels(implementation):
    case = random_case(batch=2, num_boxes=8)

    def pyramid(case):
        return roi_pool(
            case["features"],
            case["rois"],
            levels=case["levels"],
            map_sizes=case["map_sizes"],
            spatial_scale=SCALES,
            output_size=OUTPUT_SIZE,
            implementation=implementation,
        )

    def one(case, level):
        return roi_pool(
            case["features"][level],
            case["rois"],
            map_sizes=case["map_sizes"][level],
            spatial_scale=SCALES[level],
            output_size=OUTPUT_SIZE,
            implementation=implementation,
        )

    got = compiled(pyramid)(case)
    want = np.zeros(got.shape, np.float32)
    for level in range(2):
        chosen = np.asarray(case["levels"] == level)
        want[chosen] = np.asarray(compiled(one, level=level)(case))[chosen]
    assert np.mean(case["levels"] < 0) + np.mean(case["levels"] > 1) > 0
    np.testing.assert_array_equal(got, want)


X = np.zeros((2, 4, 5, 3), np.float32)
ROIS = np.zeros((2, 6, 4), np.float32)
LEVELS = np.zeros((2, 6), np.int32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(features=1.0), TypeError, "`features` is float; expected an array"),
        (dict(features=X[0]), ValueError, "shape (4, 5, 3); expected (N, H, W, C)"),
        (dict(features=X.astype(int)), TypeError, "`features` has dtype int"),
        (dict(features=[X]), ValueError, "`levels` is None; expected (N, B)"),
        (dict(levels=LEVELS), ValueError, "`levels` is for `features` that is a seq"),
        (dict(map_sizes=LEVELS[:, :3]), ValueError, "`map_sizes` has shape (2, 3)"),
        (dict(spatial_scale=0), ValueError, "`spatial_scale` is 0; expected more than"),
        (dict(rois=ROIS[:1]), ValueError, "`rois` has shape (1, 6, 4); expected (2, B"),
        (dict(rois=ROIS.astype(int)), TypeError, "`rois` has dtype int"),
        (dict(output_size=0), ValueError, "`output_size` is 0; expected at least 1"),
        (dict(output_size=2**31 - 1), ValueError, "`output_size` is 2147483647, which"),
        (dict(output_size=1.5), TypeError, "`output_size` is 1.5; expected an integer"),
        (dict(implementation="gpu"), ValueError, "`implementation` is 'gpu'"),
    ],
)
def test_bad_arguments(changes, error, message):
    arguments = dict(features=X, rois=ROIS, output_size=2, spatial_scale=1.0) | changes
    # Without the type checks of the tests, as a user calls it.
    with pytest.raises(error, match=re.escape(message)):
        inspect.unwrap(roi_pool)(**arguments)
