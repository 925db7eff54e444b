"""Derivatives of roi_pool under transformations, and over several devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.backend import on_cpu
from tests.support.comparison import relative_error
from tests.support.roi import OUTPUT_SIZE, SCALES, random_case
from xla_ops import roi_pool

COLLECTIVES = re.compile(r" (all-\w+|collective-\w+|reduce-scatter)(-start)?\(")


def pool(features, case, implementation=None):
    return roi_pool(
        features,
        case["rois"],
        levels=case["levels"],
        map_sizes=case["map_sizes"],
        output_size=OUTPUT_SIZE,
        spatial_scale=SCALES,
        implementation=implementation,
    )


def loss(features, case, implementation=None):
    return jnp.sum(jnp.sin(pool(features, case, implementation)) * case["cotangent"])


def value_and_gradient(case, implementation=None):
    y, pull_back = jax.vjp(
        lambda features: pool(features, case, implementation), case["features"]
    )
    return y, pull_back(case["cotangent"])[0]


def compiled(function, **settings):
    return jax.jit(functools.partial(function, **settings))


def direction_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree
    )


def dot(a, b):
    return sum(
        jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


@pytest.mark.parametrize(("channels", "tied"), [(5, True), (83, False), (250, True)])
def test_kernel_equals_reference(channels, tied):
    """Over a pyramid with padding; odd channels take every width of vector."""
    case = random_case(channels=channels, num_boxes=12)
    if tied:
        case["features"] = tuple(x.round() for x in case["features"])
    ours = compiled(value_and_gradient, implementation="ffi")(case)
    with on_cpu():
        reference = compiled(value_and_gradient, implementation="reference")(case)
    np.testing.assert_array_equal(ours[0], reference[0])
    for got, want in zip(ours[1], reference[1], strict=True):
        assert relative_error(got, want) < 1e-5


def test_finite_differences(x64):
    """Away from ties: random pixels are further apart than the step."""
    case = random_case(dtype=np.float64, seed=1, num_boxes=10)
    features = case["features"]
    direction = direction_like(features, seed=2)
    step = 1e-7
    ends = [
        compiled(loss, implementation="ffi")(
            jax.tree.map(lambda x, d, s=sign: x + s * step * d, features, direction),
            case,
        )
        for sign in (1, -1)
    ]
    numeric = (ends[0] - ends[1]) / (2 * step)
    gradient = compiled(jax.grad(loss), implementation="ffi")(features, case)
    product = dot(gradient, direction)
    assert abs(numeric - product) < 1e-6 * abs(numeric)


def test_second_order(x64):
    """The pooled value is linear where it is smooth: only the sine is curved."""
    case = random_case(batch=1, num_boxes=3, channels=2, dtype=np.float64, seed=3)
    features = case["features"]
    direction = direction_like(features, seed=4)

    def products(implementation):
        gradient = jax.grad(functools.partial(loss, implementation=implementation))

        def run(case, direction):
            features = case["features"]
            reverse = jax.grad(lambda f: dot(gradient(f, case), direction))(features)
            forward = jax.jvp(lambda f: gradient(f, case), (features,), (direction,))
            return reverse, forward[1]

        return compiled(run)(case, direction)

    want = jax.tree.leaves(products("reference")[1])
    assert any(np.any(x) for x in want)
    for got in products("ffi"):
        for a, b in zip(jax.tree.leaves(got), want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)

    @compiled
    def curvature(case, direction):
        def linear(features):
            return jnp.sum(pool(features, case) * case["cotangent"])

        return jax.jvp(jax.grad(linear), (case["features"],), (direction,))[1]

    curved = curvature(case, direction)
    assert not any(np.any(x) for x in jax.tree.leaves(curved))


def test_forward_mode_of_the_reference():
    case = random_case(batch=1)
    features = case["features"]

    def run(case, direction):
        function = functools.partial(loss, case=case, implementation="reference")
        tangent = jax.jvp(function, (case["features"],), (direction,))[1]
        return tangent, dot(jax.grad(function)(case["features"]), direction)

    tangent, product = compiled(run)(case, direction_like(features, seed=5))
    np.testing.assert_allclose(tangent, product, rtol=1e-5)
    assert tangent != 0


def test_rois_get_no_gradient():
    case = random_case()
    drois = jax.grad(lambda rois: loss(case["features"], {**case, "rois": rois}))(
        case["rois"]
    )
    assert not drois.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("implementation", ["ffi", "reference"])
def test_half_precision(dtype, implementation):
    """The maximum is exact; sums of gradients are rounded once."""
    case = random_case(channels=20, num_boxes=20)
    half = {
        name: jax.tree.map(lambda x: x.astype(dtype), case[name])
        for name in ("features", "cotangent")
    }
    full = {
        name: jax.tree.map(lambda x: x.astype(np.float32), half[name]) for name in half
    }
    y, gradient = compiled(value_and_gradient, implementation=implementation)(
        case | half
    )
    want, exact = compiled(value_and_gradient, implementation="ffi")(case | full)
    assert {y.dtype, *(d.dtype for d in gradient)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(y.astype(np.float32), want)
    eps = float(jnp.finfo(dtype).eps)
    for a, b in zip(gradient, exact, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0.51 * eps, atol=1e-6)


def test_vmap_is_one_custom_call():
    case = random_case(batch=1)
    case.pop("map_sizes")
    copies = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), case["features"])

    def gradient(features, rois):
        shared = {**case, "rois": rois, "map_sizes": None}
        return jax.grad(loss)(features, shared)

    mapped = jax.jit(jax.vmap(gradient, in_axes=(0, None)))
    got = mapped(copies, case["rois"])
    for i in range(3):
        want = gradient(jax.tree.map(lambda x, i=i: x[i], copies), case["rois"])
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a[i], b)
    text = mapped.lower(copies, case["rois"]).as_text()
    assert text.count("custom_call @dcn_jax.max_roi_pool.fwd") == 1
    assert text.count("custom_call @dcn_jax.max_roi_pool.bwd") == 1


def test_bits_do_not_depend_on_how_work_is_cut():
    """With more images the blocks of channels that a thread owns are wider."""
    case = random_case(batch=1, channels=70, num_boxes=20)
    copies = 40
    repeated = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), case)
    run = jax.jit(value_and_gradient)
    got = jax.tree.leaves(run(repeated))
    again = jax.tree.leaves(run(repeated))
    want = jax.tree.leaves(run(case))
    for a, b, c in zip(got, again, want, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, jnp.repeat(c, copies, axis=0))


@pytest.fixture(scope="module")
def split_case():
    return random_case(batch=8, num_boxes=3, channels=4)


@pytest.mark.devices(8)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_data_parallel(kind, split_case):
    want = jax.jit(value_and_gradient)(split_case)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    case = jax.device_put(split_case, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        run = jax.jit(value_and_gradient).lower(case).compile()
    text = run.as_text()
    calls = re.findall(r'custom_call_target="dcn_jax\.([\w.]+)"', text)
    assert sorted(calls) == ["max_roi_pool.bwd", "max_roi_pool.fwd"]
    assert COLLECTIVES.findall(text) == []
    for a, b in zip(*map(jax.tree.leaves, (run(case), want)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding.shard_shape(a.shape)[0] == 1


@pytest.mark.devices(8)
def test_reference_on_an_explicit_mesh(split_case):
    want = jax.jit(value_and_gradient)(split_case)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    case = jax.device_put(split_case, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        got = compiled(value_and_gradient, implementation="reference")(case)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.devices(8)
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma, split_case):
    want = jax.jit(value_and_gradient)(split_case)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        value_and_gradient,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    run = jax.jit(mapped).lower(split_case).compile()
    assert COLLECTIVES.findall(run.as_text()) == []
    for a, b in zip(*map(jax.tree.leaves, (run(split_case), want)), strict=True):
        np.testing.assert_array_equal(a, b)
