"""The feature pyramid neck."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.necks import FPN, Neck
from tests.support.tiny_detector import filled

CHANNELS = {"c2": 3, "c3": 4, "c4": 5, "c5": 6}
STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


def make_fpn(**options):
    return FPN(CHANNELS, STRIDES, features=4, **options, rngs=nnx.Rngs(0))


def maps_of(height, width, seed=0):
    """Maps of two images, as a backbone gives them: each half as large, rounded up."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            rng.normal(size=(2, -(-height // stride), -(-width // stride), channels)),
            jnp.float32,
        )
        for (name, stride), channels in zip(
            STRIDES.items(), CHANNELS.values(), strict=True
        )
    }


def nearest(x, height, width):
    """Of torch's `interpolate`: row i is row floor(i * old / new)."""
    rows = np.arange(height) * x.shape[1] // height
    columns = np.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns]


def plain(neck, maps):
    """The definition, in NumPy but for the 3x3 convolution."""
    levels, above = [], None
    for i in reversed(range(4)):
        lateral = neck.lateral[i]
        kernel, bias = map(np.asarray, (lateral.kernel[0, 0], lateral.bias[...]))
        x = np.asarray(maps[f"c{i + 2}"]) @ kernel + bias
        if above is not None:
            x = x + nearest(above, *x.shape[1:3])
        above = x
        levels.insert(0, np.asarray(neck.output[i](jnp.asarray(x, jnp.float32))))
    return [*levels, levels[-1][:, ::2, ::2]]


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 130)])
def test_levels_are_those_of_the_definition(size):
    neck, maps = filled(make_fpn), maps_of(*size)
    levels = jax.jit(neck)(maps)
    expected = plain(neck, maps)
    assert len(levels.rpn) == 5 and len(levels.roi) == 4
    for ours, theirs in zip(levels.rpn, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for ours, theirs in zip(levels.roi, levels.rpn, strict=False):
        assert ours is theirs or np.array_equal(ours, theirs)


def test_it_says_what_it_gives():
    neck = nnx.eval_shape(make_fpn)
    assert isinstance(neck, Neck)
    assert neck.rpn_strides == (4, 8, 16, 32, 64) and neck.roi_strides == (4, 8, 16, 32)
    assert neck.rpn_features == neck.roi_features == 4


def test_p6_may_be_a_convolution_of_c5():
    neck, maps = filled(lambda: make_fpn(convolved_p6=True)), maps_of(75, 101)
    p6 = jax.jit(neck)(maps).rpn[-1]
    assert p6.shape == (2, 2, 2, 4)
    # The first pixel's window begins on the padding.
    window = np.asarray(maps["c5"])[0, :2, :2]
    kernel = np.asarray(neck.p6.kernel[...])[1:, 1:]
    np.testing.assert_allclose(
        p6[0, 0, 0], np.einsum("ijc,ijck->k", window, kernel), atol=1e-5
    )


@pytest.mark.parametrize("convolved_p6", [False, True])
def test_padding_does_not_change_a_level(convolved_p6):
    neck = filled(lambda: make_fpn(convolved_p6=convolved_p6))
    small = maps_of(50, 75)
    last = [neck.p6] if convolved_p6 else []
    for conv in (*neck.lateral, *neck.output, *last):
        conv.bias[...] = jnp.ones(conv.bias.shape)
    padded = {
        name: jnp.pad(x, ((0, 0), (0, 5), (0, 7), (0, 0))) for name, x in small.items()
    }
    sizes = jnp.asarray([[50, 75], [50, 75]], jnp.int32)
    alone, wide = jax.jit(neck)(small), jax.jit(neck)(padded, sizes)
    for ours, theirs in zip(wide.rpn, alone.rpn, strict=True):
        rows, columns = theirs.shape[1:3]
        np.testing.assert_allclose(ours[:, :rows, :columns], theirs, atol=1e-5)
        assert not ours[:, rows:].any() and not ours[:, :, columns:].any()


def test_a_dilated_backbone_is_refused():
    with pytest.raises(ValueError, match=r"`strides` is .*twice the one before"):
        FPN(CHANNELS, STRIDES | {"c5": 16}, rngs=nnx.Rngs(0))
