"""mIoU, against loops over pixels and scikit-learn's numbers."""

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from dcn_jax.images.fit import resize_labels
from dcn_jax.images.geometry import Geometry
from dcn_jax.segmentation.records import LabelMaps
from train.evaluation.segmentation import (
    MeanIoU,
    confusion,
    intersections_over_unions,
)

NAMES = ["background", "cat", "dog", "car", "tree"]
SIZES = ((12, 20), (17, 9), (8, 8))


class Source:
    """Three images with label maps; "tree" occurs in none."""

    def __init__(self, seed=0):
        self.categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
        rng = np.random.default_rng(seed)
        self.maps = {}
        for image_id, size in enumerate(SIZES, start=1):
            labels = rng.integers(0, 4, size).astype(np.uint8)
            labels[rng.random(size) < 0.1] = 255
            self.maps[image_id] = labels

    def label_map(self, image_id):
        return self.maps[image_id]


def on_canvas(labels, size=None, canvas=(40, 40)):
    """A prediction that says `labels` of an image, and geometry; padding is noise."""
    geometry = Geometry.of(labels.shape, size or labels.shape, canvas)
    found = np.random.default_rng(1).integers(0, 4, canvas).astype(np.uint8)
    height, width = geometry.size
    found[:height, :width] = resize_labels(labels, geometry.size)
    return LabelMaps(found), geometry


def noisy(source, seed=3):
    """Predictions that are right for four pixels of five."""
    rng = np.random.default_rng(seed)
    predictions = {}
    for image_id, labels in source.maps.items():
        wrong = rng.integers(0, 4, labels.shape)
        keep = (rng.random(labels.shape) < 0.8) & (labels != 255)
        predictions[image_id] = np.where(keep, labels, wrong).astype(np.uint8)
    return predictions


def by_pixels(pairs):
    """IoU of each class, counted pixel by pixel."""
    ious = []
    for k in range(len(NAMES)):
        both = either = 0
        for truth, found in pairs:
            for t, f in zip(
                truth.ravel().tolist(), found.ravel().tolist(), strict=True
            ):
                if t != 255:
                    both += t == k and f == k
                    either += t == k or f == k
        ious.append(both / either if either else None)
    return ious


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_definition(seed):
    source = Source(seed)
    metric, predictions = MeanIoU(source), noisy(source, seed)
    for image_id, labels in predictions.items():
        metric.update(*_arguments(labels, image_id))
    scores = metric.compute()
    pairs = [(source.maps[i], predictions[i]) for i in predictions]
    expected = by_pixels(pairs)
    assert [scores[f"pixels_per_class/{name}"] for name in NAMES] == expected
    assert expected[4] is None
    known = [iou for iou in expected if iou is not None]
    assert scores["pixels/mIoU"] == pytest.approx(np.mean(known), abs=1e-15)
    # The network saw the images as large as they are.
    assert scores["pixels/mIoU_resized"] == scores["pixels/mIoU"]
    truth = np.concatenate([t.ravel()[t.ravel() != 255] for t, _ in pairs])
    found = np.concatenate([f.ravel()[t.ravel() != 255] for t, f in pairs])
    score = jaccard_score(truth, found, average="macro", labels=range(4))
    assert scores["pixels/mIoU"] == pytest.approx(score, abs=1e-12)
    np.testing.assert_array_equal(
        np.array(metric.state()["original"])[:4, :4],
        confusion_matrix(truth, found, labels=range(4)),
    )


def _arguments(labels, image_id, size=None):
    prediction, geometry = on_canvas(labels, size)
    return prediction, image_id, geometry


def test_perfect_predictions_have_1():
    source = Source()
    metric = MeanIoU(source)
    for image_id, labels in source.maps.items():
        # 255 is nothing that a network says.
        metric.update(*_arguments(np.where(labels == 255, 0, labels), image_id))
    scores = metric.compute()
    assert scores["pixels/mIoU"] == 1.0 and scores["pixels/mIoU_resized"] == 1.0
    per_class = {k: v for k, v in scores.items() if "per_class" in k}
    assert per_class.pop("pixels_per_class/tree") is None
    assert set(per_class.values()) == {1.0}
    record = metric.files()["confusion.json"]
    assert record["names"] == NAMES
    counts = np.array(record["counts"])
    assert counts.sum() == sum((m != 255).sum() for m in source.maps.values())
    np.testing.assert_array_equal(counts, np.diag(np.diag(counts)))
    figure = metric.figures()["confusion.png"]
    np.testing.assert_array_equal(
        figure.axes[0].images[0].get_array(), np.diag([1, 1, 1, 1, 0])
    )


def test_ignored_pixels_and_padding_move_nothing():
    source = Source()
    results = []
    for wrong in (0, 1, 4):
        metric = MeanIoU(source)
        for image_id, labels in noisy(source).items():
            changed = np.where(source.maps[image_id] == 255, wrong, labels)
            prediction, geometry = on_canvas(changed.astype(np.uint8))
            height, width = geometry.size
            prediction.labels[height:] = prediction.labels[:, width:] = wrong
            metric.update(prediction, image_id, geometry)
        results.append(metric.compute())
    assert results[0] == results[1] == results[2]


def test_processes_are_one():
    source = Source()
    predictions = noisy(source)
    whole, *parts = MeanIoU(source), MeanIoU(source), MeanIoU(source)
    for image_id, labels in predictions.items():
        for metric in (whole, parts[image_id % 2]):
            metric.update(*_arguments(labels, image_id))
    states = [json.loads(json.dumps(part.state())) for part in parts]
    for part in parts:
        part.merge(states)
        assert part.state() == whole.state()
        assert part.compute() == whole.compute()


def test_sizes_that_the_network_saw():
    """Predictions are resized to the labels, and labels to the predictions."""
    source = Source()
    labels, found = source.maps[1], noisy(source)[1]
    metric = MeanIoU(source)
    seen = on_canvas(found, (31, 37))
    metric.update(seen[0], 1, seen[1])
    scores = metric.compute()
    shown = seen[0].labels[:31, :37]
    rows = [(2 * r + 1) * 31 // 24 for r in range(12)]
    columns = [(2 * c + 1) * 37 // 40 for c in range(20)]
    back = by_pixels([(labels, shown[rows][:, columns])])
    assert [scores[f"pixels_per_class/{name}"] for name in NAMES] == back
    larger = by_pixels([(resize_labels(labels, (31, 37)), shown)])
    mean = np.mean([iou for iou in larger if iou is not None])
    assert scores["pixels/mIoU_resized"] == pytest.approx(mean, abs=1e-15)
    assert scores["pixels/mIoU_resized"] != scores["pixels/mIoU"]


def test_nothing_is_none():
    assert MeanIoU(Source()).compute()["pixels/mIoU"] is None
    empty = np.full((3, 3), 255, np.uint8)
    counts = confusion(empty, np.zeros((3, 3), np.int32), 5)
    assert intersections_over_unions(counts) == [None] * 5


def test_counts_beyond_32_bits():
    """The pixels of Cityscapes' training set are 6e9."""
    metric = MeanIoU(Source())
    huge = np.full((5, 5), 3 * 2**40).tolist()
    state = {"original": huge, "resized": huge}
    metric.merge([state, state])
    assert metric.state()["original"][0][0] == 6 * 2**40
    assert metric.compute()["pixels/mIoU"] == pytest.approx(1 / 9)
