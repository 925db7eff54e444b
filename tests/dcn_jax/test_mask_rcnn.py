"""Mask R-CNN on a feature pyramid, as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.boxes import level_of_square, levels_of_rois
from dcn_jax.detection.mimic import crop_patches
from dcn_jax.modules import RoIAlign, RoIPool
from tests.support.tiny_detector import (
    make_mask_rcnn,
    tiny_batch,
    tiny_mask_rcnn,
    with_masks,
)

LOSSES = {"rpn_class", "rpn_box", "class", "box", "mask"}


def step(model, batch):
    """Losses, and the gradient of their sum."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params, batch):
        def total(params):
            losses = nnx.merge(graph, params, rest).losses(batch, jax.random.key(0))
            return sum(losses.values()), losses

        gradient, losses = jax.grad(total, has_aux=True)(params)
        return losses, gradient

    return run(params, batch)


@pytest.mark.slow
def test_everything_learns():
    model = tiny_mask_rcnn({"deform_blocks": (0, -1, -1, -1)}, mimic={})
    losses, gradient = step(model, with_masks(tiny_batch(images=3)))
    assert set(losses) == LOSSES | {"mimic_class", "mimic_cos"}
    assert all(np.isfinite(v) and v > 0 for v in losses.values())
    still = []
    for path, leaf in nnx.to_flat_state(gradient):
        assert np.isfinite(leaf[...]).all(), path
        if not np.asarray(leaf[...]).any():
            still.append(".".join(map(str, path)))
    # What lies before a branch's last layer, which is zero, does not move yet; nor does
    # P5, of whose few anchors none is sampled.
    untouched = (".pool.fc", "neck.output.3.")
    assert [name for name in still if not any(part in name for part in untouched)] == []


@pytest.mark.parametrize(
    "layer", [RoIAlign, pytest.param(RoIPool, marks=pytest.mark.slow)]
)
def test_a_batch_without_objects_has_finite_gradients(layer):
    model = tiny_mask_rcnn(pool_layer=layer)
    batch = with_masks(tiny_batch())
    batch = batch._replace(
        valid=jnp.zeros_like(batch.valid), sizes=batch.sizes.at[1].set(0)
    )
    losses, gradient = step(model, batch)
    assert losses["mask"] == losses["box"] == 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_padding_and_batch_mates_change_no_detection():
    model = tiny_mask_rcnn({"deform_blocks": (0, 0, 0, -1)})
    for bias in (
        model.trunk.backbone.layer4[0].conv2.offset_conv.bias,
        model.roi.pool.offset_fc.bias,
        model.mask.pool.offset_fc.bias,
    ):
        bias[...] = jax.random.normal(jax.random.key(1), bias.shape)
    detect = jax.jit(lambda model, images, sizes: model.predict(images, sizes))
    batch = tiny_batch(images=2, height=70, width=53)
    canvas = jnp.pad(
        batch.images, ((0, 0), (0, 26), (0, 43), (0, 0)), constant_values=200
    )
    padded = detect(model, canvas, batch.sizes)
    assert padded.masks.shape == (2, 10, 8, 8) and padded.masks.dtype == jnp.float32
    for i in range(2):
        alone = detect(model, batch.images[i : i + 1], batch.sizes[i : i + 1])
        found = jax.tree.map(lambda rows, i=i: rows[i : i + 1], padded)
        assert alone.valid.any()
        np.testing.assert_array_equal(found.valid, alone.valid)
        np.testing.assert_array_equal(found.labels, alone.labels)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(found.masks, alone.masks, atol=1e-4)
    masks = np.asarray(padded.masks)[np.asarray(padded.valid)]
    assert masks.min() >= 0 and masks.max() <= 1
    assert not np.asarray(padded.masks)[~np.asarray(padded.valid)].any()


def test_rois_read_the_level_of_their_size():
    sides = jnp.asarray([[10.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 2000.0, 0.0]])
    rois = jnp.stack([sides * 0, sides * 0, sides, sides], -1)
    strides = (4, 8, 16, 32)
    found = levels_of_rois(rois, strides)
    np.testing.assert_array_equal(found[0], [0, 0, 1, 1, 2, 2, 3, 3, 0])
    # mmdetection counts from the finest level: 56 pixels are the end of P2.
    halved = levels_of_rois(rois / 4, strides, 56.0)
    np.testing.assert_array_equal(halved, found)


@pytest.mark.parametrize("side", [1, 55, 56, 112, 223, 224, 448, 5000])
def test_the_level_of_a_crop_is_that_of_its_roi(side):
    """224 pixels are P4, as everywhere."""
    whole = jnp.asarray([[[0.0, 0.0, side, side]]])
    strides = (4, 8, 16, 32)
    assert level_of_square(side, strides) == levels_of_rois(whole, strides)
    assert level_of_square(224, strides) == 2


def test_only_the_level_of_a_crop_is_made():
    model = tiny_mask_rcnn(mimic={}, neck={"features": 5})
    batch = tiny_batch(images=1)
    rois = batch.boxes[:, :2]

    @jax.jit
    def both(model):
        features = model.features(batch.images, batch.sizes)
        crops = model.mimic.represent_crops(model.trunk, model.roi, features, rois)
        size = model.mimic.crop_size
        patches = crop_patches(features.images, rois, batch.sizes, crop_size=size)
        alone = model.trunk.levels_of(patches[0], None)
        whole = jnp.broadcast_to(jnp.float32([0, 0, size, size]), (2, 1, 4))
        return crops[0], model.roi.represent(alone, whole)[:, 0]

    np.testing.assert_allclose(*both(model), rtol=1e-5, atol=1e-6)
    convolutions = jax.jit(
        lambda m: m.mimic.represent_crops(
            m.trunk, m.roi, m.features(batch.images, batch.sizes), rois
        )
    )
    text = convolutions.lower(model).compile().as_text()
    # Of the two crops P3, which 32 pixels read here, has 4 x 4 pixels; P2 has 8 x 8.
    assert "f32[2,4,4,5]" in text and "f32[2,8,8,5]" not in text


def test_the_heads_share_no_weights():
    model = nnx.eval_shape(lambda: make_mask_rcnn({"deform_blocks": (0, 0, 0, -1)}))
    names = {
        ".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))
    }
    for name in ("roi.pool.offset_fc.kernel", "mask.pool.offset_fc.kernel"):
        assert name in names


def test_convolutions_may_see_the_padding():
    """As in torchvision: then the canvas has a say."""
    batch = tiny_batch(images=1, height=70, width=53)
    canvas = jnp.pad(batch.images, ((0, 0), (0, 26), (0, 43), (0, 0)))

    def levels(clear):
        model = tiny_mask_rcnn(trunk=dict(clear_padding=clear))
        for conv in model.trunk.neck.output:
            conv.bias[...] = jnp.ones(conv.bias.shape)
        return jax.jit(lambda m: m.features(canvas, batch.sizes).levels.rpn[0])(model)

    assert not levels(True)[:, 18:].any()
    assert levels(False)[:, 18:].any()
