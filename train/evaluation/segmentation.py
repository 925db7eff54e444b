"""Mean intersection over union of label maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dcn_jax.categories import categories_of
from dcn_jax.images.fit import resize_labels
from dcn_jax.images.geometry import Geometry
from dcn_jax.inference.label_map import ImageLabels
from dcn_jax.segmentation.records import LabelMaps
from train.data import label_maps


class MeanIoU:
    """mIoU over a split, with one confusion matrix for all of its images.

    "pixels/mIoU" is in the pixels of the original images, as Cityscapes judges, and
    "pixels/mIoU_resized" in those that the network saw, to which the labels are
    resized: so does the first paper's code with VOC. Labels of `IGNORE` count in
    neither. "pixels_per_class/NAME" has the IoU of each category, as in the first, of
    which confusion.json and .png show the matrix.

    Args:
      source: The split, with `categories` and `label_map`.
    """

    def __init__(self, source: Any):
        self._source = source
        self._categories = categories_of(source.categories)
        self._names = [category.name for category in self._categories]
        shape = (len(self._names), len(self._names))
        # Pixels by their label and what was predicted.
        self._original = np.zeros(shape, np.int64)
        self._resized = np.zeros(shape, np.int64)

    def update(self, prediction: LabelMaps, image_id: int, geometry: Geometry) -> None:
        """Takes note of the labels of an image's canvas."""
        truth = self._source.label_map(image_id)
        found = ImageLabels.of(prediction, geometry, self._categories).labels
        self._original += confusion(truth, found, len(self._names))
        height, width = geometry.shown
        self._resized += confusion(
            resize_labels(truth, geometry.size),
            np.asarray(prediction.labels)[:height, :width],
            len(self._names),
        )

    def state(self) -> dict[str, list[list[int]]]:
        """Returns the confusion matrices."""
        return {
            "original": self._original.tolist(),
            "resized": self._resized.tolist(),
        }

    def merge(self, states: Sequence[dict[str, list[list[int]]]]) -> None:
        """Takes the sums over all processes for its own."""
        self._original, self._resized = (
            np.sum([np.array(state[key], np.int64) for state in states], axis=0)
            for key in ("original", "resized")
        )

    def compute(self) -> dict[str, float | None]:
        """Returns the means, and the IoU of each category."""
        ious = intersections_over_unions(self._original)
        scores = {
            "pixels/mIoU": _mean(ious),
            "pixels/mIoU_resized": _mean(intersections_over_unions(self._resized)),
        }
        per_class = zip(self._names, ious, strict=True)
        return scores | {f"pixels_per_class/{name}": iou for name, iou in per_class}

    def files(self) -> dict[str, Any]:
        """Returns the confusion matrix; label maps are as large as the images."""
        counts = self._original.tolist()
        return {"confusion.json": {"names": self._names, "counts": counts}}

    def figures(self) -> dict[str, Any]:
        """Returns the confusion matrix."""
        from train.evaluation.figures import confusion_figure

        figure = confusion_figure(self._names, self._original, "pixels of the images")
        return {"confusion.png": figure}


def confusion(
    truth: Int[np.ndarray, "H W"], found: Int[np.ndarray, "H W"], num_classes: int
) -> Int[np.ndarray, "C C"]:
    """Counts pixels by their label (the row) and what was predicted.

    Args:
      truth: Labels from 0; `IGNORE` is not counted.
      found: Labels from 0.
      num_classes: C.
    """
    known = truth != label_maps.IGNORE
    cells = truth[known].astype(np.int64) * num_classes + found[known]
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def intersections_over_unions(counts: Int[np.ndarray, "C C"]) -> list[float | None]:
    """Returns the IoU of each class; None of one that neither occurs nor is found."""
    right = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - right
    return [
        int(hits) / int(pixels) if pixels else None
        for hits, pixels in zip(right, union, strict=True)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
