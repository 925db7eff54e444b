"""The count of multiply-adds, by hand and beside XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain import multiply_adds
from dcn_jax.modules import DeformConv

X = jax.ShapeDtypeStruct((2, 9, 12, 8), jnp.float32)


def xla_flops(function, *arguments):
    """A multiplication and an addition are two."""
    arguments = [jnp.ones(a.shape, a.dtype) for a in arguments]
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_a_product_counts_as_xla_counts_it():
    a = jax.ShapeDtypeStruct((5, 30, 40), jnp.float32)
    b = jax.ShapeDtypeStruct((5, 40, 7), jnp.float32)
    assert multiply_adds(jnp.matmul, a, b) == 5 * 30 * 40 * 7
    assert xla_flops(jnp.matmul, a, b) == 2 * multiply_adds(jnp.matmul, a, b)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("strides", [1, 2])
def test_a_convolution_without_padding_counts_as_xla_counts_it(groups, strides):
    kernel = jax.ShapeDtypeStruct((3, 2, 8 // groups, 12), jnp.float32)

    def convolution(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    count = multiply_adds(convolution, X, kernel)
    rows, columns = (9 - 3) // strides + 1, (12 - 2) // strides + 1
    assert count == 2 * rows * columns * 12 * 3 * 2 * 8 // groups
    assert xla_flops(convolution, X, kernel) == 2 * count


@pytest.mark.parametrize("modulated", [False, True])
def test_deforming_costs_its_branch(modulated):
    def layer(deform):
        size = dict(kernel_size=(3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
        if deform:
            return DeformConv(8, 16, modulated=modulated, offset_groups=2, **size)
        return nnx.Conv(8, 16, **size)

    count = [
        multiply_adds(lambda m, x: m(x), nnx.eval_shape(lambda d=d: layer(d)), X)
        for d in (False, True)
    ]
    positions = 2 * 5 * 6 * 9 * 8
    assert count[0] == positions * 16
    assert count[1] - count[0] == positions * 2 * 9 * (3 if modulated else 2)


def test_a_gradient_costs_two_products_more():
    layer = nnx.eval_shape(lambda: DeformConv(8, 16, (3, 3), rngs=nnx.Rngs(0)))

    def loss(layer, x):
        return (layer(x) ** 2).sum()

    forward = multiply_adds(loss, layer, X)
    # Of the offset branch and of the layer, with respect to kernels and images.
    graph, state = nnx.split(layer)
    gradient = jax.grad(lambda s, x: loss(nnx.merge(graph, s), x), argnums=(0, 1))
    assert multiply_adds(gradient, state, X) == 3 * forward


def test_what_runs_several_times_counts_several_times():
    w = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def repeated(w):
        return jax.lax.scan(lambda x, _: (x @ w, None), w, None, length=7)[0]

    assert multiply_adds(repeated, w) == 7 * 4**3
    assert multiply_adds(jax.jit(lambda w: jax.vmap(jnp.dot)(w, w)), w) == 16
    assert multiply_adds(jax.grad(lambda w: (w @ w).sum()), w) >= 2 * 4**3

    def chosen(w):
        return jax.lax.cond(w[0, 0] > 0, lambda w: w @ w, lambda w: w, w)

    assert multiply_adds(chosen, w) == 4**3


def test_a_loop_of_unknown_length_is_refused():
    def loop(w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, w)

    with pytest.raises(ValueError, match="loop whose length is not known"):
        multiply_adds(loop, jax.ShapeDtypeStruct((4, 4), np.float32))
