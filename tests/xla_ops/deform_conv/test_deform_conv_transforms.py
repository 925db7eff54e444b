"""Derivatives of deform_conv2d, and deform_conv2d under jax's transformations."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.support.comparison import relative_error
from tests.support.deform_conv import BACKWARD_CALLS, FORWARD_CALLS, NAMES, random_case
from xla_ops import deform_conv2d

SMALL = dict(batch=2, size=(3, 4), channels=2, features=2)


def loss(*arguments, **options):
    """A scalar whose second derivatives are all there."""
    return jnp.sum(jnp.sin(deform_conv2d(*arguments, **options)))


def custom_calls(compiled):
    """Targets of the custom calls in a compiled program."""
    return re.findall(
        r'custom_call_target="dcn_jax.deform_conv2d.(\w+)"', compiled.as_text()
    )


def test_check_grads_of_second_order(x64):
    """Reverse over reverse against finite differences."""
    case = random_case(**SMALL | {"batch": 1}, dtype=np.float64)[:4]
    check_grads(
        jax.jit(deform_conv2d), case, order=2, modes=["rev"], atol=1e-5, rtol=1e-5
    )


def second_order(implementation):
    """Hessian-vector products in both ways, and their value by jvp of the gradient."""

    def both_ways(arguments, direction):
        gradient = jax.grad(
            functools.partial(loss, implementation=implementation), (0, 1, 2, 3)
        )
        first, forward = jax.jvp(lambda *a: gradient(*a), arguments, direction)
        reverse = jax.grad(
            lambda *a: sum(
                jnp.vdot(g, d) for g, d in zip(gradient(*a), direction, strict=True)
            ),
            (0, 1, 2, 3),
        )(*arguments)
        return first, forward, reverse

    return jax.jit(both_ways)


@pytest.mark.slow
def test_hessian_vector_products(x64):
    case = random_case(**SMALL, dtype=np.float64)[:4]
    direction = random_case(**SMALL, dtype=np.float64, seed=3)[:4]
    first, forward, reverse = second_order("ffi")(case, direction)
    want_first, want_forward, want_reverse = second_order("reference")(case, direction)
    for index, name in enumerate(NAMES[:4]):
        assert relative_error(first[index], want_first[index]) < 1e-12, name
        for actual in (forward, reverse, want_reverse):
            assert relative_error(actual[index], want_forward[index]) < 1e-12, name


@pytest.mark.slow
def test_third_order(x64):
    """Along one line through the kernel, against finite differences of the second."""
    x, offset, kernel, mask, _ = random_case(**SMALL, dtype=np.float64)

    def along(t):
        return loss(x, offset + t, kernel * (1 + t), mask)

    second = jax.grad(jax.grad(along))
    third = jax.jit(jax.grad(second))
    second = jax.jit(second)
    step = 1e-6
    numeric = (second(step) - second(-step)) / (2 * step)
    assert float(third(0.0)) == pytest.approx(float(numeric), rel=1e-6)


def test_jvp_of_the_reference():
    case = random_case(**SMALL)[:4]
    direction = random_case(**SMALL, seed=3)[:4]
    reference = functools.partial(loss, implementation="reference")
    value, slope = jax.jit(lambda a, d: jax.jvp(reference, a, d))(case, direction)
    gradient = jax.grad(loss, (0, 1, 2, 3))(*case)
    expected = sum(np.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    assert float(value) == pytest.approx(float(loss(*case)), rel=1e-5)
    assert float(slope) == pytest.approx(expected, rel=1e-4)


def test_gradient_of_some_arguments_and_zero_cotangents():
    case = random_case(**SMALL, bias=True)
    everything = jax.grad(loss, range(5))(*case)
    for index in range(5):
        np.testing.assert_array_equal(jax.grad(loss, index)(*case), everything[index])
    # An output that does not matter, and one that is not differentiated.
    gradient = jax.grad(lambda x: 0.0 * loss(x, *case[1:]))(case[0])
    assert not np.any(gradient)
    gradient = jax.grad(lambda x: loss(jax.lax.stop_gradient(x), *case[1:]))(case[0])
    assert not np.any(gradient)
    # Beside an integer argument, whose tangent is float0.
    _, pull_back = jax.vjp(
        lambda x, n: loss(x, *case[1:]) * n.astype("f"), case[0], jnp.int32(2)
    )
    dx, dn = pull_back(jnp.float32(1))
    assert relative_error(dx, 2 * everything[0]) < 1e-6
    assert dn.dtype == jax.dtypes.float0


SUBSETS = [
    subset
    for count in range(1, 5)
    for subset in itertools.combinations(range(4), count)
]


def stacked_case(subset, size=3):
    """Arguments where those in `subset` have a new axis of `size`, and in_axes."""
    cases = [random_case(**SMALL, seed=seed)[:4] for seed in range(size)]
    arguments = [
        np.stack([case[i] for case in cases], axis=i % 2)
        if i in subset
        else cases[0][i]
        for i in range(4)
    ]
    axes = tuple(i % 2 if i in subset else None for i in range(4))
    return arguments, axes


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda s: "-".join(NAMES[i] for i in s))
def test_vmap(subset):
    def total(*arguments):  # of terms that do not cancel
        return jnp.sum(1 + jnp.sin(deform_conv2d(*arguments)))

    arguments, axes = stacked_case(subset)
    value_and_gradient = jax.value_and_grad(total, (0, 1, 2, 3))
    mapped = jax.jit(jax.vmap(value_and_gradient, axes))
    lowered = mapped.lower(*arguments)
    text = lowered.as_text()
    calls = re.findall(r"custom_call @dcn_jax\.deform_conv2d\.(\w+)", text)
    assert sorted(calls) == sorted(FORWARD_CALLS + BACKWARD_CALLS)
    assert "while" not in text
    actual = lowered.compile()(*arguments)
    single = jax.jit(value_and_gradient)
    for k in range(3):
        one = [
            a if axis is None else a.take(k, axis)
            for a, axis in zip(arguments, axes, strict=True)
        ]
        expected = single(*one)
        for a, b in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            assert relative_error(a[k], b) < 2e-6


@pytest.mark.parametrize("groups", [1, 2])
def test_nested_vmap_and_gradient_outside(groups):
    x, offset, kernel, mask, _ = random_case(**SMALL, groups=groups)
    convolve = functools.partial(deform_conv2d, feature_group_count=groups)
    kernels = np.stack([kernel, 2 * kernel, 3 * kernel])
    images = np.stack([x, -x])

    def outputs(images, offset, kernels, mask):
        over_kernels = jax.vmap(convolve, (None, None, 0, None))
        return jax.vmap(over_kernels, (0, None, None, None))(
            images, offset, kernels, mask
        )

    y = convolve(x, offset, kernel, mask)
    factors = np.float32([[1, 2, 3], [-1, -2, -3]])
    expected = factors[:, :, None, None, None, None] * np.asarray(y)
    compiled = jax.jit(outputs).lower(images, offset, kernels, mask).compile()
    assert custom_calls(compiled) == FORWARD_CALLS
    assert relative_error(compiled(images, offset, kernels, mask), expected) < 1e-6

    @jax.jit
    def gradient(offset):
        return jax.grad(
            lambda offset: jnp.sum(
                factors * outputs(images, offset, kernels, mask).sum((2, 3, 4, 5))
            )
        )(offset)

    single = jax.grad(lambda o: convolve(x, o, kernel, mask).sum())(offset)
    assert relative_error(gradient(offset), np.sum(factors**2) * single) < 1e-5


@pytest.mark.parametrize("mapped", [0, 3])
@pytest.mark.parametrize("images", [0, 2])
def test_vmap_of_the_gradient_where_there_is_nothing(mapped, images):
    """No image of an element, or no element: gradients keep their shapes, and are 0."""
    x, offset, kernel, mask, _ = random_case(**SMALL)
    arguments = tuple(
        jnp.zeros((mapped, images, *a.shape[1:]), a.dtype) for a in (x, offset, mask)
    )
    kernels = jnp.broadcast_to(kernel, (mapped, *kernel.shape))

    def gradients(x, offset, mask, kernel):
        return jax.grad(lambda *a: loss(*a), (0, 1, 2, 3))(x, offset, kernel, mask)

    for per_element in (kernels, None):
        axes = (0, 0, 0, None if per_element is None else 0)
        own = kernel if per_element is None else per_element
        got = jax.jit(jax.vmap(gradients, axes))(*arguments, own)
        like = (*arguments[:2], kernels, arguments[2])
        for gradient, argument in zip(got, like, strict=True):
            assert gradient.shape == argument.shape
            np.testing.assert_array_equal(gradient, 0)


def test_checkpoint_scan_and_donation():
    """Three layers in a scan, recomputed in the backward pass, state donated."""
    x, offset, kernel, mask, _ = random_case(**SMALL)
    kernels = np.stack([kernel, kernel / 2, -kernel])

    def layer(x, kernel):
        return jnp.tanh(deform_conv2d(x, offset, kernel, mask)), None

    def scanned(x, kernels):
        return jax.lax.scan(jax.checkpoint(layer), x, kernels)[0].sum()

    def unrolled(x, kernels):
        for kernel in kernels:
            x, _ = layer(x, kernel)
        return x.sum()

    expected = jax.grad(unrolled, (0, 1))(x, kernels)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(x, kernels):
        return jax.grad(scanned, (0, 1))(x, kernels)

    donated = jnp.asarray(x), jnp.asarray(kernels)
    actual = step(*donated)
    assert all(a.is_deleted() for a in donated)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 1e-5
    step(*actual)
    assert step._cache_size() == 1


def test_the_backward_pass_keeps_nothing_but_arguments():
    case = random_case(**SMALL)[:4]
    _, pull_back = jax.vjp(lambda *a: deform_conv2d(*a), *case)
    kept = [np.shape(leaf) for leaf in jax.tree.leaves(pull_back)]
    x, offset, kernel, mask = case
    arguments = [x.shape, offset.shape, (1, *kernel.shape), mask.shape]
    assert sorted(s for s in kept if s) == sorted(arguments)


def test_jit_cache_and_hashable_options():
    case = random_case(**SMALL)[:4]
    function = jax.jit(
        lambda *a, **options: deform_conv2d(*a, **options),
        static_argnames=("strides", "padding"),
    )
    for strides, padding in [(1, "SAME"), (1, "SAME")]:
        function(*case, strides=strides, padding=padding)
    assert function._cache_size() == 1
    function(*case, strides=(1, 1), padding=((1, 1), (1, 1)))
    assert function._cache_size() == 2
