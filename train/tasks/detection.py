"""Detection: boxes with classes, and masks, found by a network, judged by their AP.

Shape letters: M ground-truth boxes of an image (padded), D detections of an image.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dcn_jax.categories import categories_of
from dcn_jax.detection.records import Batch, Detections
from dcn_jax.detection.roi_head import RepresentingHead
from dcn_jax.images import drawing
from dcn_jax.images.fit import resize_labels
from dcn_jax.images.geometry import Geometry
from dcn_jax.inference.detections import ImageDetections
from dcn_jax.modules.roi_pool import DeformRoIPooling, RoIAlign
from dcn_jax.networks import POOL_LAYERS
from train.config_dict import ConfigDict
from train.configs import _detection
from train.data import masks, report, transforms
from train.data.sets import coco_masks
from train.data.source import Example, Source
from train.evaluation.coco import AveragePrecision
from train.evaluation.coco_results import coco_results
from train.evaluation.voc import VocAveragePrecision
from train.sections import settings_of
from train.task import Passes
from train.tasks.composed import Composed

# Detections that are drawn where none reaches the score.
_BEST = 3
# What `Source.judged_by` may name.
METRICS: dict[str, Callable[[Any], AveragePrecision]] = {
    "coco": AveragePrecision,
    "voc_11point": functools.partial(VocAveragePrecision, rule="11point"),
    "voc_area": functools.partial(VocAveragePrecision, rule="area"),
}


class Detection(Composed):
    """See `train.task.Task`, which explains the methods and their arguments."""

    Batch = Batch
    fields = _detection
    network_file = "detector.safetensors"

    def arguments(self, config: ConfigDict) -> dict[str, Any]:
        """Adds RoI pooling, and leaves mimicking out where it is not wanted."""
        arguments, model = super().arguments(config), config.model
        if "pool_layer" in model:
            layer = POOL_LAYERS[model.pool_layer]
            arguments["pool_layer"] = layer
            for name in {"pool", "mask_pool"} & set(model):
                arguments[name] = settings_of(layer, model[name])
            if not model.mimicking:
                del arguments["mimic"]
        return arguments

    def passes(self, network: Any) -> Passes:
        """Adds RoIs after the second fully connected layer, where bins are told."""
        passes, head = super().passes(network), getattr(network, "roi", None)
        pool = getattr(head, "pool", None)
        told = isinstance(pool, RoIAlign | DeformRoIPooling)
        if told and isinstance(head, RepresentingHead):
            passes = passes._replace(rois=_representation)
        return passes

    def usual(self, config: ConfigDict) -> ConfigDict:
        """Returns the defaults for the configured network and RoI pooling."""
        usual = super().usual(config)
        if "pool_layer" in usual.model:
            _detection.set_pool_layer(usual, config.model.pool_layer)
        return usual

    def usable(self, source: Source) -> np.ndarray:
        """Images with a box."""
        return source.num_boxes > 0

    def summary(self, source: Source, split: str, data: ConfigDict) -> str:
        """Says which images, boxes and masks are used, and which are not and why."""
        learned = data.mask_size > 0
        if split != data.train_split:
            return report.evaluation_line(source, split, masks=learned)
        return report.training_line(
            source,
            split,
            max_boxes=data.max_boxes,
            skip_empty=data.skip_empty,
            masks=learned,
        )

    def targets(
        self, example: Example, geometry: Geometry, data: ConfigDict
    ) -> dict[str, np.ndarray]:
        """Boxes of an image, padded, and masks if wanted; see `padded_boxes`."""
        return padded_boxes(example, geometry, data.max_boxes, data.mask_size)

    def metric(self, source: Source) -> AveragePrecision:
        """COCO's AP of boxes, and of masks if predicted; on VOC, its mAP too."""
        return METRICS[source.judged_by](source)

    def draw(
        self,
        image: np.ndarray,
        prediction: Detections,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> np.ndarray:
        """Draws the boxes that reach the score, and their masks if there are any.

        Where none does, the best three are drawn, and the picture says so.
        """
        found = ImageDetections.of(prediction, geometry, categories_of(categories))
        return found.draw(image, score, best=_BEST)

    def draw_truth(
        self,
        image: np.ndarray,
        example: Example,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        data: ConfigDict,
    ) -> np.ndarray:
        """Draws the boxes that training could use, and masks where they are learned."""
        picture = drawing.enlarged(image)
        size = height, width = picture.shape[:2]
        labels = example.labels.tolist()
        old_height, old_width = geometry.original
        if data.mask_size:
            pairs = zip(example.segmentations, labels, strict=True)
            for segmentation, label in pairs:
                pixels = coco_masks.pixels(segmentation, old_height, old_width)
                mask = resize_labels(pixels, size).astype(bool)
                picture = drawing.draw_mask(picture, mask, label)
        y, x = height / old_height, width / old_width
        boxes = example.boxes * np.asarray([x, y, x, y], np.float32)
        names = [category["name"] for category in categories]
        return drawing.draw_boxes(picture, boxes, None, labels, names)

    def records(
        self,
        prediction: Detections,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> list[dict[str, Any]]:
        """Lists the label of each box, and what `coco_results` does."""
        known = categories_of(categories)
        found = ImageDetections.of(prediction, geometry, known, score)
        return [
            {"label": name, **result}
            for name, result in zip(found.names, coco_results(found), strict=True)
        ]


def _representation(
    network: Any, images: jax.Array, sizes: jax.Array, rois: jax.Array
) -> jax.Array:
    return network.roi.represent(network.features(images, sizes), rois)


def padded_boxes(
    example: Example, geometry: Geometry, max_boxes: int, mask_size: int = 0
) -> dict[str, np.ndarray]:
    """Returns the boxes of an image, as it lies on its canvas, and masks if wanted.

    Args:
      example: The image with its boxes.
      geometry: How it came onto its canvas.
      max_boxes: Boxes are padded to this many; of an image with more, the first stay.
      mask_size: Side S of the masks in pixels; 0 is for none.

    Returns:
      `boxes` [M, 4] float32 in canvas pixels, `labels` [M] int32, `valid` [M] bool; and
      where masks are wanted, `masks` [M, S, S] uint8 and `mask_windows` [M, 4] float32,
      as `dcn_jax.detection.records.Batch` explains them.
    """
    boxes = transforms.scale_boxes(example.boxes, np.asarray(geometry.scale))
    boxes = transforms.clip_boxes(boxes, geometry.size)
    if geometry.flip:
        boxes = transforms.flip_boxes(boxes, geometry.size[1])
    boxes = transforms.crop_boxes(boxes, geometry.corner, geometry.shown)
    # A box may be so small that it vanishes where it is scaled and moved.
    seen = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))[:max_boxes]
    rows = {
        "boxes": np.zeros((max_boxes, 4), np.float32),
        "labels": np.zeros(max_boxes, np.int32),
        "valid": np.zeros(max_boxes, bool),
    }
    rows["boxes"][: len(seen)] = boxes[seen]
    rows["labels"][: len(seen)] = example.labels[seen]
    rows["valid"][: len(seen)] = True
    if mask_size:
        drawn = np.zeros((max_boxes, mask_size, mask_size), np.uint8)
        taken = np.zeros((max_boxes, 4), np.float32)
        windows = masks.windows_around(boxes[seen], mask_size)
        for row, (index, window) in enumerate(zip(seen, windows, strict=True)):
            mask = masks.draw_mask(
                example.segmentations[index], window, geometry, mask_size
            )
            if mask is not None:
                drawn[row], taken[row] = mask, window
        rows |= {"masks": drawn, "mask_windows": taken}
    return rows
