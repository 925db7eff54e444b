"""Whole detectors of torchvision, mmdetection and detectron2: what they see and say.

Two images of different size on one canvas, at network size.
"""

import jax
import numpy as np
import pytest

from tests.support.golden_detectors import canvas, golden_detector

# Which pyramid levels, and where the background stands among the classes.
FILES = {
    "faster_rcnn_dc5": (("0",), 0),
    "faster_rcnn_fpn": (("0", "1", "2", "3", "pool"), 0),
    "mask_rcnn_fpn": (("0", "1", "2", "3", "pool"), 0),
    "faster_rcnn_fpn_dcn": (("0", "1", "2", "3", "pool"), 0),
    "mmdet_faster_rcnn_mdconv": (("0", "1", "2", "3", "4"), -1),
    "mmdet_mask_rcnn_dconv": (("0", "1", "2", "3", "4"), -1),
    "detectron2_mask_rcnn_dconv": (("p2", "p3", "p4", "p5", "p6"), -1),
}


# What the others see and say, these do too.
SLOW = ("faster_rcnn_fpn", "mmdet_mask_rcnn_dconv")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in FILES
    ],
)
def case(request, tmp_path_factory):
    """The file's fields, our results, levels, place of the background."""
    fields, model = golden_detector(request.param, tmp_path_factory.mktemp("golden"))
    images, sizes = canvas(fields)

    @jax.jit
    def run(model, images, sizes):
        features = model.features(images, sizes)
        proposed = model.rpn(features)
        proposals = model.rpn.propose(proposed, sizes)
        seen = model.roi(features, proposals.boxes)
        return dict(
            levels=features.levels.rpn,
            proposed=proposed,
            proposals=proposals,
            logits=seen.logits,
            deltas=seen.deltas,
            found=model.predict(images, sizes),
        )

    return fields, run(model, images, sizes), *FILES[request.param]


def close(ours, theirs, tolerance=2e-5):
    """Within a share of the largest magnitude."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(
        np.asarray(ours), theirs, rtol=0, atol=tolerance * np.abs(theirs).max()
    )


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def test_features(case):
    fields, ours, levels, _ = case
    for name, level in zip(levels, ours["levels"], strict=True):
        close(level, nhwc(fields[f"features/{name}"]))


def test_what_the_rpn_says(case):
    fields, ours, levels, _ = case
    proposed = ours["proposed"]
    np.testing.assert_allclose(
        np.concatenate(proposed.anchors), fields["anchors"], atol=1e-4
    )
    for i, name in enumerate(levels):
        logits = nhwc(fields[f"rpn_logits/{name}"]).reshape(2, -1)
        close(proposed.logits[i][..., 0], logits, 5e-5)
        close(
            proposed.deltas[i],
            nhwc(fields[f"rpn_deltas/{name}"]).reshape(2, -1, 4),
            5e-5,
        )


def test_proposals(case):
    fields, ours, _, _ = case
    for i in range(2):
        valid = np.asarray(ours["proposals"].valid[i])
        boxes = np.asarray(ours["proposals"].boxes[i])[valid]
        np.testing.assert_allclose(boxes, fields[f"proposals_{i}_f32"], atol=1e-2)


def test_what_the_box_head_says(case):
    fields, ours, _, background = case
    valid = np.asarray(ours["proposals"].valid)
    logits = np.asarray(ours["logits"])[valid]
    close(
        logits if background == 0 else np.roll(logits, -1, 1),
        fields["class_logits_f32"],
        1e-4,
    )
    deltas = np.asarray(ours["deltas"])[valid].reshape(len(logits), -1)
    theirs = fields["box_regression_f32"]
    close(deltas, theirs[:, 4:] if background == 0 else theirs, 1e-4)


def test_detections(case):
    fields, ours, _, background = case
    found = ours["found"]
    for i in range(2):
        valid = np.asarray(found.valid[i])
        labels = fields[f"detection_labels_{i}"] + (background == -1)
        np.testing.assert_array_equal(np.asarray(found.labels[i])[valid], labels)
        for ours_of, name, tolerance in (
            (found.boxes, "boxes", 1e-2),
            (found.scores, "scores", 1e-4),
            (found.masks, "masks", 1e-3),
        ):
            if ours_of is None:
                assert f"detection_{name}_{i}_f32" not in fields
                continue
            np.testing.assert_allclose(
                np.asarray(ours_of[i])[valid],
                fields[f"detection_{name}_{i}_f32"],
                atol=tolerance,
            )
