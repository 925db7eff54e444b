"""What must hold for any layer, any boxes: properties over drawn shapes and attributes.

Hypothesis draws shapes, attributes and a seed, numpy the values.
"""

import functools

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.backend import on_cpu
from tests.support.deform_conv import random_case
from tests.support.property_checks import PAIRS, SEEDS, compiled, few, many, same
from xla_ops import deform_conv2d, nms


@st.composite
def layers(draw, *, offset_groups=None, strides=PAIRS, dilation=PAIRS):
    """(arguments, options) of a deform_conv2d whose output is not empty."""
    groups = draw(st.integers(1, 3))
    if offset_groups is None:
        offset_groups = draw(st.integers(1, 3))
    kernel_size = draw(PAIRS)
    strides, dilation = draw(strides), draw(dilation)
    pads = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in "hw")
    output = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    size = tuple(
        max(1, (p - 1) * s + (k - 1) * d + 1 - sum(pad))
        for p, s, k, d, pad in zip(
            output, strides, kernel_size, dilation, pads, strict=True
        )
    )
    output = tuple(
        (n + sum(pad) - (k - 1) * d - 1) // s + 1
        for n, s, k, d, pad in zip(
            size, strides, kernel_size, dilation, pads, strict=True
        )
    )
    arguments = random_case(
        batch=draw(st.integers(1, 3)),
        size=size,
        channels=groups * offset_groups * draw(st.integers(1, 6)),
        features=groups * draw(st.integers(1, 6)),
        kernel_size=kernel_size,
        output=output,
        groups=groups,
        offset_groups=offset_groups,
        modulated=draw(st.booleans()),
        seed=draw(SEEDS),
    )
    options = dict(
        strides=strides,
        padding=pads,
        kernel_dilation=dilation,
        feature_group_count=groups,
    )
    return arguments[:4], options


@few
@given(layers(), SEEDS)
def test_linear_in_x_kernel_and_mask(layer, seed):
    arguments, options = layer
    rng = np.random.default_rng(seed)
    run = compiled(deform_conv2d, **options)
    y = np.asarray(run(*arguments))
    for index in (0, 2, 3):
        if arguments[index] is None:
            continue
        other = rng.normal(size=arguments[index].shape).astype(np.float32)
        second, both = list(arguments), list(arguments)
        second[index] = other
        both[index] = 2 * arguments[index] - other
        same(run(*both), 2 * y - np.asarray(run(*second)), 2e-5)


@few
@given(layers(), SEEDS)
def test_the_gradient_is_the_transpose(layer, seed):
    """<A x, g> = <x, A' g>, for each argument that the output is linear in."""
    arguments, options = layer

    @jax.jit
    def run(arguments, g):
        y, pull_back = jax.vjp(lambda *a: deform_conv2d(*a, **options), *arguments)
        return y, pull_back(g)

    shape = (*arguments[1].shape[:3], arguments[2].shape[-1])
    g = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    y, gradients = run(arguments, g)
    value, scale = np.vdot(y, g), np.abs(y * g).sum()
    for index in (0, 2, 3):
        if arguments[index] is not None:
            product = np.vdot(arguments[index], gradients[index])
            assert abs(product - value) <= 1e-5 * scale


@few
@given(layers(offset_groups=1))
def test_zero_offsets_are_a_convolution(layer):
    (x, offset, kernel, mask), options = layer
    mask = None if mask is None else np.ones_like(mask)
    with on_cpu():
        expected = jax.lax.conv_general_dilated(
            x,
            kernel,
            options["strides"],
            options["padding"],
            rhs_dilation=options["kernel_dilation"],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=options["feature_group_count"],
            precision="highest",
        )
    run = compiled(deform_conv2d, **options)
    same(run(x, np.zeros_like(offset), kernel, mask), expected)


@few
@given(layers(offset_groups=1), st.integers(-3, 3), st.integers(-3, 3))
def test_an_integer_offset_is_a_shifted_map(layer, down, right):
    """Of all samples: the map moves the other way, zeros come in."""
    (x, offset, kernel, mask), options = layer
    still = np.zeros_like(offset)
    moved = still + np.asarray([down, right], np.float32)
    # Padding and map move as one.
    frame = tuple((before + 3, after + 3) for before, after in options["padding"])
    run = functools.partial(deform_conv2d, **options | {"padding": (0, 0)})
    framed = np.pad(x, ((0, 0), *frame, (0, 0)))
    inner = framed[
        :,
        3 + down : framed.shape[1] - 3 + down,
        3 + right : framed.shape[2] - 3 + right,
    ]
    got = deform_conv2d(x, moved, kernel, mask, **options)
    same(got, run(inner, still, kernel, mask))


@few
@given(layers(), SEEDS)
def test_images_and_features_in_another_order(layer, seed):
    arguments, options = layer
    rng = np.random.default_rng(seed)
    run = compiled(deform_conv2d, **options)
    y = np.asarray(run(*arguments))
    x, offset, kernel, mask = arguments
    order = rng.permutation(len(x))
    masked = None if mask is None else mask[order]
    np.testing.assert_array_equal(
        run(x[order], offset[order], kernel, masked), y[order]
    )
    # Only within a group.
    groups = options["feature_group_count"]
    count = kernel.shape[-1] // groups
    order = np.concatenate([g * count + rng.permutation(count) for g in range(groups)])
    np.testing.assert_array_equal(
        run(x, offset, kernel[..., order], mask), y[..., order]
    )


@few
@given(layers(), SEEDS)
def test_taps_in_another_order(layer, seed):
    """A tap's place in the kernel is an offset like any other."""
    (x, offset, kernel, mask), options = layer
    rows, columns, _, _ = kernel.shape
    dilation = options["kernel_dilation"]
    tap = np.arange(rows * columns)
    place = np.stack([tap // columns * dilation[0], tap % columns * dilation[1]], -1)
    order = np.random.default_rng(seed).permutation(rows * columns)
    # Tap t goes to place order[t].
    back = np.argsort(order)
    moved = (offset[..., back, :] + (place[back] - place)).astype(np.float32)
    flat = kernel.reshape(rows * columns, *kernel.shape[2:])
    same(
        deform_conv2d(
            x,
            moved,
            flat[back].reshape(kernel.shape),
            None if mask is None else mask[..., back],
            **options,
        ),
        deform_conv2d(x, offset, kernel, mask, **options),
        2e-5,
    )


@few
@given(layers(offset_groups=1), st.integers(1, 3))
def test_equal_offset_groups_are_one(layer, copies):
    (x, offset, kernel, mask), options = layer
    x = np.repeat(x, copies, axis=3)
    kernel = np.repeat(kernel, copies, axis=2)
    again = np.repeat(offset, copies, axis=3)
    masks = None if mask is None else np.repeat(mask, copies, axis=3)
    same(
        deform_conv2d(x, again, kernel, masks, **options),
        deform_conv2d(x, offset, kernel, mask, **options),
    )


@few
@given(layers())
def test_a_mask_of_ones_is_none_and_of_zeros_mutes(layer):
    (x, offset, kernel, _), options = layer
    ones = np.ones(offset.shape[:-1], np.float32)
    plain = deform_conv2d(x, offset, kernel, **options)
    same(deform_conv2d(x, offset, kernel, ones, **options), plain)
    assert not np.any(deform_conv2d(x, offset, kernel, 0 * ones, **options))


@few
@given(layers())
def test_groups_are_layers_of_their_own(layer):
    """Where the offset groups do not cut a group's channels."""
    (x, offset, kernel, mask), options = layer
    groups = options["feature_group_count"]
    offset, mask = offset[..., :1, :, :], None if mask is None else mask[..., :1, :]
    whole = deform_conv2d(x, offset, kernel, mask, **options)
    alone = options | {"feature_group_count": 1}
    parts = [
        deform_conv2d(part, offset, filters, mask, **alone)
        for part, filters in zip(
            np.split(x, groups, axis=3), np.split(kernel, groups, axis=3), strict=True
        )
    ]
    same(whole, np.concatenate(parts, axis=3))


# nms


@st.composite
def boxes(draw):
    """(boxes, scores without ties, threshold)."""
    count = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(SEEDS))
    corner, size = rng.uniform(0, 20, (count, 2)), rng.uniform(0, 15, (count, 2))
    scores = rng.permutation(count).astype(np.float32)
    both = np.concatenate([corner, corner + size], 1).astype(np.float32)
    return both, scores, draw(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))


def kept(boxes, scores, threshold, **options):
    run = compiled(nms, iou_threshold=threshold, max_outputs=32)
    indices, valid = run(boxes, scores, **options)
    return np.asarray(indices)[np.asarray(valid)]


def overlaps(boxes):
    first, second = boxes[:, None], boxes[None]
    side = np.minimum(first[..., 2:], second[..., 2:])
    side = np.maximum(side - np.maximum(first[..., :2], second[..., :2]), 0)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    overlap = np.prod(side, axis=-1)
    return overlap / np.maximum(area[:, None] + area[None] - overlap, 1e-30)


@many
@given(boxes())
def test_nms_keeps_what_it_must(case):
    """By falling score; no two overlap, and all others overlap a better one."""
    both, scores, threshold = case
    keep = kept(both, scores, threshold)
    assert np.all(np.diff(scores[keep]) < 0)
    assert len(set(keep)) == len(keep)
    iou = overlaps(both.astype(np.float64))
    between = iou[np.ix_(keep, keep)] - np.eye(len(keep))
    assert between.max(initial=0) <= threshold + 1e-6
    for index in set(range(len(both))) - set(keep):
        better = keep[scores[keep] > scores[index]]
        assert iou[index, better].max() >= threshold - 1e-6


@many
@given(boxes(), SEEDS)
def test_nms_again_and_in_another_order(case, seed):
    both, scores, threshold = case
    keep = kept(both, scores, threshold)
    valid = np.zeros(len(both), bool)
    valid[keep] = True
    np.testing.assert_array_equal(kept(both, scores, threshold, valid=valid), keep)
    order = np.random.default_rng(seed).permutation(len(both))
    again = kept(both[order], scores[order], threshold)
    np.testing.assert_array_equal(order[again], keep)


@many
@given(boxes(), st.integers(1, 4), SEEDS)
def test_nms_of_classes_is_nms_of_each(case, classes, seed):
    both, scores, threshold = case
    ids = np.random.default_rng(seed).integers(0, classes, len(both)).astype(np.int32)
    together = set(kept(both, scores, threshold, class_ids=ids))
    apart = [kept(both, scores, threshold, valid=ids == c) for c in range(classes)]
    assert together == set(np.concatenate(apart))
