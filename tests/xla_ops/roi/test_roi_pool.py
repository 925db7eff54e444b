"""RoI pooling: what it means, hostile values, bad arguments."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.comparison import relative_error
from tests.support.roi import OUTPUT_SIZE, SCALES, random_case
from xla_ops import deform_roi_pool, roi_align, roi_pool

BOTH = pytest.mark.parametrize("implementation", ["ffi", "reference"])
SAMPLING = pytest.mark.parametrize("sampling_ratio", [2, 0])
NAN, INF = float("nan"), float("inf")


def compiled(function, **settings):
    return jax.jit(functools.partial(function, **settings))


def axis_weights(start, extent, bins, samples, size):
    """Weights of an axis' pixels in each bin, sample by sample, [bins, size]."""
    weights = np.zeros((bins, size))
    for i in range(bins):
        places = start + (i + (np.arange(samples) + 0.5) / samples) * extent / bins
        places = np.clip(places[(places >= -1) & (places <= size)], 0, size - 1)
        low = places.astype(int)
        np.add.at(weights[i], low, 1 - (places - low))
        np.add.at(weights[i], np.minimum(low + 1, size - 1), places - low)
    return weights / samples


@BOTH
@pytest.mark.parametrize("scale", [1, 1e2, 1e4])
def test_huge_adaptive_rois(implementation, scale):
    """Up to 30,000 pixels: as many samples as it takes, at the cost of the map's."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 7, 2)).astype(np.float32)
    box = np.asarray([-0.4, -0.3, 2.6, 2.7]) * scale
    align = compiled(
        roi_align,
        output_size=3,
        spatial_scale=1.0,
        sampling_ratio=0,
        implementation=implementation,
    )
    y = align(x, box.astype(np.float32)[None, None])[0, 0]
    x1, y1, x2, y2 = box - 0.5
    samples = [int(np.ceil(np.float32(side / 3))) for side in (y2 - y1, x2 - x1)]
    rows = axis_weights(y1, y2 - y1, 3, samples[0], 6)
    columns = axis_weights(x1, x2 - x1, 3, samples[1], 7)
    want = np.einsum("iy,yxc,jx->ijc", rows, x[0], columns)
    # Float32 places samples less and less well.
    tolerance = 1e-5 + 1e-7 * scale
    np.testing.assert_allclose(y, want, atol=tolerance * np.abs(want).max())


@SAMPLING
@BOTH
def test_hostile_rois(implementation, sampling_ratio):
    defined = [
        [0, 0, 0, 0],
        [3, 3, 3, 12],
        [30, 20, 5, 5],
        [1e4, 1e4, 2e4, 2e4],
        [-1e30, -1e30, 1e30, 1e30],
        [1e30, 1e30, 2e30, 2e30],
        [-1e38, 0, 1e38, 10],
        [0, 0, 1e-30, 1e-30],
    ]
    undefined = [[NAN, 0, 9, 9], [0, 0, 9, NAN], [0, -INF, 9, INF]]
    rois = jnp.asarray([defined + undefined], jnp.float32)
    x = jnp.ones((1, 5, 6, 3))
    bins = rois.shape[1], 2, 2

    def run(x, offset, mask):
        return deform_roi_pool(
            x,
            rois,
            offset,
            mask,
            output_size=2,
            spatial_scale=0.25,
            sampling_ratio=sampling_ratio,
            implementation=implementation,
        )

    @jax.jit
    def value_and_gradients(*moving):
        y, pull_back = jax.vjp(run, *moving)
        return y, pull_back(jnp.ones_like(y))

    y, gradients = value_and_gradients(
        x, jnp.zeros((1, *bins, 2)), jnp.ones((1, *bins))
    )
    split = len(defined)
    assert np.isnan(y[:, split:]).all()
    assert (y[:, :split] >= 0).all()
    assert (y[:, :split] <= 1 + 1e-6).all()
    # Without width it has no adaptive samples.
    np.testing.assert_allclose(y[0, 1], 1 if sampling_ratio else 0, atol=1e-6)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    # A bin that is NaN passes no gradient.
    assert not gradients[1][:, split:].any()
    assert not gradients[2][:, split:].any()


@SAMPLING
@BOTH
def test_hostile_offsets_and_masks(implementation, sampling_ratio):
    x = jnp.ones((1, 5, 6, 3))
    rois = jnp.asarray([[[2.0, 2, 18, 16]]])
    values = np.asarray([0, NAN, INF, -INF, 1e30, -1e30, 3e38, 0, 0], np.float32)
    offset = np.zeros((1, 1, 3, 3, 2), np.float32)
    offset[..., 0] = values.reshape(3, 3)
    mask = np.ones((1, 1, 3, 3), np.float32)
    mask[0, 0, 2, 1:] = [NAN, INF]

    @jax.jit
    def value_and_gradients(x, offset, mask):
        def run(x, offset, mask):
            return deform_roi_pool(
                x,
                rois,
                offset,
                mask,
                output_size=3,
                spatial_scale=0.25,
                sampling_ratio=sampling_ratio,
                implementation=implementation,
            )

        y, pull_back = jax.vjp(run, x, offset, mask)
        finite = jnp.where(jnp.isfinite(y), 1, 0).astype(y.dtype)
        return y, pull_back(finite)

    y, (_, doffset, dmask) = value_and_gradients(x, offset, mask)
    want = np.asarray([1, NAN, 0, 0, 0, 0, 0, NAN, INF], np.float32).reshape(3, 3)
    for channel in range(3):
        np.testing.assert_allclose(y[0, 0, :, :, channel], want, rtol=1e-6)
    for gradient in (doffset[..., :2, :, :], dmask):
        assert np.isfinite(gradient).all()


@SAMPLING
def test_only_bins_that_read_a_nan_are_nan(sampling_ratio):
    x = np.ones((1, 8, 8, 2), np.float32)
    x[0, 7, 7, 1] = NAN
    rois = np.asarray([[[0, 0, 4, 4], [4, 4, 8, 8]]], np.float32)
    y = roi_align(
        x,
        rois,
        output_size=2,
        spatial_scale=1.0,
        sampling_ratio=sampling_ratio,
        implementation="ffi",
    )
    want = np.ones((2, 2, 2, 2), np.float32)
    want[1, 1, 1, 1] = NAN
    np.testing.assert_array_equal(y[0], want)


@BOTH
@pytest.mark.parametrize(
    ("batch", "num_boxes", "channels"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)]
)
def test_empty(implementation, batch, num_boxes, channels):
    def run(x, rois, offset):
        return deform_roi_pool(
            x,
            rois,
            offset,
            output_size=2,
            spatial_scale=1.0,
            implementation=implementation,
        ).sum()

    x = jnp.ones((batch, 4, 5, channels))
    offset = jnp.ones((batch, num_boxes, 2, 2, 2))
    gradients = compiled(jax.grad(run, argnums=(0, 2)))
    dx, doffset = gradients(x, jnp.ones((batch, num_boxes, 4)), offset)
    assert dx.shape == x.shape
    assert doffset.shape == offset.shape
    assert not dx.any()


@SAMPLING
@BOTH
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_map_sizes_are_cropping(implementation, sampling_ratio, dtype):
    """What lies outside the size, NaN too, is not there."""
    case = random_case(batch=3, sizes=((9, 11),))
    (x,) = case["features"]
    sizes = np.asarray([(5, 7), (9, 11), (1, 2)])
    for n, (height, width) in enumerate(sizes):
        x = x.at[n, height:].set(NAN).at[n, :, width:].set(NAN)
    settings = dict(
        output_size=OUTPUT_SIZE,
        spatial_scale=SCALES[0],
        sampling_ratio=sampling_ratio,
        implementation=implementation,
    )

    def value_and_gradient(x, rois, cotangent, map_sizes=None):
        y, pull_back = jax.vjp(
            lambda x: roi_align(x, rois, map_sizes=map_sizes, **settings), x
        )
        return y, pull_back(cotangent)[0]

    padded, gradient = compiled(value_and_gradient)(
        x, case["rois"], case["cotangent"], sizes.astype(dtype)
    )
    run = compiled(value_and_gradient)
    for n, (height, width) in enumerate(sizes):
        one = slice(n, n + 1)
        cropped = x[one, :height, :width]
        y, dx = run(cropped, case["rois"][one], case["cotangent"][one])
        np.testing.assert_allclose(padded[one], y, atol=2e-6)
        np.testing.assert_allclose(gradient[one, :height, :width], dx, atol=2e-6)
        assert not gradient[n, height:].any()
        assert not gradient[n, :, width:].any()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "bfloat16", "float16"])
def test_map_sizes_of_a_narrow_type(dtype):
    """300 rows are 44 in uint8."""
    x = jnp.ones((1, 300, 4, 1))
    rois = jnp.asarray([[[0, 150, 3, 190], [0, 210, 3, 250]]], "float32")
    sizes = jnp.asarray([[200, 4]], dtype)
    y = roi_align(x, rois, output_size=1, spatial_scale=1.0, map_sizes=sizes)
    np.testing.assert_array_equal(y.ravel(), [1, 0])


def test_map_sizes_are_bounded_by_the_map():
    x = jnp.ones((4, 3, 4, 1))
    rois = jnp.broadcast_to(jnp.asarray([[[0.0, 0, 4, 3]]]), (4, 1, 4))
    sizes = jnp.asarray([[9.0, 9], [NAN, 4], [-1, 4], [INF, 4]])
    y = roi_align(x, rois, output_size=1, spatial_scale=1.0, map_sizes=sizes)
    np.testing.assert_array_equal(y.ravel(), [1, 0, 0, 1])


@pytest.mark.parametrize(
    ("value", "dtype", "whole"),
    [
        (2**32 + 1, "int64", True),
        (2**31, "int64", True),
        (2**63, "uint64", True),
        (1e300, "float64", True),
        (-(2**32) + 9, "int64", False),
        (np.nan, "float64", False),
    ],
)
def test_map_sizes_that_32_bits_do_not_hold(value, dtype, whole):
    x = jnp.ones((1, 3, 4, 1))
    sizes = np.full((1, 2), value, dtype)
    rois = jnp.asarray([[[0.0, 0, 4, 3]]])
    y = roi_align(x, rois, output_size=1, spatial_scale=1.0, map_sizes=sizes)
    np.testing.assert_array_equal(y.ravel(), [whole])


def test_map_sizes_are_cut_to_whole_pixels_before_they_are_rounded():
    x = jnp.ones((1, 3, 4, 1))
    rois = jnp.asarray([[[0.0, 2, 4, 3]]])
    sizes = np.asarray([[2 - 1e-12, 4]])  # 2 in float32
    y = roi_align(x, rois, output_size=1, spatial_scale=1.0, map_sizes=sizes)
    cut = roi_align(
        x, rois, output_size=1, spatial_scale=1.0, map_sizes=np.asarray([[1, 4]])
    )
    np.testing.assert_array_equal(y, cut)
    assert not y.any()


@SAMPLING
@BOTH
def test_pyramid_is_its_levels(implementation, sampling_ratio):
    case = random_case(batch=2, num_boxes=8)
    settings = dict(
        output_size=OUTPUT_SIZE,
        offset_scale=0.3,
        sampling_ratio=sampling_ratio,
        implementation=implementation,
    )

    def pyramid(case):
        return deform_roi_pool(
            case["features"],
            case["rois"],
            case["offset"],
            case["mask"],
            levels=case["levels"],
            map_sizes=case["map_sizes"],
            spatial_scale=SCALES,
            **settings,
        )

    def one(case, level):
        return deform_roi_pool(
            case["features"][level],
            case["rois"],
            case["offset"],
            case["mask"],
            map_sizes=case["map_sizes"][level],
            spatial_scale=SCALES[level],
            **settings,
        )

    got = compiled(pyramid)(case)
    want = np.zeros(got.shape, np.float32)
    for level in range(2):
        chosen = np.asarray(case["levels"] == level)
        want[chosen] = np.asarray(compiled(one, level=level)(case))[chosen]
    assert np.mean(case["levels"] < 0) + np.mean(case["levels"] > 1) > 0
    assert relative_error(got, want) < 1e-6


def test_levels_of_any_integer_type():
    x = jnp.ones((1, 3, 3, 1))
    rois = jnp.asarray([[[0.0, 0, 3, 3]] * 3])
    for dtype in (np.uint8, np.int8, np.int32):
        levels = np.asarray([[0, 1, 100]], dtype)
        y = roi_align(
            [x, 2 * x], rois, levels=levels, output_size=1, spatial_scale=[1.0, 1.0]
        )
        np.testing.assert_array_equal(y.ravel(), [1, 2, 0])


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("level", "dtype"),
    [(2**32, "int64"), (2**32 + 1, "int64"), (-(2**32), "int64"), (2**63, "uint64")],
)
def test_levels_that_32_bits_do_not_hold(level, dtype, wide):
    """They are levels that are not there, also where 64-bit types are off."""
    x = jnp.ones((1, 3, 3, 1))
    rois = jnp.asarray([[[0.0, 0, 3, 3]] * 2])
    levels = np.zeros((1, 2), dtype)
    levels[0, 1] = level
    with jax.enable_x64(wide):
        y = roi_align(
            [x, x], rois, levels=levels, output_size=1, spatial_scale=[1.0, 1.0]
        )
    np.testing.assert_array_equal(y.ravel(), [1, 0])


@pytest.mark.parametrize("pool", [roi_align, roi_pool])
@pytest.mark.parametrize("pyramid", [True, False])
def test_a_scale_that_is_an_array_is_refused_alike_under_jit(pool, pyramid):
    features = [X, X] if pyramid else X
    scale = np.asarray([1.0, 1.0] if pyramid else 1.0, np.float32)

    def run(scale):
        levels = LEVELS if pyramid else None
        return inspect.unwrap(pool)(
            features, ROIS, levels=levels, output_size=2, spatial_scale=scale
        )

    for call in (run, jax.jit(run)):
        for array in (scale, jnp.asarray(scale)):
            with pytest.raises(TypeError, match="`spatial_scale` is an array; expect"):
                call(array)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_levels_of_a_type_too_narrow_for_the_number_of_maps(dtype):
    maps = [jnp.full((1, 1, 1, 1), level) for level in np.arange(300, dtype=np.float32)]
    rois = jnp.asarray([[[0.0, 0, 1, 1]] * 2])
    levels = np.asarray([[100, np.iinfo(dtype).min]], dtype)
    y = roi_align(
        maps,
        rois,
        levels=levels,
        output_size=1,
        spatial_scale=[1.0] * 300,
        implementation="reference",
    )
    np.testing.assert_array_equal(y.ravel(), [100, 0])


X = np.zeros((2, 4, 5, 3), np.float32)
ROIS = np.zeros((2, 6, 4), np.float32)
LEVELS = np.zeros((2, 6), np.int32)
PYRAMID = dict(features=[X, X[:, :2]], spatial_scale=[1.0, 0.5], levels=LEVELS)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(features=1.0), TypeError, "`features` is float; expected an array"),
        (dict(features=X[0]), ValueError, "shape (4, 5, 3); expected (N, H, W, C)"),
        (dict(features=X[:, :0]), ValueError, "(2, 0, 5, 3); expected H and W of at"),
        (dict(features=X.astype(int)), TypeError, "`features` has dtype int"),
        (dict(features=[]), ValueError, "`features` is empty"),
        (dict(features=[X]), ValueError, "`levels` is None; expected (N, B)"),
        (dict(levels=LEVELS), ValueError, "`levels` is for `features` that is a seq"),
        (
            PYRAMID | dict(features=[X, X[..., :2]]),
            ValueError,
            "`features[1]` has shape",
        ),
        (PYRAMID | dict(features=[X, X[:1]]), ValueError, "`features[1]` has shape"),
        (
            PYRAMID | dict(features=[X, X.astype(np.float16)]),
            TypeError,
            "`features[1]` has dtype float16; expected float32",
        ),
        (PYRAMID | dict(spatial_scale=1.0), TypeError, "`spatial_scale` is float"),
        (PYRAMID | dict(spatial_scale=[1.0]), ValueError, "`spatial_scale` has 1 entr"),
        (PYRAMID | dict(levels=LEVELS[:1]), ValueError, "`levels` has shape (1, 6)"),
        (PYRAMID | dict(levels=ROIS[..., 0]), TypeError, "`levels` has dtype float32"),
        (PYRAMID | dict(map_sizes=LEVELS[:, :2]), TypeError, "`map_sizes` is an array"),
        (dict(map_sizes=LEVELS[:, :3]), ValueError, "`map_sizes` has shape (2, 3)"),
        (dict(spatial_scale=0), ValueError, "`spatial_scale` is 0; expected more than"),
        (dict(spatial_scale=NAN), ValueError, "`spatial_scale` is nan"),
        (dict(spatial_scale=1e300), ValueError, "expected a number that float32 hol"),
        (dict(spatial_scale=1e-300), ValueError, "expected a number that float32 ho"),
        (dict(spatial_scale="1"), TypeError, "`spatial_scale` is '1'; expected a num"),
        (dict(rois=ROIS[:1]), ValueError, "`rois` has shape (1, 6, 4); expected (2, B"),
        (dict(rois=ROIS[..., :3]), ValueError, "`rois` has shape (2, 6, 3)"),
        (dict(rois=ROIS.astype(int)), TypeError, "`rois` has dtype int"),
        (dict(output_size=0), ValueError, "`output_size` is 0; expected at least 1"),
        (dict(output_size=(2, 2, 2)), ValueError, "`output_size` is (2, 2, 2)"),
        # XLA would end the process.
        (dict(output_size=2**31 - 1), ValueError, "`output_size` is 2147483647, which"),
        (
            dict(output_size=2**14, sampling_ratio=2**16, implementation="reference"),
            ValueError,
            "`output_size` is 16384, which makes 41505174165846491136 samples",
        ),
        (
            dict(output_size=2**31 - 1, rois=ROIS[:, :0]),
            ValueError,
            "`output_size` is 2147483647, which",
        ),
        (dict(spatial_scale=10**400), ValueError, "`spatial_scale` is too large"),
        (dict(features=X.astype(">f4")), TypeError, "`features` has dtype >f4; expec"),
        (dict(sampling_ratio=-1), ValueError, "`sampling_ratio` is -1; expected at l"),
        (
            dict(sampling_ratio=65537),
            ValueError,
            "`sampling_ratio` is 65537; expected at most 65536",
        ),
        (dict(sampling_ratio=1.5), TypeError, "`sampling_ratio` is 1.5; expected an i"),
        (dict(implementation="gpu"), ValueError, "`implementation` is 'gpu'"),
    ],
)
def test_bad_arguments(changes, error, message):
    arguments = dict(features=X, rois=ROIS, output_size=2, spatial_scale=1.0) | changes
    # Without the type checks of the tests, as a user calls them.
    for operator in (roi_align, deform_roi_pool):
        with pytest.raises(error, match=re.escape(message)):
            inspect.unwrap(operator)(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            dict(offset=np.zeros((2, 6, 2, 2), np.float32)),
            ValueError,
            "`offset` has shape (2, 6, 2, 2); expected (2, 6, 2, 2, 2) = (N, B, h, w",
        ),
        (
            dict(mask=np.zeros((2, 6, 3, 2), np.float32)),
            ValueError,
            "`mask` has shape (2, 6, 3, 2); expected (2, 6, 2, 2) = (N, B, h, w)",
        ),
        (dict(mask=np.ones((2, 6, 2, 2), bool)), TypeError, "`mask` has dtype bool"),
        (dict(offset_scale=INF), ValueError, "`offset_scale` is inf; expected a fin"),
        (dict(offset_scale=1e39), ValueError, "expected a number that float32 holds"),
        (dict(aligned=True), TypeError, "aligned"),
    ],
)
def test_bad_arguments_of_deform_roi_pool(changes, error, message):
    arguments = dict(features=X, rois=ROIS, output_size=2, spatial_scale=1.0) | changes
    with pytest.raises(error, match=re.escape(message)):
        inspect.unwrap(deform_roi_pool)(**arguments)


def test_a_map_too_long_for_float32():
    features = jax.ShapeDtypeStruct((2, 1, 2**24 + 1, 1), np.float32)
    rois = jax.ShapeDtypeStruct((2, 6, 4), np.float32)
    pool = functools.partial(roi_align, output_size=2, spatial_scale=1.0)
    with pytest.raises(ValueError, match="expected H and W of at most 16777216"):
        jax.eval_shape(pool, features, rois)


def test_bad_aligned():
    with pytest.raises(TypeError, match="`aligned` is 1; expected True or False"):
        inspect.unwrap(roi_align)(X, ROIS, output_size=2, spatial_scale=1.0, aligned=1)
