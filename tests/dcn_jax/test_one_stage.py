"""The class-aware RPN as a detector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.boxes import decode_boxes
from dcn_jax.detection.one_stage import OneStage
from dcn_jax.detection.rpn import RPN
from tests.support.derivatives import EARLY, LATE, Kind, assert_agree, derivatives
from tests.support.tiny_detector import (
    make_class_aware_rpn,
    tiny_batch,
    tiny_class_aware_rpn,
)

KINDS = {
    "offset branch": Kind(
        ("trunk", "backbone", "layer4", 0, "conv2", "offset_conv", "kernel"), EARLY
    ),
    "reduction": Kind(("trunk", "neck", "reduction", "kernel"), EARLY),
    "classes": Kind(("rpn", "classifier", "kernel"), LATE),
    "boxes": Kind(("rpn", "deltas", "kernel"), LATE),
}


@jax.jit
def look(model, images, sizes):
    """Detections, and what the network says of every anchor."""
    output = model.rpn(model.features(images, sizes))
    return model.predict(images, sizes), output


@pytest.mark.slow
def test_the_gradient_agrees_with_finite_differences(x64):
    results, targets = derivatives(
        lambda: make_class_aware_rpn(
            {"deform_blocks": (0, 0, 0, -1)}, param_dtype=jnp.float64
        ),
        tiny_batch(),
        KINDS,
    )
    assert set(np.unique(targets.labels)) == {0, 1, 3}
    for derivative in results.values():
        assert_agree(derivative)


def test_it_learns_classes_from_the_reduced_conv5():
    model = tiny_class_aware_rpn()
    assert model.trunk.neck.rpn_features == model.trunk.neck.roi_features == 8
    assert model.rpn.classifier.kernel.shape == (1, 1, 8, 4 * model.rpn.num_anchors)
    losses = jax.eval_shape(lambda m: m.losses(tiny_batch(), jax.random.key(0)), model)
    assert set(losses) == {"rpn_class", "rpn_box"}
    assert model.frozen_paths == ()


def test_padding_changes_no_detection_and_anchors_are_moved():
    model = tiny_class_aware_rpn({"deform_blocks": (0, 0, 0, -1)})
    batch = tiny_batch(images=2, height=50, width=41)
    exact, output = look(model, batch.images, batch.sizes)
    canvas = jnp.pad(
        batch.images, ((0, 0), (0, 14), (0, 39), (0, 0)), constant_values=200
    )
    padded, _ = look(model, canvas, batch.sizes)
    assert exact.valid.any(1).all()
    np.testing.assert_array_equal(padded.valid, exact.valid)
    np.testing.assert_array_equal(padded.labels, exact.labels)
    np.testing.assert_allclose(padded.scores, exact.scores, atol=1e-4)
    np.testing.assert_allclose(padded.boxes, exact.boxes, atol=1e-3)

    scores = jax.nn.softmax(output.logits[0][0])[:, 1:]
    boxes = np.asarray(decode_boxes(output.deltas[0][0], output.anchors[0]))
    boxes = np.clip(boxes, 0, [41, 50, 41, 50])
    first = jax.tree.map(lambda rows: np.asarray(rows)[0], exact)
    for box, score, label in zip(first.boxes, first.scores, first.labels, strict=True):
        if label:
            same = np.isclose(scores[:, label - 1], score, atol=1e-6)
            assert (same & (np.abs(boxes - box).max(1) < 1e-3)).any()
    assert (np.diff(first.scores) <= 0).all()


def test_one_class_is_told_from_the_background():
    model = tiny_class_aware_rpn(num_classes=1)
    batch = tiny_batch(images=1)
    found, output = look(model, batch.images, batch.sizes)
    assert found.valid.any()
    assert set(np.unique(found.labels[found.valid])) == {1}
    scores = jax.nn.sigmoid(output.logits[0][0])
    for score in np.asarray(found.scores[found.valid]):
        assert np.isclose(scores, score, atol=1e-6).any()


def test_other_strides_are_refused():
    trunk = tiny_class_aware_rpn().trunk
    rpn = RPN(8, (32,), num_classes=3, features=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`rpn` has strides \(32,\); expected those"):
        OneStage(trunk, rpn)
