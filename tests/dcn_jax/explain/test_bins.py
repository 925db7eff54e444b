"""Bin locations against those computed by hand, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain import bin_locations
from dcn_jax.modules import DeformRoIPool, DeformRoIPoolByLevel, RoIAlign, RoIPool
from xla_ops import deform_roi_pool

ROIS = jnp.asarray([[[2.0, 4.0, 18.0, 28.0], [8.0, 8.0, 24.0, 20.0]]])


class Head(nnx.Module):
    """Pools the image at half its size, and says something of each RoI."""

    def __init__(self, pool, rois=ROIS):
        self.pool, self.rois = pool, nnx.Variable(rois)

    def __call__(self, x):
        x = x[:, ::2, ::2]
        return jnp.tanh(self.pool(x, self.rois[...].astype(x.dtype))).mean((2, 3))


def call(model, x):
    return model(x)


def random_image(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).standard_normal((32, 32, 2)), dtype)


def locate(model, image, nodes, **kwargs):
    find = jax.jit(lambda m, x: bin_locations(m, call, x, nodes, **kwargs))
    return jax.device_get(find(model, image))


def deformable(**kwargs):
    """A layer whose bins move, each in its own way and by its own factor."""
    pool = DeformRoIPool(
        *(2, 2), spatial_scale=0.5, hidden_features=4, rngs=nnx.Rngs(0), **kwargs
    )
    bias = np.random.default_rng(1).standard_normal(12)
    pool.offset_fc.bias.set_value(jnp.asarray(bias, pool.offset_fc.bias.dtype))
    return pool, bias


@pytest.mark.usefixtures("x64")
def test_bins_and_gradients_of_a_deformable_layer():
    pool, bias = deformable(param_dtype=np.float64)
    model, image = Head(pool), random_image(np.float64)
    found = locate(model, image, [(1,), (0,)], gradient=True)
    offset, mask = bias[:8].reshape(2, 2, 2), 1 / (1 + np.exp(-bias[8:].reshape(2, 2)))
    for k, (x1, y1, x2, y2) in enumerate(np.asarray(ROIS)[0, ::-1]):
        size = np.array([y2 - y1, x2 - x1])
        np.testing.assert_allclose(found.size[k], size / 2, atol=1e-6)
        for i in range(2):
            for j in range(2):
                still = [y1, x1] + (np.array([i, j]) + 0.5) / 2 * size
                place = still + 0.1 * size * offset[i, j]
                np.testing.assert_allclose(found.centre[k, i, j], place, atol=1e-6)
        np.testing.assert_allclose(found.mask[k], mask, rtol=1e-6)

    def norm(move):
        """Of the second RoI, whose bins move by parts of its size."""
        moved = 0.1 * offset + move
        y = deform_roi_pool(
            image[None, ::2, ::2],
            ROIS[:, 1:].astype(np.float64),
            moved[None, None],
            jnp.asarray(mask)[None, None],
            output_size=2,
            spatial_scale=0.5,
            offset_scale=1.0,
        )
        return jnp.linalg.norm(jnp.tanh(y).mean((2, 3)))

    step = 1e-7
    moves = np.concatenate([np.zeros((1, 8)), step * np.eye(8)]).reshape(9, 2, 2, 2)
    # Of its 12 x 16 pixels.
    norms = jax.jit(jax.vmap(norm))(moves / np.array([12, 16]))
    slopes = (norms[1:] - norms[0]) / step
    np.testing.assert_allclose(found.gradient[0].reshape(8), slopes, atol=1e-6)
    assert np.abs(slopes).max() > 1e-3
    assert found.strength.shape == (2, 2, 2)


def test_regular_bins_lie_still_and_have_gradients():
    """Without alignment a RoI lies half a pixel of its map further."""
    image, places = random_image(), {}
    for aligned in (True, False):
        model = Head(RoIAlign(2, spatial_scale=0.5, aligned=aligned))
        found = locate(model, image, [(0,)], gradient=True)
        np.testing.assert_array_equal(found.mask, np.ones((1, 2, 2)))
        assert np.abs(found.gradient).max() > 1e-3
        places[aligned] = found.centre[0]
    expected = [[[10, 6], [10, 14]], [[22, 6], [22, 14]]]
    np.testing.assert_allclose(places[True], expected)
    np.testing.assert_allclose(places[False], np.asarray(expected) + 1)


def test_without_alignment_a_side_is_a_pixel_of_the_map_at_least():
    rois = jnp.asarray([[[4.0, 6.0, 4.5, 12.0]]])
    model = Head(RoIAlign(2, spatial_scale=0.5, aligned=False), rois)
    found = locate(model, random_image(), [(0,)], gradient=True)
    np.testing.assert_allclose(found.size, [[3, 1]])
    expected = [[[8.5, 5.5], [8.5, 6.5]], [[11.5, 5.5], [11.5, 6.5]]]
    np.testing.assert_allclose(found.centre[0], expected)
    assert np.abs(found.gradient).max() > 1e-3


def test_a_layer_with_a_branch_for_each_level():
    class Pyramid(nnx.Module):
        def __init__(self):
            self.pool = DeformRoIPoolByLevel(
                *(2, 2), spatial_scale=(1.0, 0.5), hidden_features=0, rngs=nnx.Rngs(0)
            )

        def __call__(self, x):
            levels = jnp.asarray([[0, 1]])
            return self.pool([x, x[:, ::2, ::2]], ROIS, None, levels).mean((2, 3))

    model = Pyramid()
    for branch, offset in zip(model.pool.branches, (1.0, -1.0), strict=True):
        branch.offset_fc3.bias.set_value(jnp.full(8, offset))
    found = locate(model, random_image(), [(0,), (1,)], gradient=True)
    # By a tenth of their RoI's size, down and up.
    np.testing.assert_allclose(found.centre[0, 0, 0], [10 + 2.4, 6 + 1.6], rtol=1e-6)
    np.testing.assert_allclose(found.centre[1, 0, 0], [11 - 1.2, 12 - 1.6], rtol=1e-6)
    assert (np.abs(found.gradient).max((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("pool", "kwargs", "message"),
    [
        (RoIPool(2, spatial_scale=0.5), {}, "finds pool, a RoIPool; expected a Deform"),
        (None, {}, "`layer` is None; expected a DeformRoIPool.* which are none"),
        (
            RoIAlign(2, spatial_scale=0.5),
            dict(layer="roi"),
            "is 'roi'; .* are pool",
        ),
        (RoIAlign(2, spatial_scale=0.5), dict(nodes=[(2,)]), r"`nodes` has \(2,\)"),
    ],
)
def test_bad_input(pool, kwargs, message):
    model = Head(pool or nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    run = call if pool else (lambda m, x: m.pool(x)[:, 0])
    nodes = kwargs.pop("nodes", [(0,)])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda m, x: bin_locations(m, run, x, nodes, **kwargs),
            model,
            random_image(),
        )
