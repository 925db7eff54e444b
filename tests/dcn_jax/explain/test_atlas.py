"""A grid of nodes in batches, against the functions that explain single nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax import modules
from dcn_jax.explain import (
    area_side,
    effective_receptive_field,
    node_atlas,
    sampling_locations,
    square_side,
)


class Three(nnx.Module):
    """A regular layer and two deformable ones, two of them with strides."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(2, 4, (3, 3), strides=2, padding=1, rngs=rngs)
        self.deform = modules.DeformConv(4, 4, 3, rngs=rngs)
        self.last = modules.DeformConv(4, 3, 3, strides=2, rngs=rngs)
        for layer in (self.deform, self.last):
            kernel = layer.offset_conv.kernel
            kernel[...] = jax.random.normal(rngs.params(), kernel.shape) / 4

    def __call__(self, x):
        return self.last(nnx.relu(self.deform(nnx.relu(self.first(x)))))


MODEL = Three()
IMAGE = jnp.asarray(np.random.default_rng(0).standard_normal((20, 28, 2), np.float32))


def call(model, x):
    return model(x)


def test_batches_say_what_single_nodes_do():
    told = []
    found = node_atlas(
        *(MODEL, call, IMAGE),
        layers=3,
        gradient=True,
        batch_size=8,
        report=lambda done, of: told.append((done, of)),
    )
    # A map of 5 x 7 at stride 4: five batches, the last of which is not full.
    assert (found.map_size, found.stride, found.size) == ((5, 7), 4, (20, 28))
    assert found.nodes.tolist() == [[y, x] for y in range(5) for x in range(7)]
    assert told == [(8, 35), (16, 35), (24, 35), (32, 35), (35, 35)]
    names = ("last", "deform", "first")
    stacks = [names[:1], names[:2], names[:3], ("deform",)]
    assert [points.layers for points in found.points] == stacks

    @jax.jit
    def direct(model, image, nodes):
        points = [
            sampling_locations(model, call, image, nodes, layers=s, gradient=True)
            for s in stacks
        ]
        strengths = [p.strength for p in points]
        field = effective_receptive_field(model, call, image, nodes)
        return points, strengths, field.strength

    chosen = [0, 17, 34]
    points, strengths, field = direct(MODEL, IMAGE, found.nodes[chosen])
    # The input of "last" and "deform" is half, that of "first" the whole image.
    for got, want, strength, stride in zip(
        found.points, points, strengths, (2, 2, 1, 2), strict=True
    ):
        assert got.count == want.position.shape[1]
        np.testing.assert_allclose(
            got.position[chosen], stride * want.position, atol=1e-4
        )
        np.testing.assert_allclose(got.strength[chosen], strength, atol=1e-5)
        np.testing.assert_array_equal(got.inside[chosen], want.inside)
        np.testing.assert_array_equal(got.outside[chosen], (~want.inside).sum(1))
    assert found.points[2].outside.any()
    # Cells of images up to 64 pixels are pixels.
    assert found.cell == 1
    np.testing.assert_allclose(found.field[chosen], field, atol=1e-5)
    np.testing.assert_allclose(found.area_side[chosen], area_side(field), rtol=1e-6)
    for k, node in enumerate(chosen):
        pixel = tuple((4 * found.nodes[node]).tolist())
        side = square_side(field[k], pixel)
        np.testing.assert_allclose(found.square_side[node], side)


def test_a_large_padded_image_has_a_coarser_grid_and_cells():
    image = jnp.asarray(
        np.random.default_rng(0).standard_normal((96, 144, 2), np.float32)
    )
    found = node_atlas(
        *(MODEL, call, image), size=(90, 130), layers=["last"], most_nodes=40
    )
    # 23 x 33 positions are no padding: every fifth of them.
    assert found.map_size == (24, 36)
    assert sorted({y for y, _ in found.nodes.tolist()}) == [2, 7, 12, 17, 22]
    assert sorted({x for _, x in found.nodes.tolist()}) == [2, 7, 12, 17, 22, 27, 32]
    assert [points.layers for points in found.points] == [("last",), ("deform",)]
    weights = sampling_locations(
        MODEL, call, image, found.nodes[[9]], layers=["last"]
    ).weight
    np.testing.assert_allclose(found.points[0].strength[9], weights[0], rtol=1e-4)
    points = found.points[0]
    beyond = (points.position > (89, 129)).any(-1)
    assert (beyond & (points.position <= (95, 143)).all(-1)).any()
    assert not points.inside[beyond].any()
    assert (points.outside >= beyond.sum(1)).all()
    full = effective_receptive_field(MODEL, call, image, found.nodes[[9]]).strength
    cells = np.asarray(full[0, :90, :130])
    assert found.cell == 3 and found.field.shape == (35, 30, 44)
    # The last column of cells is one pixel wide.
    mean = np.mean(cells[:, :129].reshape(30, 3, 43, 3), (1, 3))
    edge = np.mean(cells[:, 129].reshape(30, 3), 1)
    np.testing.assert_allclose(found.field[9, :, :43], mean, atol=1e-5)
    np.testing.assert_allclose(found.field[9, :, 43], edge, atol=1e-5)


class ManyGroups(nnx.Module):
    """Two layers that read 36 points each."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        layers = [modules.DeformConv(4, 4, 3, offset_groups=4, rngs=rngs) for _ in "12"]
        self.layers = nnx.List(layers)

    def __call__(self, x):
        return self.layers[1](self.layers[0](x))


def test_of_many_points_the_strongest_are_kept():
    model, image = ManyGroups(), jnp.ones((6, 6, 4))
    atlas = node_atlas(model, call, image, layers=2, most_nodes=1)
    assert atlas.nodes.tolist() == [[2, 2]]
    found = atlas.points[1]
    assert found.count == 36 * 36 and found.strength.shape == (1, 1024)
    every = sampling_locations(model, call, image, atlas.nodes, layers=2)
    order = np.sort(every.weight[0])[::-1]
    np.testing.assert_allclose(found.strength[0], order[:1024], rtol=1e-5)
    assert found.outside == [(~every.inside).sum()]
    places = {(y, x) for y, x in np.asarray(every.position[0]).tolist()}
    assert {(y, x) for y, x in found.position[0].tolist()} <= places


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"size": (21, 28)}, r"`size` is \(21, 28\); .* at most \(20, 28\)"),
        ({"size": (0, 28)}, "`size`"),
        ({"most_nodes": 0}, "`most_nodes`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"layers": 4}, "`layers` is 4"),
    ],
)
def test_what_is_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        node_atlas(MODEL, call, IMAGE, **arguments)


def test_a_pass_that_returns_no_map_is_refused():
    with pytest.raises(ValueError, match=r"`call` returns .* \(1, 35, 3\)"):
        node_atlas(MODEL, lambda m, x: m(x).reshape(1, 35, 3), IMAGE)
