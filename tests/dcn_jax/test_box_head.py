from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.boxes import levels_of_rois
from dcn_jax.detection import box_head
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.roi_head import pool_rois
from dcn_jax.modules import RoIAlign
from dcn_jax.necks import Levels
from dcn_jax.trunk import Features

# One compilation in place of one for each operation.
box_losses = jax.jit(box_head.box_losses)
box_targets = jax.jit(box_head.box_targets, static_argnums=6)
select_detections = jax.jit(box_head.select_detections, static_argnums=5)

GOLDEN = Path(__file__).parent.parent / "golden" / "detectors" / "faster_rcnn_dc5.npz"


@pytest.fixture(scope="module")
def peer():
    with np.load(GOLDEN) as file:
        return {k: file[k] for k in file.files if not k.startswith("grad/")}


def padded(arrays, length):
    """Stacks arrays of different lengths, and which rows are theirs."""
    rows = [np.pad(a, ((0, length - len(a)), (0, 0))) for a in arrays]
    valid = [np.arange(length) < len(a) for a in arrays]
    return jnp.asarray(np.stack(rows)), jnp.asarray(np.stack(valid))


def test_detections_are_those_of_the_peer(peer):
    rois, valid = padded([peer[f"proposals_{i}_f32"] for i in range(2)], 60)
    logits, _ = padded(np.split(peer["class_logits_f32"], [60]), 60)
    deltas, _ = padded(np.split(peer["box_regression_f32"], [60]), 60)
    detections = select_detections(
        logits,
        deltas.reshape(2, 60, 5, 4)[:, :, 1:],
        rois,
        valid,
        jnp.asarray(peer["image_sizes"].astype(np.int32)),
        DetectionSelection(score_threshold=float(peer["config/box_score_thresh"])),
    )
    for i in range(2):
        n = len(peer[f"detection_boxes_{i}_f32"])
        assert detections.valid[i].sum() == n
        np.testing.assert_array_equal(
            detections.labels[i, :n], peer[f"detection_labels_{i}"]
        )
        for name, atol in (("boxes", 3e-4), ("scores", 3e-6)):
            np.testing.assert_allclose(
                getattr(detections, name)[i, :n],
                peer[f"detection_{name}_{i}_f32"],
                atol=atol,
            )


def test_targets_are_those_of_the_peer(peer):
    boxes, labels = (
        jnp.asarray(np.stack([peer[f"target_{k}_{i}"] for i in range(2)]))
        for k in ("boxes", "labels")
    )
    # The peer's candidates are its proposals and then the ground truth.
    proposals, valid = padded(
        [peer[f"train_proposals_{i}_f32"][:-6] for i in range(2)], 75
    )
    targets = box_targets(
        jax.random.key(0),
        proposals,
        valid,
        boxes,
        labels.astype(jnp.int32),
        jnp.ones((2, 6), bool),
        RoISampling(samples=400),
    )
    for i in range(2):
        rois = np.asarray(targets.rois[i][targets.valid[i]])
        expected = peer[f"train_proposals_{i}_f32"]
        order, order_expected = (np.lexsort(r.T) for r in (rois, expected))
        np.testing.assert_array_equal(rois[order], expected[order_expected])
        np.testing.assert_array_equal(
            targets.labels[i][targets.valid[i]][order],
            peer[f"train_labels_{i}"][order_expected],
        )
        assert targets.is_ground_truth[i].sum() == 6


def tiny_targets(valid=True):
    boxes = jnp.asarray([[[10, 10, 30, 30], [0, 0, 0, 0]]], jnp.float32)
    proposals = jnp.asarray(
        [[[10, 12, 30, 30], [40, 40, 60, 60], [0, 0, 0, 0]]], jnp.float32
    )
    return box_targets(
        jax.random.key(0),
        proposals,
        jnp.asarray([[True, True, False]]) & valid,
        boxes,
        jnp.asarray([[2, 0]], jnp.int32),
        jnp.asarray([[True, False]]) & valid,
        RoISampling(samples=8, positive_fraction=0.5),
    )


def test_class_specific_losses_read_the_column_of_the_class():
    targets = tiny_targets()
    assert targets.valid.sum() == 3 and (targets.labels > 0).sum() == 2
    deltas = jnp.zeros((1, 8, 3, 4)).at[:, :, 1].set(targets.deltas)
    losses = box_losses(jnp.zeros((1, 8, 4)), deltas, targets)
    assert losses["box"] == 0
    np.testing.assert_allclose(losses["class"], np.log(4), rtol=1e-6)
    # One box for all classes has one column.
    losses = box_losses(jnp.zeros((1, 8, 4)), targets.deltas[:, :, None], targets)
    assert losses["box"] == 0


def test_box_loss_is_a_sum_over_positives_by_all_rois():
    targets = tiny_targets()
    # 0.5 from the target in every coordinate: 4 * 0.5^2 / 2 each, two positives.
    losses = box_losses(jnp.zeros((1, 8, 4)), targets.deltas[:, :, None] + 0.5, targets)
    np.testing.assert_allclose(losses["box"], 2 * 0.5 / 3, rtol=1e-6)


def test_nothing_to_learn_from_is_finite():
    targets = tiny_targets(valid=False)
    assert not targets.valid.any()

    def total(logits, deltas):
        return sum(box_losses(logits, deltas, targets).values())

    grads = jax.jit(jax.grad(total, (0, 1)))(
        jnp.zeros((1, 8, 4)), jnp.zeros((1, 8, 3, 4))
    )
    assert all((g == 0).all() for g in grads)


def test_class_agnostic_boxes_serve_all_classes():
    logits = jnp.full((1, 2, 4), -9.0).at[0, 0, 1].set(2).at[0, 0, 3].set(2)
    rois = jnp.asarray([[[10, 10, 30, 30], [10, 10, 30, 30]]], jnp.float32)
    found = select_detections(
        logits,
        jnp.zeros((1, 2, 1, 4)),
        rois,
        jnp.asarray([[True, False]]),
        jnp.asarray([[64, 64]], jnp.int32),
        DetectionSelection(max_detections=5),
    )
    assert found.labels[0].tolist() == [1, 3, 0, 0, 0]
    assert found.valid[0].tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(found.boxes[0, :2], rois[0])


def test_a_candidate_cut_keeps_the_best():
    logits = jax.random.normal(jax.random.key(0), (1, 6, 4)) * 3
    deltas = jnp.zeros((1, 6, 3, 4))
    corner = jnp.arange(6, dtype=jnp.float32) * 20
    rois = jnp.stack([corner, corner, corner + 10, corner + 10], -1)[None]
    sizes = jnp.asarray([[200, 200]], jnp.int32)
    args = logits, deltas, rois, jnp.ones((1, 6), bool), sizes
    whole = select_detections(*args, DetectionSelection(max_detections=4))
    cut = select_detections(*args, DetectionSelection(max_detections=4, candidates=4))
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)


def make_head(**options):
    pool = RoIAlign(2, spatial_scale=0.25)
    settings = dict(strides=(4,), features=5, rngs=nnx.Rngs(0))
    return BoxHead(pool, 3, 3, **settings, **options)


def on_one_map(images, dtype=jnp.float32):
    """Features of images of 24 x 28 pixels, three channels at stride 4."""
    levels = Levels((), (jnp.ones((images, 6, 7, 3), dtype),))
    return Features(jnp.ones((images, 24, 28, 3)), None, levels)


def test_rois_read_the_level_of_their_size():
    """224 pixels and more at stride 16, 112 at 8, and what is smaller at 4."""
    sides = jnp.asarray([2000.0, 224, 223, 112, 111, 56, 5, 0])
    rois = jnp.stack([0 * sides, 0 * sides, sides, sides], -1)[None]
    levels = levels_of_rois(rois, (4, 8, 16))
    assert levels[0].tolist() == [2, 2, 1, 1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"`strides` is \(4, 16\); expected each"):
        levels_of_rois(rois, (4, 16))


def test_a_pyramid_is_pooled_by_level_and_without_padding():
    """A map of each level holds its number; half of the second image is padding."""
    maps = tuple(jnp.full((2, 64 // s, 64 // s, 3), float(s)) for s in (4, 8))
    sizes = jnp.asarray([[64, 64], [64, 32]], jnp.int32)
    features = Features(jnp.ones((2, 64, 64, 3)), sizes, Levels((), maps))
    pool = RoIAlign(1, spatial_scale=(0.25, 0.125))
    rois = jnp.asarray([[[0.0, 0, 20, 20], [0, 0, 224, 224], [34, 0, 60, 60]]] * 2)
    pooled = pool_rois(pool, features, rois, (4, 8))[..., 0, 0, 0]
    np.testing.assert_allclose(pooled[:, 0], 4)
    assert 0 < pooled[0, 1] < 8
    np.testing.assert_allclose(pooled[:, 2], [4, 0], atol=1)
    assert pooled[0, 2] == 4 and pooled[1, 2] < 1


def test_head_shapes_and_reduced_precision():
    rois = jnp.ones((2, 5, 4))
    seen = make_head(dtype=jnp.bfloat16)(on_one_map(2, jnp.bfloat16), rois)
    assert seen.logits.shape == (2, 5, 4) and seen.deltas.shape == (2, 5, 3, 4)
    assert seen.representation.shape == (2, 5, 5)
    assert seen.logits.dtype == jnp.bfloat16
    agnostic = make_head(class_agnostic=True)(on_one_map(2), rois)
    assert agnostic.deltas.shape == (2, 5, 1, 4)


@pytest.mark.parametrize("class_agnostic", [True, False])
@pytest.mark.parametrize(("images", "rois"), [(2, 0), (0, 3), (0, 0)])
def test_no_rois_or_no_images(images, rois, class_agnostic):
    head = make_head(class_agnostic=class_agnostic)
    seen = head(on_one_map(images), jnp.ones((images, rois, 4)))
    logits, deltas = seen.logits, seen.deltas
    assert logits.shape == (images, rois, 4)
    assert deltas.shape == (images, rois, 1 if class_agnostic else 3, 4)
    boxes, valid = jnp.ones((images, rois, 4)), jnp.ones((images, rois), bool)
    labels = jnp.zeros((images, rois), jnp.int32)
    targets = box_head.BoxTargets(boxes, labels, valid, boxes, valid, labels)
    assert all(v == 0 for v in box_losses(logits, deltas, targets).values())
    detections = select_detections(
        logits,
        deltas,
        boxes,
        valid,
        jnp.ones((images, 2), jnp.int32),
        DetectionSelection(max_detections=5),
    )
    assert detections.boxes.shape == (images, 5, 4)
    assert not detections.valid.any()
