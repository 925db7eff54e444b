"""What must hold for RoI pooling of any kind, any RoIs.

Hypothesis draws shapes, attributes and a seed, numpy the values.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.property_checks import PAIRS, SEEDS, compiled, few, same
from xla_ops import (
    deform_ps_roi_pool,
    deform_roi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)


@st.composite
def pools(draw):
    """(features, rois, settings); RoIs inside the map."""
    rng = np.random.default_rng(draw(SEEDS))
    height, width = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    batch, channels = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    count = draw(st.integers(1, 6))
    features = rng.normal(size=(batch, height, width, channels)).astype(np.float32)
    corners = rng.uniform(0, 1, (2, batch, count, 2)) * [width, height]
    rois = np.concatenate([corners.min(0), corners.max(0)], -1).astype(np.float32)
    return (
        features,
        rois,
        dict(
            output_size=draw(PAIRS),
            spatial_scale=1.0,
            sampling_ratio=draw(st.integers(0, 3)),
        ),
    )


@few
@given(pools(), SEEDS)
def test_channels_and_rois_in_another_order(case, seed):
    features, rois, options = case
    rng = np.random.default_rng(seed)
    run = compiled(roi_align, **options)
    y = np.asarray(run(features, rois))
    order = rng.permutation(features.shape[-1])
    np.testing.assert_array_equal(run(features[..., order], rois), y[..., order])
    order = rng.permutation(rois.shape[1])
    np.testing.assert_array_equal(run(features, rois[:, order]), y[:, order])


@few
@given(pools(), st.floats(-5, 5))
def test_a_constant_map_pools_to_its_constant(case, value):
    features, rois, options = case
    run = compiled(roi_align, **options)
    y = run(np.full_like(features, value), rois)
    same(y, np.full(y.shape, value, np.float32))
    slope = np.random.default_rng(0).normal(size=2).astype(np.float32)
    # Away from the border a linear map pools to its value at the bin's centre.
    wide = np.pad(features[..., :1], ((0, 0), (2, 2), (2, 2), (0, 0)))
    row, column = np.meshgrid(*map(np.arange, wide.shape[1:3]), indexing="ij")
    plane = (row * slope[0] + column * slope[1]).astype(np.float32)
    plane = np.broadcast_to(plane[None, :, :, None], wide.shape)
    y = run(plane, rois + 2)
    x1, y1, x2, y2 = np.moveaxis(rois + 1.5, -1, 0)[..., None, None]
    h, w = options["output_size"]
    rows = y1 + (y2 - y1) * (np.arange(h)[:, None] + 0.5) / h
    columns = x1 + (x2 - x1) * (np.arange(w) + 0.5) / w
    same(y[..., 0], rows * slope[0] + columns * slope[1], 2e-5)


@few
@given(pools(), st.integers(0, 3), st.integers(0, 3), SEEDS)
def test_pooling_moves_with_the_map(case, down, right, seed):
    """And with `offset`, in units of the RoI's size."""
    features, rois, options = case
    features = np.pad(features, ((0, 0), (4, 4), (4, 4), (0, 0)))
    rois = rois + np.float32(4)
    run = compiled(roi_align, **options)
    y = run(features, rois)
    moved = np.roll(features, (down, right), (1, 2))
    step = np.asarray([right, down] * 2, np.float32)
    same(run(moved, rois + step), y, 2e-5)
    # RoIs of one size, so that an offset of 1 is that many pixels.
    rois[..., 2:] = rois[..., :2] + 2
    offset = np.asarray([down, right], np.float32) / 2
    offset = np.broadcast_to(offset, (*y.shape[:-1], 2))
    got = compiled(deform_roi_pool, offset_scale=1.0, **options)(moved, rois, offset)
    same(got, run(features, rois), 2e-5)


# The other kinds of RoI pooling

AVERAGES = ("deform_ps_roi_pool", "ps_roi_align", "ps_roi_pool")
CALLS = {
    "deform_ps_roi_pool": deform_ps_roi_pool,
    "ps_roi_align": ps_roi_align,
    "ps_roi_pool": ps_roi_pool,
    "roi_pool": roi_pool,
}
each_average = pytest.mark.parametrize("name", AVERAGES)
each_kind = pytest.mark.parametrize("name", CALLS)
handful = settings(few, max_examples=5)


class Pooling(NamedTuple):
    """An operator with arguments; RoIs are 6 pixels inside the map."""

    call: Callable[..., Any]  # (features, rois, **moves), with all settings.
    features: Any
    rois: Any
    moves: dict[str, Any]  # Offset and mask, where there are such.
    channel: Any  # Of the map, which channel d of bin (i, j) reads: [h, w, D].

    def run(self):
        """The jitted operator."""
        return jax.jit(self.call)

    def value_and_gradients(self, cotangent):
        """The result, and the gradients of the features and of `moves`."""

        @jax.jit
        def run(features, moves):
            y, pull_back = jax.vjp(
                lambda x, moves: self.call(x, self.rois, **moves), features, moves
            )
            return y, pull_back(cotangent)

        y, (dx, dmoves) = run(self.features, self.moves)
        return np.asarray(y), np.asarray(dx), dmoves

    def cotangent(self, seed):
        """Numbers of the shape of the result."""
        shape = (*self.rois.shape[:2], *self.channel.shape)
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@st.composite
def poolings(draw, name, sides=(1, 2, 3)):
    """A `Pooling` of one kind, with one of `sides` bins along an axis."""
    rng = np.random.default_rng(draw(SEEDS))
    batch, count, depth = (draw(st.integers(1, n)) for n in (3, 6, 6))
    height, width = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    h, w = draw(st.sampled_from(sides)), draw(st.sampled_from(sides))
    group = draw(st.integers(1, 3))
    moves, options = {}, {}
    if name == "deform_ps_roi_pool":
        parts, classes = draw(PAIRS), draw(st.integers(1, 2))
        depth *= classes
        offset = rng.uniform(-1, 1, (batch, count, *parts, classes, 2))
        moves = {"offset": offset, "mask": rng.uniform(size=(batch, count, h, w))}
        options = dict(
            group_size=group, part_size=parts, samples_per_part=draw(st.integers(1, 4))
        )
    if name == "ps_roi_align":
        options = dict(sampling_ratio=draw(st.integers(0, 3)))
    down, right = {"deform_ps_roi_pool": (group, group), "roi_pool": (1, 1)}.get(
        name, (h, w)
    )
    i, j, d = np.ogrid[:h, :w, :depth]
    channel = (d * down + i * down // h) * right + j * right // w
    size = (batch, height + 12, width + 12, depth * down * right)
    # Sixteenths, so that a RoI elsewhere has the same fractions.
    corners = np.round(rng.uniform(0, 16, (2, batch, count, 2)) * [width, height]) / 16
    first, last = np.sort(corners, axis=0)
    rois = np.concatenate([first + 6, last + 6 + 1 / 16], -1)
    call = functools.partial(
        CALLS[name], output_size=(h, w), spatial_scale=1.0, **options
    )
    return Pooling(
        call,
        rng.normal(size=size).astype(np.float32),
        rois.astype(np.float32),
        {key: value.astype(np.float32) for key, value in moves.items()},
        channel,
    )


@each_average
@handful
@given(st.data())
def test_averages_are_linear_and_their_gradient_the_transpose(name, data):
    case = data.draw(poolings(name))
    g = case.cotangent(0)
    other = np.random.default_rng(1).normal(size=case.features.shape)
    other = other.astype(np.float32)
    y, dx, dmoves = case.value_and_gradients(g)
    run = case.run()
    combined = run(2 * case.features - other, case.rois, **case.moves)
    same(combined, 2 * y - np.asarray(run(other, case.rois, **case.moves)), 2e-5)
    value, scale = np.vdot(y, g), np.abs(y * g).sum()
    assert abs(np.vdot(case.features, dx) - value) <= 1e-5 * scale
    if "mask" in dmoves:
        product = np.vdot(case.moves["mask"], dmoves["mask"])
        assert abs(product - value) <= 1e-5 * scale


@each_kind
@handful
@given(st.data())
def test_constant_channels_pool_to_their_constants(name, data):
    """And what a channel's gradients add up to is what its bins got."""
    case = data.draw(poolings(name))
    g = case.cotangent(0)
    images, *_, channels = case.features.shape
    value = np.random.default_rng(1).normal(size=(images, channels)).astype(np.float32)
    flat = np.broadcast_to(value[:, None, None], case.features.shape)
    y, dx, dmoves = case._replace(features=flat).value_and_gradients(g)
    mask = case.moves.get("mask", np.ones(g.shape[:-1], np.float32))[..., None]
    same(y, mask * value[:, case.channel][:, None])
    got = np.zeros((images, channels))
    np.add.at(got, (slice(None), case.channel), (g * mask).sum(1))
    same(dx.sum((1, 2)), got, 2e-5)
    # Where all is level, no step changes anything.
    if "offset" in dmoves:
        same(dmoves["offset"], np.zeros_like(case.moves["offset"]), 2e-5)


@each_kind
@handful
@given(st.data(), st.integers(-3, 3), st.integers(-3, 3))
def test_other_pooling_moves_with_the_map(name, data, down, right):
    # Halves of bins have exact places.
    case = data.draw(poolings(name, sides=(1, 2)))
    run = case.run()
    moved = np.roll(case.features, (down, right), (1, 2))
    step = np.asarray([right, down] * 2, np.float32)
    y = run(case.features, case.rois, **case.moves)
    same(run(moved, case.rois + step, **case.moves), y, 2e-5)


@each_kind
@handful
@given(st.data(), SEEDS)
def test_other_pooling_in_another_order(name, data, seed):
    """Of images, RoIs, and channels of the result."""
    case = data.draw(poolings(name))
    rng = np.random.default_rng(seed)
    run = case.run()
    y = np.asarray(run(case.features, case.rois, **case.moves))
    images, rois = (rng.permutation(n) for n in y.shape[:2])
    moves = {key: value[images][:, rois] for key, value in case.moves.items()}
    np.testing.assert_array_equal(
        run(case.features[images], case.rois[images][:, rois], **moves),
        y[images][:, rois],
    )
    # Only within a class.
    depth = y.shape[-1]
    classes = case.moves["offset"].shape[4] if "offset" in case.moves else 1
    order = rng.permuted(np.arange(depth).reshape(classes, -1), axis=1).ravel()
    split = case.features.reshape(*case.features.shape[:3], depth, -1)
    again = split[..., order, :].reshape(case.features.shape)
    np.testing.assert_array_equal(run(again, case.rois, **case.moves), y[..., order])


@pytest.mark.parametrize("name", ("deform_ps_roi_pool", "ps_roi_align"))
@handful
@given(st.data())
def test_equal_channel_groups_are_one(name, data):
    """Whose channels the same operator, or `roi_align`, pools without groups."""
    case = data.draw(poolings(name))
    options = case.call.keywords
    if name == "ps_roi_align":
        alone = functools.partial(roi_align, **options)
    else:
        alone = functools.partial(deform_ps_roi_pool, **options | {"group_size": 1})
    depth = case.channel.shape[-1]
    one = case.features[..., :depth]
    copies = np.repeat(one, case.features.shape[-1] // depth, axis=-1)
    y = case.run()(copies, case.rois, **case.moves)
    same(compiled(alone)(one, case.rois, **case.moves), y)


@few
@given(PAIRS, PAIRS, st.integers(1, 20), SEEDS)
def test_bins_of_whole_pixels_have_their_mean_and_maximum(bins, size, depth, seed):
    rng = np.random.default_rng(seed)
    (h, w), (rows, columns) = bins, size
    top, left = rng.integers(0, 4, 2)
    x = rng.normal(size=(1, h * rows + 4, w * columns + 4, depth)).astype(np.float32)
    part = x[0, top : top + h * rows, left : left + w * columns]
    part = part.reshape(h, rows, w, columns, depth)
    end = np.asarray([left + w * columns, top + h * rows])
    rois = np.concatenate([[left, top], end]).astype(np.float32)[None, None]
    options = dict(output_size=bins, spatial_scale=1.0)
    copies = np.repeat(x, h * w, axis=-1)
    # A RoI has its last pixels as corners.
    last = rois - np.asarray([0, 0, 1, 1], np.float32)
    same(compiled(ps_roi_pool, **options)(copies, last)[0, 0], part.mean((1, 3)))
    y = compiled(roi_pool, **options)(x, last)
    np.testing.assert_array_equal(y[0, 0], part.max((1, 3)))


@few
@given(poolings("roi_pool"), SEEDS)
def test_maxima_keep_order(case, seed):
    rng = np.random.default_rng(seed)
    run = case.run()
    x, g = case.features, case.cotangent(seed)
    y, dx, _ = case.value_and_gradients(g)
    other = rng.normal(size=x.shape).astype(np.float32)
    np.testing.assert_array_equal(
        run(np.maximum(x, other), case.rois), np.maximum(y, run(other, case.rois))
    )
    np.testing.assert_array_equal(run(np.exp2(x), case.rois), np.exp2(y))
    # Twice the map has twice the maxima, at the same pixels.
    value, scale = np.vdot(y, g), np.abs(y * g).sum()
    assert abs(np.vdot(x, dx) - value) <= 1e-5 * scale
