"""The mask head: what it predicts, what it should, and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcn_jax.detection import mask_head
from dcn_jax.detection.mask_head import MaskTargets, mask_losses
from tests.support.tiny_detector import tiny_batch, tiny_mask_rcnn, with_masks

crop_masks = jax.jit(mask_head.crop_masks, static_argnames=("size", "aligned"))


def test_a_mask_is_cropped_where_the_roi_lies():
    """A window of 8 x 8 pixels at (10, 20), and RoIs that are whole cells of it."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (8, 8), np.uint8)
    rois = np.float32([[10, 20, 18, 28], [12, 22, 16, 26], [30, 30, 40, 40]])
    cells = crop_masks(
        jnp.broadcast_to(mask, (1, 3, 8, 8)),
        jnp.broadcast_to(jnp.float32([10, 20, 18, 28]), (1, 3, 4)),
        jnp.asarray(rois)[None],
        size=4,
        aligned=True,
    )[0]
    # Two samples a cell and axis would lie between pixels: one lies on each.
    np.testing.assert_allclose(cells[0], mask.reshape(4, 2, 4, 2).mean((1, 3)))
    np.testing.assert_array_equal(cells[1], mask[2:6, 2:6])
    assert not cells[2].any()


def test_a_window_of_another_scale_is_the_same_place():
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 1
    windows, rois = jnp.float32([[[0, 0, 64, 32]]]), jnp.float32([[[16, 8, 48, 24]]])
    cells = crop_masks(
        jnp.asarray(mask)[None, None], windows, rois, size=4, aligned=True
    )
    np.testing.assert_array_equal(cells[0, 0], np.float32([[0, 0, 1, 1]] * 4))


def test_targets_are_of_positive_rois_with_a_mask():
    model = tiny_mask_rcnn()
    batch = with_masks(tiny_batch())
    # The second object of the first image has no mask.
    windows = batch.mask_windows.at[0, 1].set(0)

    @jax.jit
    def run(model, batch):
        targets = model.targets(batch, jax.random.key(0))
        return targets.box, targets.mask

    box, mask = run(model, batch._replace(mask_windows=windows))
    assert mask.masks.shape == (2, 6, 8, 8)
    positive = np.asarray(box.valid & (box.labels > 0))[:, :6]
    expected = positive.copy()
    expected[0] &= np.asarray(box.matched)[0, :6] != 1
    np.testing.assert_array_equal(mask.valid, expected)
    assert expected[0].any() and expected[1].any()
    whole = np.asarray(box.is_ground_truth)[:, :6] & expected
    assert whole.any()
    # A RoI that is the object's box sees the disc in it: no corner, but the middle.
    for seen in np.asarray(mask.masks)[whole]:
        assert seen[3:5, 3:5].all() and not seen[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert not np.asarray(mask.masks)[~expected].any()
    assert not positive[:, 6:].any()


def test_the_loss_is_of_the_class_alone():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(1, 3, 4, 4, 5)), jnp.float32)
    masks = jnp.asarray(rng.integers(0, 2, (1, 3, 4, 4)), jnp.float32)
    labels, valid = jnp.int32([[2, 5, 1]]), jnp.asarray([[True, True, False]])
    targets = MaskTargets(jnp.zeros((1, 3, 4)), labels, valid, masks)
    loss, gradient = jax.value_and_grad(lambda x: mask_losses(x, targets)["mask"])(
        logits
    )
    own = np.stack([logits[0, 0, ..., 1], logits[0, 1, ..., 4]]).astype(np.float64)
    signed = np.where(masks[0, :2] > 0, own, -own)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-signed)).mean(), rtol=1e-6)
    moved = np.argwhere(np.asarray(gradient[0]).any((1, 2)))
    np.testing.assert_array_equal(moved, [[0, 1], [1, 4]])


def test_no_positive_roi_costs_nothing():
    logits = jnp.full((1, 2, 4, 4, 5), jnp.nan)
    nothing = jnp.zeros((1, 2), bool)
    targets = MaskTargets(
        jnp.zeros((1, 2, 4)),
        jnp.zeros((1, 2), jnp.int32),
        nothing,
        jnp.zeros((1, 2, 4, 4)),
    )
    assert mask_losses(logits, targets)["mask"] == 0


def test_a_batch_without_masks_is_named():
    model = tiny_mask_rcnn()
    batch = tiny_batch()
    with pytest.raises(ValueError, match="`batch` has no masks"):
        jax.eval_shape(lambda model: model.losses(batch, jax.random.key(0)), model)
