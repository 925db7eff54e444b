"""Forward mode of every differentiable operator, by itself and nested with reverse.

Second derivatives by reverse mode first are in test_transforms.py.
"""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support import operators
from tests.support.comparison import relative_error
from tests.support.operators import calls_in
from xla_ops import deform_conv2d

ALL = pytest.mark.parametrize("name", operators.OPERATORS)
# One of each way in which a tangent is made.
MAIN = pytest.mark.parametrize("name", ["deform_conv2d", "deform_roi_pool", "roi_pool"])


def moving_of(row):
    """The arguments that are moved, and a direction for them."""
    rng = np.random.default_rng(0)
    arguments = tuple(row.arguments.values())
    moving = tuple(arguments[place] for place in row.places)
    direction = jax.tree.map(
        lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), moving
    )
    return moving, direction


def function_of(row, **options):
    """The operator as a function of its moving arguments."""

    def function(moving):
        arguments = list(row.arguments.values())
        for place, value in zip(row.places, moving, strict=True):
            arguments[place] = value
        return row.output(*arguments, **options)

    return function


def push(function):
    """`(point, direction) -> (value, tangent)`."""
    return jax.jit(lambda at, along: jax.jvp(function, (at,), (along,)))


def dot(a, b):
    return sum(
        jnp.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def assert_close(actual, expected, tolerance=2e-6):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < tolerance


@ALL
def test_tangent(name, x64):
    """By kernels: as the plain form's, as differences, and as the backward pass."""
    row = operators.operator(name, batch=1, dtype=np.float64)
    moving, direction = moving_of(row)
    kernel = function_of(row, implementation="ffi")
    value, tangent = push(kernel)(moving, direction)
    plain = push(function_of(row, implementation="reference"))(moving, direction)
    assert_close((value, tangent), plain, 1e-12)

    step = 1e-6
    ahead, behind = (
        jax.tree.map(lambda a, d, s=sign: a + s * step * d, moving, direction)
        for sign in (1, -1)
    )
    numeric = (kernel(ahead) - kernel(behind)) / (2 * step)
    assert relative_error(tangent, numeric) < 1e-6

    cotangent = np.random.default_rng(1).standard_normal(value.shape)
    (gradients,) = jax.jit(
        lambda m, c: jax.vjp(kernel, m)[1](c),
    )(moving, cotangent)
    np.testing.assert_allclose(
        dot(gradients, direction), jnp.vdot(cotangent, tangent), rtol=1e-11
    )


@MAIN
def test_half_precision(name):
    """Terms are added up before they are rounded; a bias is added after."""
    half = operators.operator(name, dtype=jnp.bfloat16)
    full = half._replace(arguments=in_float32(half.arguments))
    moving, direction = moving_of(half)
    value, tangent = push(function_of(half))(moving, direction)
    exact = push(function_of(full))(*map(in_float32, (moving, direction)))[1]
    assert value.dtype == tangent.dtype == jnp.bfloat16
    assert relative_error(tangent.astype(jnp.float32), exact) < 2**-8


def in_float32(tree):
    return jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, tree
    )


@ALL
def test_vmap_adds_no_custom_call(name):
    """Of points and directions, and of directions alone as `jax.jacfwd` has it."""
    row = operators.operator(name)
    moving, direction = moving_of(row)
    single = push(function_of(row))
    calls = calls_in(single.lower(moving, direction).as_text())
    assert set(calls) == set(row.forward_calls)
    points, directions = (
        jax.tree.map(lambda a: jnp.stack([a, a[::-1]], axis=1), tree)
        for tree in (moving, direction)
    )
    for at, axis in ((points, 1), (moving, None)):
        mapped = jax.jit(jax.vmap(single, (axis, 1)))
        assert calls_in(mapped.lower(at, directions).as_text()) == calls
        actual = mapped(at, directions)
        for k in range(2):
            taken = (
                tree if of is None else jax.tree.map(lambda a, k=k: a[:, k], tree)
                for tree, of in ((at, axis), (directions, 1))
            )
            expected = single(*taken)
            assert_close(jax.tree.map(lambda a, k=k: a[k], actual), expected)


@MAIN
@pytest.mark.parametrize("order", ["forward over forward", "reverse over forward"])
def test_second_derivative(name, order, x64):
    """Of the loss, twice along one direction or its gradient along one."""
    row = operators.operator(name, batch=1, dtype=np.float64)
    moving, direction = moving_of(row)

    def product(implementation, order):
        def loss(moving):
            return jnp.sum(
                jnp.sin(function_of(row, implementation=implementation)(moving))
            )

        def slope(moving):
            return jax.jvp(loss, (moving,), (direction,))[1]

        if order == "reverse over forward":
            return jax.jit(jax.grad(slope))(moving)
        return jax.jit(lambda m: jax.jvp(slope, (m,), (direction,)))(moving)[1]

    expected = product("reference", order)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected))
    assert_close(product("ffi", order), expected, 1e-10)


def test_jacobians_and_hessians_in_all_ways(x64):
    """Whole matrices, of a layer of one pixel's size."""
    rng = np.random.default_rng(0)
    x, offset, kernel = (
        rng.standard_normal(shape)
        for shape in ((1, 2, 3, 1), (1, 2, 3, 1, 1, 2), (1, 1, 1, 2))
    )

    def output(offset):
        return deform_conv2d(x, offset, kernel)

    def loss(offset):
        return jnp.sum(jnp.sin(output(offset)))

    def matrices(offset):
        hessians = [
            outer(inner(loss))(offset)
            for outer in (jax.jacfwd, jax.jacrev)
            for inner in (jax.jacfwd, jax.jacrev)
        ]
        return (jax.jacfwd(output)(offset), jax.jacrev(output)(offset)), hessians

    (forward, reverse), hessians = jax.jit(matrices)(offset)
    assert np.any(forward)
    assert_close(forward, reverse, 1e-12)
    assert np.any(hessians[0])
    for hessian in hessians[1:]:
        assert_close(hessian, hessians[0], 1e-12)


@MAIN
def test_linearize_and_its_transpose(name):
    """The linear function is transposed into the kernel of the backward pass."""
    row = operators.operator(name)
    moving, direction = moving_of(row)
    function = function_of(row)
    # Outside of jit, where the operands are kept as they are.
    value, along = jax.linearize(function, moving)
    assert_close((value, along(direction)), push(function)(moving, direction))

    @jax.jit
    def transposed(moving, cotangent):
        value, along = jax.linearize(function, moving)
        return value, jax.linear_transpose(along, moving)(cotangent)

    lowered = transposed.lower(moving, value)
    assert calls_in(lowered.as_text()) == row.both_calls
    expected = jax.jit(lambda m, c: jax.vjp(function, m)[1](c))(moving, value)
    assert_close(lowered.compile()(moving, value)[1], expected)


@pytest.mark.devices(8)
@pytest.mark.parametrize("how", ["Auto", "Explicit", "shard_map"])
@MAIN
def test_batch_over_devices(name, how):
    """No communication: each device moves its own images."""
    row = operators.operator(name, batch=8)
    arguments = tuple(row.arguments.values())
    _, direction = moving_of(row)

    def tangent(arguments, direction):
        split = row._replace(arguments=dict(zip(row.arguments, arguments, strict=True)))
        moving = tuple(arguments[place] for place in row.places)
        return jax.jvp(function_of(split), (moving,), (direction,))

    expected = jax.jit(tangent)(arguments, direction)
    specs = tuple(P() if name in row.shared else P("data") for name in row.arguments)
    specs = (specs, tuple(specs[place] for place in row.places))
    kind = getattr(AxisType, how, AxisType.Auto)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    if how == "shard_map":
        tangent = jax.shard_map(tangent, mesh=mesh, in_specs=specs, out_specs=P("data"))
    else:
        arguments, direction = jax.tree.map(
            lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec)),
            (arguments, direction),
            jax.tree.map(
                lambda spec, tree: jax.tree.map(lambda _: spec, tree),
                specs,
                (arguments, direction),
                is_leaf=lambda x: isinstance(x, P),
            ),
        )
    with jax.set_mesh(mesh):
        compiled = jax.jit(tangent).lower(arguments, direction).compile()
        actual = compiled(arguments, direction)
    assert not re.findall(r" (?:all-|collective-|reduce-scatter)", compiled.as_text())
    assert_close(actual, expected)


# At a pixel, between pixels, at the ends of an axis of 4 pixels, and beyond.
PLACES = (0, 1, 2.75, 3, 3.5, -0.5, -1, 4, 1e6, np.inf, -np.inf, np.nan)


def test_offsets_at_pixels_and_beyond_the_map():
    """Samples move as in the plain form, also where nothing is read."""
    rng = np.random.default_rng(0)
    places = np.float32([(y, x) for y in PLACES for x in PLACES])
    still = np.moveaxis(np.indices((4, 4), np.float32), 0, -1)
    offset = (places.reshape(9, 4, 4, 2) - still)[:, :, :, None, None]
    x, kernel, direction = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((9, 4, 4, 2), (1, 1, 2, 3), offset.shape)
    )

    def moved(implementation):
        def function(offset):
            return deform_conv2d(x, offset, kernel, implementation=implementation)

        return push(function)(offset, direction)[1]

    expected = moved("reference")
    assert np.isnan(expected).any() and np.nanmax(abs(expected)) > 0.1
    np.testing.assert_allclose(moved("ffi"), expected, atol=1e-5)


def test_a_roi_or_offset_that_is_not_finite_does_not_move():
    """As the backward pass, which gives such a bin's pixels no gradient."""
    row = operators.operator("deform_roi_pool", batch=1)
    arguments = dict(row.arguments)
    arguments["rois"] = jnp.asarray(arguments["rois"]).at[0, 0, 2].set(jnp.nan)
    arguments["offset"] = (
        jnp.asarray(arguments["offset"])
        .at[0, 1, 0, 0, 0]
        .set(jnp.nan)
        .at[0, 2, 1, 1, 1]
        .set(jnp.inf)
    )
    row = row._replace(arguments=arguments)
    moving, direction = moving_of(row)
    value, tangent = push(function_of(row, implementation="ffi"))(moving, direction)
    assert np.isnan(value[0, 0]).all() and np.isnan(value[0, 1, 0, 0]).all()
    assert not tangent[0, 0].any() and not tangent[0, 1, 0, 0].any()
    plain = function_of(row, implementation="reference")
    assert_close(tangent, push(plain)(moving, direction)[1])


def test_platforms_without_kernels_take_the_plain_form():
    row = operators.operator("deform_conv2d")
    traced = push(function_of(row)).trace(*moving_of(row))
    with warnings.catch_warnings():
        # Of the plain form, once in a process.
        warnings.simplefilter("ignore", UserWarning)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert calls_in(text) == []
