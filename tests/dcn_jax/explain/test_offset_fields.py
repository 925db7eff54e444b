"""Fields of offsets against what a layer was told to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain import offset_fields
from dcn_jax.modules import DeformConv


@pytest.mark.parametrize("modulated", [True, False])
def test_a_field_is_the_mean_over_taps(modulated):
    layer = DeformConv(
        *(2, 4, (3, 3)),
        strides=2,
        padding=1,
        offset_groups=2,
        modulated=modulated,
        rngs=nnx.Rngs(0),
    )
    bias = np.random.default_rng(0).standard_normal(54 if modulated else 36)
    layer.offset_conv.bias.set_value(jnp.asarray(bias, jnp.float32))
    image = jnp.ones((1, 6, 9, 2))
    found = jax.device_get(
        jax.jit(lambda m, x: offset_fields(m, lambda m: m(x)))(layer, image)
    )
    assert found.keys() == {""}
    field = found[""]
    np.testing.assert_array_equal(field.map_size, (6, 9))
    expected = np.moveaxis(np.mgrid[:6:2, :9:2], 0, -1)
    np.testing.assert_array_equal(field.centre, expected)
    offset, mask = jax.device_get(jax.jit(lambda m, x: m.sampling(x))(layer, image))
    assert field.offset.shape == (1, 3, 5, 2, 2)
    np.testing.assert_allclose(field.offset, offset.mean(-2), rtol=1e-6)
    assert np.ptp(field.offset[0, 0, 0], axis=0).min() > 0.01
    if modulated:
        np.testing.assert_allclose(field.mask, mask.mean(-1), rtol=1e-6)
    else:
        assert field.mask is None


def test_without_deformable_layers_there_is_none():
    layer = nnx.Conv(2, 2, (3, 3), rngs=nnx.Rngs(0))
    image = jnp.ones((1, 4, 4, 2))
    assert jax.eval_shape(lambda m: offset_fields(m, lambda m: m(image)), layer) == {}
