"""The Linen layers against the NNX ones, with equal weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax import modules
from dcn_jax.modules import linen


def random_like(variables):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda v: jnp.asarray(0.3 * rng.standard_normal(v.shape), v.dtype), variables
    )


def copy_to(module, params):
    """The NNX module with the Linen parameters, which must have the same names."""
    state = nnx.state(module)
    names = {path for path, _ in nnx.to_flat_state(state)}
    assert names == set(nnx.traversals.flatten_mapping(params))
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)
    return module


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=3),
        dict(
            kernel_size=(3, 2),
            strides=2,
            padding=1,
            offset_groups=2,
            mask_scale=2,
            feature_group_count=2,
            use_bias=False,
        ),
        dict(kernel_size=3, modulated=False, kernel_dilation=2, dtype=jnp.bfloat16),
    ],
)
def test_deform_conv_equals_nnx(arguments):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 6, 7, 4), np.float32))
    layer = linen.DeformConv(6, **arguments)
    params = random_like(layer.init(jax.random.key(0), x)["params"])
    other = copy_to(modules.DeformConv(4, 6, **arguments, rngs=nnx.Rngs(0)), params)
    y = layer.apply({"params": params}, x)
    assert y.dtype == arguments.get("dtype", jnp.float32)
    np.testing.assert_array_equal(y, other(x))


def test_forward_mode_through_both_layers():
    """Along the input and all parameters; the same as reverse mode has it."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 5, 3), np.float32))
    layer = linen.DeformConv(4, 3)
    params = random_like(layer.init(jax.random.key(0), x)["params"])
    direction = random_like((params, x))

    def by_linen(params, x):
        return layer.apply({"params": params}, x)

    def twin(params):
        other = modules.DeformConv(3, 4, 3, rngs=nnx.Rngs(0))
        return nnx.split(copy_to(other, params))

    graph, state = twin(params)

    def by_nnx(state, x):
        return nnx.merge(graph, state)(x)

    y, tangent = jax.jit(lambda: jax.jvp(by_linen, (params, x), direction))()
    along = twin(direction[0])[1], direction[1]
    _, same = jax.jit(lambda: jax.jvp(by_nnx, (state, x), along))()
    np.testing.assert_array_equal(tangent, same)
    gradients = jax.jit(lambda: jax.vjp(by_linen, params, x)[1](y))()
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
    product = sum(jnp.vdot(a, b) for a, b in pairs)
    np.testing.assert_allclose(jnp.vdot(y, tangent), product, rtol=1e-4)


@pytest.mark.parametrize("modulated", [True, False])
def test_deform_roi_pool_equals_nnx(modulated):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((2, 6, 7, 4), np.float32))
    rois = jnp.asarray([[[1.0, 2.0, 20.0, 17.0]], [[0.0, 0.0, 24.0, 24.0]]])
    sizes = jnp.asarray([[6, 7], [5, 5]])
    arguments = dict(
        output_size=3, spatial_scale=0.25, hidden_features=5, modulated=modulated
    )
    layer = linen.DeformRoIPool(**arguments)
    params = random_like(layer.init(jax.random.key(0), x, rois)["params"])
    other = copy_to(modules.DeformRoIPool(4, **arguments, rngs=nnx.Rngs(0)), params)
    np.testing.assert_array_equal(
        layer.apply({"params": params}, x, rois, sizes), other(x, rois, sizes)
    )


def test_starts_as_an_ordinary_convolution_and_checks_its_arguments():
    x = jnp.ones((1, 4, 4, 2))
    layer = linen.DeformConv(2, 3, mask_scale=2)
    params = layer.init(jax.random.key(0), x)["params"]
    assert not any(v.any() for v in params["offset_conv"].values())
    with pytest.raises(ValueError, match="`offset_groups` is 3"):
        linen.DeformConv(2, 3, offset_groups=3).init(jax.random.key(0), x)


def test_the_branch_refuses_other_features():
    layer = linen.DeformConv(4, 3)
    x, features = jnp.ones((1, 5, 6, 2)), jnp.ones((1, 5, 6, 3))
    variables = layer.init(jax.random.key(0), x, features)
    with pytest.raises(ValueError, match=r"`offset_features` has .*H, W, 3\)"):
        layer.apply(variables, x)
    turned = jnp.moveaxis(features, -1, -3)
    with pytest.raises(ValueError, match=r"jnp\.moveaxis\(offset_features, -3, -1\)"):
        layer.apply(variables, turned, method="sampling")
    assert layer.apply(variables, x, features).shape == (1, 5, 6, 4)
