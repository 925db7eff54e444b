"""Effective dilation, against its definition and a plain loop over filters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain import GROUPS, Moments, effective_dilation, merge
from dcn_jax.explain.effective_dilation import filter_dilation, object_groups
from dcn_jax.explain.moments import moments_of_groups
from dcn_jax.modules.deform_conv import DeformConv
from xla_ops import sampling_positions

SMALL, MEDIUM, LARGE, BACKGROUND = range(4)


def positions(offset, dilation=1, kernel_size=(3, 3)):
    return sampling_positions(
        jnp.asarray(offset),
        input_size=offset.shape[1:3],
        kernel_size=kernel_size,
        kernel_dilation=dilation,
    )


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_without_offsets_it_is_the_dilation(dilation):
    position = positions(np.zeros((2, 4, 5, 2, 9, 2), np.float32), dilation)
    found = jax.jit(filter_dilation, static_argnums=1)(position, (3, 3))
    np.testing.assert_array_equal(found, np.full((2, 4, 5), dilation))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_it_grows_with_taps_that_spread_about_the_centre(scale):
    taps = np.moveaxis(np.mgrid[-2:3:2, -2:3:2], 0, -1).reshape(9, 2).astype(np.float32)
    offset = np.broadcast_to((scale - 1) * taps, (1, 3, 3, 1, 9, 2))
    found = filter_dilation(positions(offset, dilation=2), (3, 3))
    np.testing.assert_allclose(found, 2 * scale, rtol=1e-6)


@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 3), (2, 4)])
def test_it_is_the_mean_over_neighbours_and_groups(x64, kernel_size):
    rows, columns = kernel_size
    rng = np.random.default_rng(0)
    position = rng.normal(size=(2, 3, 2, 2, rows * columns, 2))
    expected = np.zeros((2, 3, 2))
    for index in np.ndindex(2, 3, 2):
        taps = position[index].reshape(2, rows, columns, 2)
        total, pairs = 0.0, 0
        for group, r, c in np.ndindex(2, rows, columns):
            for down, right in ((1, 0), (0, 1)):
                if r + down < rows and c + right < columns:
                    a, b = taps[group, r, c], taps[group, r + down, c + right]
                    total, pairs = total + np.hypot(*(a - b)), pairs + 1
        assert pairs == 24 or kernel_size != (3, 3)
        expected[index] = total / pairs
    found = filter_dilation(jnp.asarray(position), kernel_size)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def groups_at(points, boxes, areas=None, valid=None, size=(100, 100), bounds=(32, 96)):
    """Groups of filters centred at (y, x) in one image."""
    boxes = np.asarray(boxes, np.float32).reshape(1, -1, 4)
    if areas is None:
        areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    if valid is None:
        valid = np.ones(boxes.shape[:2], bool)
    found = jax.jit(object_groups, static_argnames="bounds")(
        jnp.asarray(points, jnp.float32)[None],
        jnp.asarray([size], jnp.int32),
        jnp.asarray(boxes),
        jnp.asarray(areas, jnp.float32).reshape(1, -1),
        jnp.asarray(valid).reshape(1, -1),
        bounds=bounds,
    )
    return found[0, 0].tolist()


def test_the_area_of_the_box_decides_about_the_size():
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]
    points = [(5, 5 + 20 * i) for i in range(5)]
    # Below, at and above the bounds.
    areas = [1023, 1024, 9215, 9216]
    expected = [SMALL, MEDIUM, MEDIUM, LARGE, BACKGROUND]
    assert groups_at(points, boxes, areas) == expected
    expected = [LARGE, LARGE, LARGE, LARGE, BACKGROUND]
    assert groups_at(points, boxes, areas, bounds=(2, 30)) == expected
    assert groups_at(points, []) == [BACKGROUND] * 5


def test_the_smallest_object_takes_what_several_hold():
    boxes = [[0, 0, 100, 100], [10, 10, 60, 60], [20, 20, 30, 30]]
    points = [(5, 5), (15, 15), (25, 25), (25, 45)]
    assert groups_at(points, boxes) == [LARGE, MEDIUM, SMALL, MEDIUM]
    assert groups_at(points, boxes[::-1]) == [LARGE, MEDIUM, SMALL, MEDIUM]
    found = groups_at(points, boxes, valid=[True, True, False])
    assert found == [LARGE, MEDIUM, MEDIUM, MEDIUM]


def test_a_box_holds_the_pixels_that_it_covers():
    box = [[10, 20, 20, 40]]
    points = [(20, 10), (19, 10), (20, 9), (39, 19), (40, 19), (39, 20)]
    assert groups_at(points, box) == [0, 3, 3, 0, 3, 3]
    # Half of a pixel: up to its middle.
    assert groups_at([(20, 10), (20, 19)], [[10.5, 20, 19.5, 40]]) == [0, 3]


def test_padding_belongs_to_nobody():
    box = [[0, 0, 50, 50]]
    points = [(0, 0), (29, 39), (30, 39), (29, 40), (-1, 0)]
    assert groups_at(points, box, size=(30, 40)) == [MEDIUM, MEDIUM, -1, -1, -1]
    assert groups_at(points, box, size=(0, 0)) == [-1] * 5


def with_offsets(layer, taps):
    """A layer whose taps all move by `taps`, [R*S, 2]."""
    bias = np.broadcast_to(np.asarray(taps, np.float32), (layer.kernel.size, 2))
    layer.offset_conv.bias.set_value(jnp.asarray(bias.ravel()))
    return layer


def make_layer(**arguments):
    arguments = {"kernel_size": 3, "modulated": False, "rngs": nnx.Rngs(0), **arguments}
    return DeformConv(1, 1, **arguments)


def measured(model, x, canvas, boxes, **fields):
    """Moments by layer of images that fill their canvas, with the same boxes."""
    n, boxes = len(x), np.asarray(boxes, np.float32).reshape(-1, 4)
    boxes = np.broadcast_to(boxes, (n, *boxes.shape))
    truth = {
        "sizes": np.full((n, 2), canvas, np.int32),
        "boxes": boxes,
        "areas": (boxes[..., 2:] - boxes[..., :2]).prod(-1),
        "valid": np.ones(boxes.shape[:2], bool),
        **fields,
    }
    truth = jax.tree.map(jnp.asarray, truth)

    @jax.jit
    def measure(model, x, truth):
        return effective_dilation(
            model, lambda m: m(x), canvas=canvas, bounds=(32, 96), **truth
        )

    return measure(model, x, truth)


def counts(moments: Moments) -> list[int]:
    return [int(count) for count in moments.count]


STRIDED = [
    # (arguments, centre in pixels of the image of output (p, q) on a map of stride 8)
    ({"strides": 2, "padding": 1}, lambda p: 16 * p),
    ({"strides": 2, "padding": 2, "kernel_dilation": 2}, lambda p: 16 * p),
    # One row and column of padding, at the end.
    ({"strides": 2, "padding": "SAME"}, lambda p: 16 * p + 8),
    ({"strides": 1, "padding": 3, "kernel_dilation": 3}, lambda p: 8 * p),
    # An even kernel is centred between two pixels of its map.
    ({"kernel_size": 2, "padding": ((0, 1), (0, 1))}, lambda p: 8 * p + 4),
]


@pytest.mark.parametrize(("arguments", "centre"), STRIDED)
def test_the_centre_of_a_filter(arguments, centre):
    canvas = (64, 96)
    x = jnp.ones((1, 8, 12, 1))
    layer = make_layer(**arguments)
    shape = layer(x).shape[1:3]
    for p, q in itertools.product((0, shape[0] - 1), (0, 2)):
        y, x1 = centre(p), centre(q)
        found = measured(layer, x, canvas, [x1, y, x1 + 1, y + 1])[""]
        dilation = arguments.get("kernel_dilation", 1)
        assert counts(found) == [1, 0, 0, shape[0] * shape[1] - 1]
        for group in (SMALL, BACKGROUND):
            assert float(found.mean[group]) == pytest.approx(dilation, rel=1e-6)
            assert float(found.deviation[group]) == pytest.approx(0, abs=1e-6)


def test_a_canvas_that_strides_do_not_divide():
    # 100 pixels are 13 at stride 8 and 7 at stride 16, rounded up.
    layer = make_layer(strides=2, padding=1)
    found = measured(layer, jnp.ones((1, 13, 13, 1)), (100, 100), [90, 90, 100, 100])
    assert counts(found[""]) == [1, 0, 0, 48]
    with pytest.raises(ValueError, match="has 6 outputs along a side of 100 pixels"):
        measured(layer, jnp.ones((1, 12, 12, 1)), (100, 100), [])


def test_offsets_and_images_that_count_for_nothing():
    layer = make_layer(padding=1)
    x = jnp.ones((2, 4, 4, 1))
    # Rows of taps twice as far apart as columns.
    taps = [(dy, 0) for dy in (-1, 0, 1) for _ in range(3)]
    with_offsets(layer, taps)
    sizes = np.asarray([[0, 0], [20, 32]], np.int32)
    found = measured(layer, x, (32, 32), [0, 0, 32, 8], sizes=sizes)[""]
    # Of the second image three rows of four filters lie in the image.
    assert counts(found) == [4, 0, 0, 8]
    np.testing.assert_allclose(found.mean[jnp.asarray([0, 3])], 1.5, rtol=1e-6)


def test_layers_have_their_names_and_one_tap_has_no_dilation():
    plain = nnx.Conv(1, 1, (1, 1), rngs=nnx.Rngs(0))

    class Model(nnx.Module):
        def __init__(self):
            self.blocks = nnx.List([make_layer(padding=1), plain])
            self.twice = make_layer(padding=2, kernel_dilation=2)
            self.point = make_layer(kernel_size=1)

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return self.point(self.twice(self.twice(x)))

    found = measured(Model(), jnp.ones((1, 4, 4, 1)), (16, 16), [])
    assert {name: counts(m) for name, m in found.items()} == {
        "blocks.0": [0, 0, 0, 16],
        "twice": [0, 0, 0, 32],
    }
    assert found["twice"].mean[BACKGROUND] == 2
    assert measured(plain, jnp.ones((1, 4, 4, 1)), (16, 16), []) == {}


def test_scanned_layers_are_told_apart():
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def stack(rngs):
        return make_layer(padding=1, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self):
            self.stack = stack(nnx.Rngs(0))
            self.last = make_layer(padding=1)

        def __call__(self, x):
            run = nnx.scan(
                lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
            )
            return self.last(run(x, self.stack))

    model = Model()
    taps = np.moveaxis(np.mgrid[-1:2, -1:2], 0, -1).reshape(1, 18)
    bias = np.concatenate([taps, 3 * taps]).astype(np.float32)
    branch = model.stack.offset_conv
    assert branch.bias is not None
    branch.bias.set_value(jnp.asarray(bias))
    found = measured(model, jnp.ones((1, 4, 4, 1)), (16, 16), [0, 0, 16, 16])
    means = {name: float(moments.mean[SMALL]) for name, moments in found.items()}
    assert means == {"stack[0]": 2, "stack[1]": 4, "last": 1}
    assert all(counts(moments) == [16, 0, 0, 0] for moments in found.values())


def test_batches_add_up_to_one():
    rng = np.random.default_rng(0)
    layer = make_layer(padding=1, offset_groups=1)
    kernel = rng.normal(size=layer.offset_conv.kernel.shape).astype(np.float32)
    layer.offset_conv.kernel.set_value(jnp.asarray(kernel))
    x = jnp.asarray(rng.normal(size=(6, 8, 8, 1)).astype(np.float32))
    boxes = [[0, 0, 30, 30], [20, 20, 60, 60], [40, 0, 128, 128]]
    whole = measured(layer, x, (128, 128), boxes)[""]
    parts = [measured(layer, x[i : i + 2], (128, 128), boxes)[""] for i in (0, 2, 4)]
    stacked = jax.tree.map(lambda *f: np.stack(f).astype(np.float64), *parts)
    merged = merge(stacked)
    assert min(counts(whole)) > 0
    for name in Moments._fields:
        a, b = getattr(merged, name), getattr(whole, name)
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)
    assert (merged.deviation > 0.1).all()


def test_moments_are_those_of_numpy():
    rng = np.random.default_rng(0)
    # A deviation that a float32 sum of squares would lose.
    values = (1000 + 0.01 * rng.normal(size=(4, 5, 6))).astype(np.float32)
    group = rng.integers(-1, 3, values.shape).astype(np.int32)
    found = moments_of_groups(jnp.asarray(values), jnp.asarray(group), len(GROUPS))
    for i in range(3):
        own = values[group == i].astype(np.float64)
        assert found.count[i] == len(own)
        np.testing.assert_allclose(found.mean[i], own.mean(), rtol=1e-6)
        np.testing.assert_allclose(found.deviation[i], own.std(), rtol=0.01)
    assert (found.count[3], found.mean[3], found.deviation[3]) == (0, 0, 0)


def test_an_offset_that_is_no_number_shows_in_its_group_alone():
    values = jnp.asarray([1.0, jnp.nan, 3.0])
    found = moments_of_groups(values, jnp.asarray([0, 1, 0]), 2)
    np.testing.assert_array_equal(found.mean, [2, np.nan])
