"""Fields of offsets against what a layer was told to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain import OffsetField, first_in_pixels, offset_fields
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


@pytest.mark.parametrize("masked", [True, False])
def test_a_field_in_pixels_of_the_image(masked):
    """A map of 4 x 6, of a canvas of 13 x 24 with an image of 9 x 18 on it."""
    centre = np.moveaxis(np.mgrid[:4, :6], 0, -1).astype(np.float32)
    offset = np.arange(2 * 4 * 6 * 3 * 2, dtype=np.float32).reshape(2, 4, 6, 3, 2)
    mask = offset[..., 0] / 1000 if masked else None
    field = OffsetField(centre, offset, mask, np.int32([4, 6]))
    found = first_in_pixels(field, (13, 24), (9, 18))
    # Of a stride of 4, the filters at 0, 4 and 8; and at 0, 4, ... 16.
    np.testing.assert_array_equal(found.centre[:, 0, 0], [0, 4, 8])
    np.testing.assert_array_equal(found.centre[0, :, 1], [0, 4, 8, 12, 16])
    np.testing.assert_array_equal(found.offset, 4 * offset[0, :3, :5])
    if masked:
        np.testing.assert_array_equal(found.mask, mask[0, :3, :5])
    else:
        assert found.mask is None
    with pytest.raises(ValueError, match="over a power of two"):
        first_in_pixels(field, (12, 12), (9, 12))
