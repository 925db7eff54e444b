"""Position-sensitive RoI pooling: what it means, derivatives, hostile values."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from tests.support.backend import on_cpu
from tests.support.comparison import relative_error
from tests.support.ps_roi import CALLS, random_case
from xla_ops import deform_ps_roi_pool, ps_roi_align, ps_roi_pool, roi_align

ALL = pytest.mark.parametrize("name", CALLS)
BOTH = pytest.mark.parametrize("implementation", ["ffi", "reference"])
NAN, INF = float("nan"), float("inf")


def compiled(function, **settings):
    return jax.jit(functools.partial(function, **settings))


def leaves_of(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


# What it means


def test_align_is_roi_align_of_each_bins_channels():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 8, 9, 3 * 2 * 5)), jnp.float32)
    rois = jnp.asarray([[[3.0, 2, 20, 25], [-9, 1, 60, 8]]])
    settings = dict(output_size=(3, 2), spatial_scale=0.25)
    y = ps_roi_align(x, rois, **settings)
    whole = roi_align(x, rois, **settings).reshape(1, 2, 3, 2, 5, 3, 2)
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(y[:, :, i, j], whole[:, :, i, j, :, i, j], 1e-6)


@BOTH
def test_pool_is_the_mean_of_pixels(implementation):
    """By hand: a RoI of 5 x 4 pixels in 2 x 2 bins, rows shared between bins."""
    x = np.arange(6 * 7 * 4, dtype=np.float32).reshape(1, 6, 7, 4)
    # Half a pixel rounds away from zero: rows 0 to 5, columns 1 to 5. The second RoI is
    # the last pixel of the map.
    rois = jnp.asarray([[[0.5, -0.4, 4.4, 3.5], [5.6, 4.9, 6.4, 5.4]]])
    y = ps_roi_pool(
        x, rois, output_size=2, spatial_scale=1.0, implementation=implementation
    )
    rows, columns = [(0, 3), (2, 5)], [(1, 3), (3, 5)]
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            want = x[0, top:bottom, left:right, 2 * i + j].mean()
            np.testing.assert_allclose(y[0, 0, i, j], [want], rtol=1e-6)
    np.testing.assert_array_equal(y[0, 1].ravel(), x[0, 5, 6])


def mean_of_bins(x, roi, bins, group_size, scale):
    """Of one map [H, W, C] and RoI, pixel by pixel, as R-FCN has it; [h, w, D]."""
    height, width, channels = x.shape
    ends = np.copysign(np.floor(np.abs(roi) + 0.5), roi) + np.asarray([0, 0, 1, 1])
    left, top, right, bottom = ends * scale
    tall, wide = max(bottom - top, 0.1), max(right - left, 0.1)
    depth = channels // (group_size[0] * group_size[1])
    y = np.zeros((*bins, depth))
    for i, j, d in np.ndindex(y.shape):
        rows = [
            row
            for row in range(height)
            if np.floor(top + i * tall / bins[0]) <= row
            and row < np.ceil(top + (i + 1) * tall / bins[0])
        ]
        columns = [
            column
            for column in range(width)
            if np.floor(left + j * wide / bins[1]) <= column
            and column < np.ceil(left + (j + 1) * wide / bins[1])
        ]
        group = i * group_size[0] // bins[0], j * group_size[1] // bins[1]
        channel = (d * group_size[0] + group[0]) * group_size[1] + group[1]
        pixels = [x[row, column, channel] for row in rows for column in columns]
        y[i, j, d] = np.mean(pixels) if pixels else 0
    return y


@BOTH
@pytest.mark.parametrize("bins, group_size", [((3, 4), None), ((6, 4), 2), (7, 3)])
def test_pool_reads_every_pixel_that_a_bin_touches(implementation, bins, group_size):
    """Among them RoIs that end at the map's border, lie outside, or have no size."""
    rng = np.random.default_rng(0)
    scale = 0.25
    size = np.broadcast_to(bins, 2)
    groups = tuple(size) if group_size is None else (group_size, group_size)
    x = rng.standard_normal((1, 9, 11, 2 * groups[0] * groups[1])).astype(np.float32)
    rois = rng.uniform(-12, 50, (20, 4)).astype(np.float32)
    rois[:, 2:] = rois[:, :2] + rng.uniform(0, 40, (20, 2))
    rois[0], rois[1], rois[2] = [0, 0, 43, 35], [43, 35, 43, 35], [60, 2, 80, 9]
    y = ps_roi_pool(
        x,
        rois[None],
        output_size=bins,
        group_size=group_size,
        spatial_scale=scale,
        implementation=implementation,
    )
    want = [mean_of_bins(x[0], roi, tuple(size), groups, scale) for roi in rois]
    np.testing.assert_allclose(y[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bins, parts", [(7, 3), (3, 7), (4, 4), (5, 1)])
def test_parts_of_bins(bins, parts):
    """Bin i takes the offset of part i * parts // bins."""
    x = np.arange(100, dtype=np.float32).reshape(1, 1, 100, 1)
    rois = np.zeros((1, 1, 4), np.float32)
    offset = np.zeros((1, 1, 1, parts, 1, 2), np.float32)
    offset[..., 1] = np.arange(parts)[:, None]
    y = deform_ps_roi_pool(
        x,
        rois,
        offset,
        output_size=(1, bins),
        part_size=(1, parts),
        group_size=1,
        spatial_scale=1.0,
        samples_per_part=1,
        offset_scale=1.0,
    ).ravel()
    # The RoI is one pixel wide, and begins half a pixel before the map.
    left = np.arange(bins) / bins - 0.5 + np.arange(bins) * parts // bins
    np.testing.assert_allclose(y, np.maximum(left, 0), rtol=1e-5, atol=1e-5)


@BOTH
def test_deformable_pool_by_hand(implementation):
    """One bin of 2 x 2 samples at the RoI's corner, with a half-pixel rule."""
    x = np.arange(5 * 6, dtype=np.float32).reshape(1, 5, 6, 1)
    # From -0.5, 1.5 on; 4 pixels high and 2 wide.
    rois = jnp.asarray([[[2.0, 0, 3, 3]] * 3])
    offset = np.zeros((1, 3, 1, 1, 1, 2), np.float32)
    # A whole RoI down: rows 3.5 and 5.5, of which the second is outside.
    offset[0, 1, ..., 0] = 1
    offset[0, 2, ..., 1] = INF
    y = deform_ps_roi_pool(
        x,
        rois,
        offset,
        output_size=1,
        group_size=1,
        spatial_scale=1.0,
        samples_per_part=2,
        offset_scale=1.0,
        implementation=implementation,
    ).ravel()
    # Rows -0.5 (moved to 0) and 1.5, columns 1.5 and 2.5; a row is 6 apart.
    np.testing.assert_allclose(y, [0.75 * 6 + 2, 3.5 * 6 + 2, 0], rtol=1e-6)


@ALL
@BOTH
def test_map_sizes_are_cropping(name, implementation):
    case = random_case(name, batch=2)
    settings = dict(implementation=implementation)
    padded, gradients = compiled(case.value_and_gradients, **settings)(case.moving)
    for n in range(2):
        one = jax.tree.map(lambda x, n=n: x[n : n + 1], case[1:])
        sizes = [size[0] for size in one[1].pop("map_sizes")]
        one[0]["features"] = tuple(
            x[:, :height, :width]
            for x, (height, width) in zip(one[0]["features"], sizes, strict=True)
        )
        y, wanted = compiled(
            case._replace(
                moving=one[0], fixed=one[1], cotangent=one[2]
            ).value_and_gradients,
            **settings,
        )(one[0])
        np.testing.assert_allclose(padded[n], y[0], atol=2e-6)
        for got, want in zip(gradients["features"], wanted["features"], strict=True):
            height, width = want.shape[1:3]
            np.testing.assert_allclose(got[n, :height, :width], want[0], atol=2e-6)
            assert not np.any(got[n, height:])
            assert not np.any(got[n, :, width:])


@ALL
def test_pyramid_is_its_levels(name):
    case = random_case(name, num_boxes=8)
    got = compiled(case.pool)(case.moving)
    want = np.zeros(got.shape, np.float32)
    for level, scale in enumerate((0.25, 0.125)):
        one = compiled(case.call, spatial_scale=scale)(
            **case.moving | {"features": case.moving["features"][level]},
            rois=case.fixed["rois"],
            map_sizes=case.fixed["map_sizes"][level],
        )
        chosen = np.asarray(case.fixed["levels"] == level)
        want[chosen] = np.asarray(one)[chosen]
    assert relative_error(got, want) < 1e-6


# Derivatives and transformations


@ALL
@pytest.mark.parametrize("depth", [2, 46])
def test_kernel_equals_reference(name, depth):
    """Over a pyramid with padding; 46 channels take every width of vector."""
    case = random_case(name, depth=depth, num_boxes=20, sizes=((13, 15), (8, 9)))
    ours = compiled(case.value_and_gradients, implementation="ffi")(case.moving)
    with on_cpu():
        reference = compiled(case.value_and_gradients, implementation="reference")
        other = reference(case.moving)
    for got, want in leaves_of(ours, other):
        assert relative_error(got, want) < 1e-5


@ALL
def test_first_derivatives(name, x64):
    case = random_case(name, dtype=np.float64, depth=2, seed=1)
    loss = jax.jit(functools.partial(case.loss, implementation="ffi"))
    check_grads(loss, (case.moving,), 1, ["rev"], eps=1e-6, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("samples", [3, 4])
def test_gradient_of_the_plain_form_with_two_images_and_many_samples(samples):
    """Sums over the last but one of seven axes ended the process (jaxlib 0.10.2)."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 11, 13, 4)).astype(np.float32)
    rois = rng.uniform(0, 40, (2, 7, 4)).astype(np.float32)
    rois[..., 2:] += rois[..., :2]
    offset = rng.normal(size=(2, 7, 3, 2, 1, 2)).astype(np.float32)

    @functools.partial(jax.jit, static_argnames="implementation")
    def gradients(*arguments, implementation):
        def total(features, offset):
            y = deform_ps_roi_pool(
                features,
                rois,
                offset,
                output_size=(3, 2),
                group_size=2,
                spatial_scale=0.25,
                samples_per_part=samples,
                implementation=implementation,
            )
            return jnp.sin(y).sum()

        return jax.grad(total, (0, 1))(*arguments)

    plain = gradients(features, offset, implementation="reference")
    kernel = gradients(features, offset, implementation="ffi")
    for a, b in zip(plain, kernel, strict=True):
        assert relative_error(a, b) <= 1e-5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "adaptive" in name else ())
        for name in CALLS
    ],
)
def test_second_derivatives(name, x64):
    case = random_case(name, dtype=np.float64, depth=2, batch=1, num_boxes=3, seed=2)
    loss = jax.jit(functools.partial(case.loss, implementation="ffi"))
    check_grads(loss, (case.moving,), 2, ["rev"], eps=1e-6, atol=1e-5, rtol=1e-5)


@ALL
@BOTH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(name, implementation, dtype):
    """Maps and results in half precision, all else in float32."""
    case = random_case(name, depth=18)
    half = case.moving | {
        "features": tuple(x.astype(dtype) for x in case.moving["features"])
    }
    exact = half | {"features": tuple(x.astype("float32") for x in half["features"])}
    cotangent = case.cotangent.astype(dtype)
    run = compiled(
        case._replace(cotangent=cotangent).value_and_gradients,
        implementation=implementation,
    )
    wanted = compiled(
        case._replace(cotangent=cotangent.astype("float32")).value_and_gradients
    )(exact)
    y, gradients = run(half)
    assert {y.dtype, *(g.dtype for g in gradients["features"])} == {jnp.dtype(dtype)}
    for got, want in leaves_of((y, gradients), wanted):
        # One rounding of the result; none where the result is float32.
        bound = float(jnp.finfo(dtype).eps) / 2 if got.dtype == dtype else 1e-5
        got, want = (np.asarray(x, np.float32) for x in (got, want))
        # Sums over many channels cancel; float16 subnormals are 6e-8 apart.
        atol = 1e-6 * max(1, np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=1.01 * bound, atol=atol)


@ALL
def test_vmap_is_one_custom_call(name):
    case = random_case(name, batch=1, num_boxes=4)
    factors = jnp.linspace(0.5, 1, 3)

    def gradients(factor, moving):
        first = tuple(factor * x for x in moving["features"])
        return jax.grad(case.loss)(moving | {"features": first})

    mapped = jax.jit(jax.vmap(gradients, in_axes=(0, None)))
    got = mapped(factors, case.moving)
    for i, factor in enumerate(factors):
        want = jax.jit(gradients)(factor, case.moving)
        for a, b in leaves_of(got, want):
            np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-7)
    text = mapped.lower(factors, case.moving).as_text()
    calls = sorted(re.findall(r"custom_call @dcn_jax\.([\w.]+)", text))
    assert calls == ["ps_roi_pool.bwd", "ps_roi_pool.fwd"]


@pytest.mark.devices(8)
@ALL
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_data_parallel(name, kind):
    case = random_case(name, batch=8, num_boxes=3)
    arrays = case.moving, case.fixed, case.cotangent

    def run(arrays):
        moving, fixed, cotangent = arrays
        return case._replace(fixed=fixed, cotangent=cotangent).value_and_gradients(
            moving
        )

    want = jax.jit(run)(arrays)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    arrays = jax.device_put(arrays, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        executable = jax.jit(run).lower(arrays).compile()
        got = executable(arrays)
    text = executable.as_text()
    assert not re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(-start)?\(", text)
    calls = sorted(re.findall(r'custom_call_target="dcn_jax\.([\w.]+)"', text))
    assert calls == ["ps_roi_pool.bwd", "ps_roi_pool.fwd"]
    for a, b in leaves_of(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        assert a.sharding.shard_shape(a.shape)[0] == 1


@ALL
def test_bits_do_not_depend_on_how_work_is_cut(name):
    """With more images the blocks of the maps that a thread owns are larger."""
    case = random_case(name, batch=1, depth=70, sizes=((40, 11), (20, 6)), num_boxes=20)
    copies = 20

    def repeat(tree):
        return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), tree)

    run = jax.jit(
        lambda arrays: case._replace(
            fixed=arrays[1], cotangent=arrays[2]
        ).value_and_gradients(arrays[0])
    )
    want = run(case[1:])
    for a, b in leaves_of(run(case[1:]), want):
        np.testing.assert_array_equal(a, b)
    for a, b in leaves_of(run(repeat(case[1:])), want):
        np.testing.assert_array_equal(a, jnp.repeat(b, copies, axis=0))


# Hostile values


@ALL
@BOTH
def test_hostile_rois(name, implementation):
    defined = [
        [0, 0, 0, 0],
        [3, 3, 3, 12],
        [30, 20, 5, 5],
        [1e4, 1e4, 2e4, 2e4],
        [-1e30, -1e30, 1e30, 1e30],
        [1e30, 1e30, 2e30, 2e30],
        [-1e37, 0, 1e37, 10],
        [0, 0, 1e-30, 1e-30],
    ]
    undefined = [
        [NAN, 0, 9, 9],
        [0, 0, 9, NAN],
        [0, -INF, 9, INF],
        [0, 0, -INF, 9],
        [0, 0, 9, INF],
    ]
    rois = jnp.asarray([defined + undefined], jnp.float32)
    count = rois.shape[1]
    moving = {"features": (jnp.ones((1, 5, 6, 24)), jnp.ones((1, 3, 3, 24)))}
    depth = 4
    if name == "deform_ps_roi_pool":
        depth = 6
        moving["offset"] = jnp.zeros((1, count, 2, 1, 2, 2))
        moving["mask"] = jnp.ones((1, count, 3, 2))
    case = random_case(name)._replace(
        fixed={"rois": rois, "levels": jnp.arange(count, dtype=jnp.int32)[None] % 2},
        cotangent=jnp.ones((1, count, 3, 2, depth)),
    )
    run = compiled(case.value_and_gradients, implementation=implementation)
    y, gradients = run(moving)
    split = len(defined)
    assert np.isnan(y[:, split:]).all()
    assert (y[:, :split] >= 0).all()
    assert (y[:, :split] <= 1 + 1e-6).all()
    assert y[:, :split].any()
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
    for key in ("offset", "mask"):
        # A bin that is NaN passes no gradient.
        if key in gradients:
            assert not gradients[key][:, split:].any()


@BOTH
def test_hostile_offsets(implementation):
    x = jnp.ones((1, 5, 6, 2))
    rois = jnp.asarray([[[2.0, 2, 18, 16]]])
    values = np.asarray([0, NAN, INF, -INF, 1e30, -1e30, 3e38, 0, 0], np.float32)
    offset = np.zeros((1, 1, 3, 3, 2, 2), np.float32)
    # Only of the second class.
    offset[..., 1, 1] = values.reshape(3, 3)

    def run(x, offset):
        return deform_ps_roi_pool(
            x,
            rois,
            offset,
            output_size=3,
            group_size=1,
            spatial_scale=0.25,
            implementation=implementation,
        )

    @jax.jit
    def value_and_gradients(x, offset):
        y, pull_back = jax.vjp(run, x, offset)
        return y, pull_back(jnp.ones_like(y))

    y, (dx, doffset) = value_and_gradients(x, offset)
    want = np.asarray([1, NAN, 0, 0, 0, 0, 0, 1, 1], np.float32).reshape(3, 3)
    np.testing.assert_allclose(y[0, 0, ..., 0], 1, rtol=1e-6)
    np.testing.assert_allclose(y[0, 0, ..., 1], want, rtol=1e-6)
    assert np.isfinite(doffset).all()
    np.testing.assert_allclose(dx.sum((0, 1, 2)), [9, 3], rtol=1e-6)


@ALL
@BOTH
@pytest.mark.parametrize(
    ("batch", "num_boxes", "depth"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)]
)
def test_empty(name, implementation, batch, num_boxes, depth):
    full = random_case(name)
    groups = 4 if name == "deform_ps_roi_pool" else 6
    moving = {"features": jnp.ones((batch, 4, 5, groups * depth))}
    if name == "deform_ps_roi_pool":
        moving["mask"] = jnp.ones((batch, num_boxes, 3, 2))
    run = compiled(
        jax.grad(lambda m, **k: full.call(**m, **k).sum()),
        rois=jnp.ones((batch, num_boxes, 4)),
        spatial_scale=1.0,
        implementation=implementation,
    )
    for key, gradient in run(moving).items():
        assert gradient.shape == moving[key].shape
        assert not gradient.any()


# Bad arguments

X = np.zeros((2, 4, 5, 12), np.float32)
ROIS = np.zeros((2, 6, 4), np.float32)
OFFSET = np.zeros((2, 6, 2, 2, 3, 2), np.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(features=1.0), TypeError, "`features` is float; expected an array"),
        (dict(features=[X]), ValueError, "`levels` is None; expected (N, B)"),
        (dict(spatial_scale=0), ValueError, "`spatial_scale` is 0; expected more than"),
        (dict(rois=ROIS[:1]), ValueError, "`rois` has shape (1, 6, 4); expected (2, B"),
        (dict(rois=ROIS.astype(int)), TypeError, "`rois` has dtype int"),
        (dict(output_size=0), ValueError, "`output_size` is 0; expected at least 1"),
        (dict(output_size=2**31 - 1), ValueError, "`output_size` is 2147483647, which"),
        (dict(implementation="gpu"), ValueError, "`implementation` is 'gpu'"),
    ],
)
@pytest.mark.parametrize("operator", [ps_roi_align, ps_roi_pool, deform_ps_roi_pool])
def test_bad_arguments(operator, changes, error, message):
    arguments = dict(features=X, rois=ROIS, output_size=2, spatial_scale=1.0) | changes
    if operator is deform_ps_roi_pool:
        arguments["group_size"] = 2
    # Without the type checks of the tests, as a user calls them.
    with pytest.raises(error, match=re.escape(message)):
        inspect.unwrap(operator)(**arguments)


@pytest.mark.parametrize(
    ("operator", "changes", "error", "message"),
    [
        (
            ps_roi_pool,
            dict(output_size=(5, 2)),
            ValueError,
            "`features` has 12 channels; expected a multiple of 10 = 5 * 2 for "
            "`output_size`",
        ),
        (
            ps_roi_align,
            dict(output_size=7),
            ValueError,
            "`features` has 12 channels; expected a multiple of 49 = 7 * 7",
        ),
        (
            ps_roi_align,
            dict(sampling_ratio=-1),
            ValueError,
            "`sampling_ratio` is -1; expected at least 0",
        ),
        (
            ps_roi_align,
            dict(sampling_ratio=65537),
            ValueError,
            "`sampling_ratio` is 65537; expected at most 65536",
        ),
    ],
)
def test_more_bad_arguments(operator, changes, error, message):
    arguments = dict(features=X, rois=ROIS, output_size=2, spatial_scale=1.0) | changes
    with pytest.raises(error, match=re.escape(message)):
        inspect.unwrap(operator)(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            dict(group_size=5),
            ValueError,
            "expected a multiple of 25 = 5 * 5 for `group",
        ),
        (dict(group_size=0), ValueError, "`group_size` is 0; expected at least 1"),
        (dict(group_size=(2, 2)), TypeError, "`group_size` is (2, 2); expected an int"),
        (dict(part_size=0), ValueError, "`part_size` is 0; expected at least 1"),
        (
            dict(part_size=(2, 1)),
            ValueError,
            "`offset` has shape (2, 6, 2, 2, 3, 2); expected (2, 6, 2, 1, K, 2) = "
            "(N, B, p, q, K, 2)",
        ),
        (dict(offset=OFFSET[..., 0]), ValueError, "`offset` has shape (2, 6, 2, 2, 3)"),
        (
            dict(offset=OFFSET[..., :2, :]),
            ValueError,
            "`offset` has 2 classes; expected a divisor of the 3 channels",
        ),
        (dict(offset=OFFSET.astype(int)), TypeError, "`offset` has dtype int"),
        (dict(samples_per_part=0), ValueError, "`samples_per_part` is 0; expected at"),
        (
            dict(samples_per_part=65537),
            ValueError,
            "`samples_per_part` is 65537; expected at most 65536",
        ),
        (
            dict(mask=np.zeros((2, 6, 3, 2), np.float32)),
            ValueError,
            "`mask` has shape (2, 6, 3, 2); expected (2, 6, 2, 2) = (N, B, h, w)",
        ),
        (dict(offset_scale=INF), ValueError, "`offset_scale` is inf; expected a fin"),
        (
            dict(output_size=(1025, 2), part_size=2),
            ValueError,
            "`output_size` is (1025, 2); expected at most 1024 bins along an axis",
        ),
    ],
)
def test_bad_arguments_of_deform_ps_roi_pool(changes, error, message):
    arguments = dict(
        features=X,
        rois=ROIS,
        offset=OFFSET,
        output_size=2,
        group_size=2,
        spatial_scale=1.0,
    )
    with pytest.raises(error, match=re.escape(message)):
        inspect.unwrap(deform_ps_roi_pool)(**arguments | changes)
