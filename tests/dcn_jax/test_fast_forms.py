import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.modules.fast_forms import max_pool_3x3, pointwise_conv


@pytest.mark.parametrize("hw", [(1, 1), (2, 3), (7, 8)])
def test_max_pool_and_its_gradient_equal_a_windowed_maximum(hw):
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, *hw, 3)))

    def windowed(x):
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    np.testing.assert_array_equal(max_pool_3x3(x), windowed(x))

    # The ties of a map after a ReLU are zeros, which the ReLU gives no gradient.
    def energy(pool, x):
        return (pool(jax.nn.relu(x)) ** 2).sum()

    x = jax.random.normal(jax.random.key(1), (2, *hw, 3))
    got, expected = (
        jax.grad(lambda x, pool=pool: energy(pool, x))(x)
        for pool in (max_pool_3x3, windowed)
    )
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("hw", [(6, 9), (7, 8)])
def test_the_first_of_equal_maxima_has_the_gradient(hw):
    """As in torch, and in a windowed maximum; sparse kernels make plateaus."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(1, 4, (3, *hw, 4)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=max_pool_3x3(x).shape), jnp.float32)

    def windowed(x):
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    got, expected = (
        jax.vjp(pool, x)[1](cotangent)[0] for pool in (max_pool_3x3, windowed)
    )
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_nan_is_a_maximum():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 2, 1].set(jnp.nan)
    found = np.isnan(max_pool_3x3(x))[0, ..., 0]
    np.testing.assert_array_equal(found, [[False, False], [True, True]])


@pytest.mark.parametrize("strides", [1, 2])
def test_pointwise_conv_equals_the_convolution(strides):
    arguments = dict(strides=strides, padding=0, rngs=nnx.Rngs(0))
    plain = nnx.Conv(3, 4, (1, 1), **arguments)
    fast = nnx.Conv(
        3,
        4,
        (1, 1),
        conv_general_dilated=pointwise_conv,
        **(arguments | {"rngs": nnx.Rngs(0)}),
    )
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
    np.testing.assert_allclose(fast(x), plain(x), atol=1e-6)
    gradients = [jax.grad(lambda x, c=c: jnp.sum(c(x) ** 2))(x) for c in (plain, fast)]
    np.testing.assert_allclose(*gradients, atol=1e-5)
