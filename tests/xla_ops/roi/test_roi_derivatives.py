"""Derivatives of RoI pooling, under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backend import on_cpu
from tests.support.comparison import relative_error
from tests.support.roi import OUTPUT_SIZE, SCALES, random_case
from xla_ops import deform_roi_pool, roi_align

MOVING = ("features", "offset", "mask")
SAMPLING = pytest.mark.parametrize("sampling_ratio", [2, 0])


def pool(case, *moving, sampling_ratio=2, implementation=None):
    features, offset, mask = moving
    return deform_roi_pool(
        features,
        case["rois"],
        offset,
        mask,
        levels=case["levels"],
        map_sizes=case["map_sizes"],
        output_size=OUTPUT_SIZE,
        spatial_scale=SCALES,
        offset_scale=0.3,
        sampling_ratio=sampling_ratio,
        implementation=implementation,
    )


def loss(case, *moving, **settings):
    y = pool(case, *moving, **settings)
    return jnp.sum(jnp.sin(y) * case["cotangent"])


def moving_of(case):
    return tuple(case[name] for name in MOVING)


def direction_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree
    )


def dot(a, b):
    return sum(
        jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


@SAMPLING
@pytest.mark.parametrize("channels", [5, 83])
def test_kernel_equals_reference(sampling_ratio, channels):
    """Over a pyramid with padding; 83 channels take every width of vector."""
    case = random_case(channels=channels)

    def run(implementation):
        def value_and_gradients(case, moving):
            function = functools.partial(
                pool, case, sampling_ratio=sampling_ratio, implementation=implementation
            )
            y, pull_back = jax.vjp(function, *moving)
            return y, *pull_back(case["cotangent"])

        return jax.jit(value_and_gradients)(case, moving_of(case))

    ours = run("ffi")
    with on_cpu():
        reference = run("reference")
    for got, want in zip(*map(jax.tree.leaves, (ours, reference)), strict=True):
        assert relative_error(got, want) < 1e-5


@SAMPLING
def test_finite_differences(x64, sampling_ratio):
    case = random_case(dtype=np.float64, seed=1)
    moving = moving_of(case)
    function = jax.jit(
        functools.partial(
            loss, case, sampling_ratio=sampling_ratio, implementation="ffi"
        )
    )
    gradients = jax.jit(
        jax.grad(
            functools.partial(loss, case, sampling_ratio=sampling_ratio),
            argnums=(0, 1, 2),
        )
    )(*moving)
    step = 1e-6
    for place, gradient in enumerate(gradients):
        direction = direction_like(gradient, seed=place)
        ends = []
        for sign in (1, -1):
            moved = list(moving)
            moved[place] = jax.tree.map(
                lambda x, d, sign=sign: x + sign * step * d, moving[place], direction
            )
            ends.append(function(*moved))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert abs(numeric - dot(gradient, direction)) < 1e-6 * abs(numeric)


@pytest.mark.parametrize("sampling_ratio", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_second_order(x64, sampling_ratio):
    """Gradient of gradient and tangent of gradient, by kernel and by reference."""
    case = random_case(batch=1, num_boxes=3, channels=2, dtype=np.float64, seed=2)
    moving = moving_of(case)
    direction = direction_like(moving, seed=3)

    def hessian_products(implementation):
        gradients = jax.grad(
            functools.partial(
                loss, case, sampling_ratio=sampling_ratio, implementation=implementation
            ),
            argnums=(0, 1, 2),
        )

        def run(moving, direction):
            reverse = jax.grad(lambda m: dot(gradients(*m), direction))(moving)
            forward = jax.jvp(lambda m: gradients(*m), (moving,), (direction,))[1]
            return reverse, forward

        return jax.jit(run)(moving, direction)

    reverse, forward = map(jax.tree.leaves, hessian_products("ffi"))
    _, want = map(jax.tree.leaves, hessian_products("reference"))
    for got in (reverse, forward):
        for a, b in zip(got, want, strict=True):
            assert relative_error(a, b) < 1e-10


def test_vmap_is_one_custom_call():
    case = random_case(batch=1, num_boxes=4)
    moving = moving_of(case)
    shifts = jnp.linspace(0, 0.5, 3)

    def gradients(shift, mask):
        features, offset, _ = moving
        return jax.grad(functools.partial(loss, case), argnums=(0, 1, 2))(
            features, offset + shift, mask
        )

    mapped = jax.vmap(gradients, in_axes=(0, None))
    got = jax.jit(mapped)(shifts, moving[2])
    for i, shift in enumerate(shifts):
        want = jax.jit(gradients)(shift, moving[2])
        for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
            np.testing.assert_array_equal(a[i], b)
    text = jax.jit(mapped).lower(shifts, moving[2]).as_text()
    assert text.count("custom_call @dcn_jax.roi_pool.fwd") == 1
    assert text.count("custom_call @dcn_jax.roi_pool.bwd") == 1


def test_checkpoint_and_scan():
    case = random_case(batch=1, num_boxes=4)
    moving = moving_of(case)

    def repeated(*moving):
        def body(carry, _):
            step = jax.checkpoint(functools.partial(loss, case))
            return carry + step(*moving), None

        return jax.lax.scan(body, jnp.float32(0), length=2)[0]

    got = jax.jit(jax.grad(repeated, argnums=(0, 1, 2)))(*moving)
    want = jax.jit(jax.grad(functools.partial(loss, case), argnums=(0, 1, 2)))(*moving)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, 2 * b, rtol=1e-6)


def test_bits_do_not_depend_on_how_work_is_cut():
    """With more images the blocks of channels that a thread owns are wider."""
    case = random_case(batch=1, channels=70, num_boxes=20)
    single = moving_of(case)
    copies = 40

    def repeat(tree):
        return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), tree)

    gradients = jax.jit(
        lambda case, moving: jax.grad(functools.partial(loss, case), (0, 1, 2))(*moving)
    )
    want = gradients(case, single)
    got = gradients(repeat(case), repeat(single))
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_array_equal(a, jnp.repeat(b, copies, axis=0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("implementation", ["ffi", "reference"])
def test_half_precision(dtype, implementation):
    """Maps and results in half precision, all else in float32."""
    case = random_case(channels=20)
    exact = {"features": tuple(x.astype(dtype) for x in case["features"])}
    exact["cotangent"] = case["cotangent"].astype(dtype)

    def run(case, dtype, implementation):
        features = tuple(x.astype(dtype) for x in exact["features"])

        def value_and_gradients(features, offset, mask):
            function = functools.partial(pool, case, implementation=implementation)
            y, pull_back = jax.vjp(function, features, offset, mask)
            return y, *pull_back(exact["cotangent"].astype(dtype))

        return jax.jit(value_and_gradients)(features, case["offset"], case["mask"])

    half = run(case, dtype, implementation)
    full = run(case, jnp.float32, "ffi")
    y, dfeatures, doffset, dmask = half
    assert {y.dtype, *(d.dtype for d in dfeatures)} == {jnp.dtype(dtype)}
    assert doffset.dtype == dmask.dtype == jnp.float32
    eps = float(jnp.finfo(dtype).eps)
    leaves = zip(*map(jax.tree.leaves, (half, full)), strict=True)
    for got, want in leaves:
        # One rounding of the result; none where the result is float32.
        bound = eps / 2 if got.dtype == dtype else 1e-5
        got, want = (np.asarray(x, np.float32) for x in (got, want))
        # float16 subnormals are 6e-8 apart.
        np.testing.assert_allclose(got, want, rtol=1.01 * bound, atol=1e-6)


def test_offsets_may_be_half_precision():
    case = random_case()
    half = {name: case[name].astype(jnp.bfloat16) for name in ("offset", "mask")}

    def run(case, half):
        return jax.grad(functools.partial(loss, case), (1, 2))(
            case["features"], half["offset"], half["mask"]
        )

    doffset, dmask = jax.jit(run)(case, half)
    assert doffset.dtype == dmask.dtype == jnp.bfloat16


def test_rois_get_no_gradient():
    case = random_case()

    @jax.jit
    def run(rois, offset):
        return loss({**case, "rois": rois}, case["features"], offset, case["mask"])

    drois = jax.grad(run)(case["rois"], case["offset"])
    assert not drois.any()


def test_without_offset_it_is_roi_align():
    case = random_case(batch=2)
    settings = dict(
        levels=case["levels"],
        map_sizes=case["map_sizes"],
        output_size=OUTPUT_SIZE,
        spatial_scale=SCALES,
    )

    @jax.jit
    def run(case):
        features, rois = case["features"], case["rois"]
        still = jnp.zeros_like(case["offset"])
        return (
            roi_align(features, rois, **settings),
            deform_roi_pool(features, rois, **settings),
            deform_roi_pool(features, rois, still, **settings),
            deform_roi_pool(features, rois, None, case["mask"], **settings),
        )

    align, plain, unmoved, masked = run(case)
    np.testing.assert_array_equal(plain, align)
    np.testing.assert_array_equal(unmoved, align)
    np.testing.assert_array_equal(masked, align * case["mask"][..., None])


def test_forward_mode_of_the_reference():
    case = random_case(batch=1, num_boxes=3)
    moving = moving_of(case)
    function = functools.partial(loss, case, implementation="reference")

    def run(moving, direction):
        tangent = jax.jvp(lambda m: function(*m), (moving,), (direction,))[1]
        return tangent, dot(jax.grad(lambda m: function(*m))(moving), direction)

    tangent, product = jax.jit(run)(moving, direction_like(moving, seed=4))
    np.testing.assert_allclose(tangent, product, rtol=1e-5)
