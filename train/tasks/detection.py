"""Detection: boxes with classes, found by Faster R-CNN, judged by COCO's AP.

Shape letters: M ground-truth boxes of an image (padded), D detections of an image.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.rcnn import FasterRCNN
from dcn_jax.types import Batch, Detections
from train import draw
from train.config_dict import ConfigDict
from train.configs import _detection
from train.data import report, transforms
from train.data.geometry import Geometry
from train.data.source import Example, Source
from train.evaluation.coco import AveragePrecision, original_boxes
from train.sections import construct
from train.skeleton import variables_of
from train.task import Network

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# The detector's arguments that weights depend on, though shapes may not tell.
_ARCHITECTURE = (
    "pixel_mean", "pixel_std", "anchor_sizes", "aspect_ratios", "rpn_features",
    "reduction_features", "roi_pooling", "roi_output_size", "roi_sampling_ratio",
    "roi_branch_features", "head_features", "class_agnostic_boxes", "box_weights",
)  # fmt: skip


class _Detector(FasterRCNN):
    """`FasterRCNN` by the names of `train.task.Network`."""

    @property
    def frozen_paths(self) -> tuple[str, ...]:
        return tuple(f"backbone.{name}." for name in self.backbone.frozen_names)

    def predict(self, images: jax.Array, sizes: jax.Array) -> Detections:
        return self.detect(images, sizes)


class Detection:
    """See `train.task.Task`, which explains the methods and their arguments."""

    Batch = Batch
    kept_fields: tuple[str, ...] = ("backbone.frozen_stages",)

    def check(self, config: ConfigDict) -> None:
        """Refuses what is no configuration of a detector."""
        _detection.check(config)

    def architecture(self, config: ConfigDict) -> dict[str, Any]:
        """All of the backbone, and what weights of the detector depend on."""
        fields = {f"backbone.{k}": v for k, v in config.backbone.items()}
        # Which weights were kept fixed is no property of the result.
        del fields["backbone.frozen_stages"]
        return fields | {f"detector.{k}": config.detector[k] for k in _ARCHITECTURE}

    def build(self, config: ConfigDict, num_classes: int, rngs: nnx.Rngs) -> Network:
        """Returns Faster R-CNN on a ResNet."""
        if config.dtype not in _DTYPES:
            raise ValueError(
                f"`dtype` is {config.dtype!r}; expected one of {tuple(_DTYPES)}."
            )
        dtype = _DTYPES[config.dtype]
        types = {"dtype": dtype, "rngs": rngs}
        backbone = construct(ResNet, config.backbone, **types)
        return construct(
            _Detector,
            config.detector,
            backbone=backbone,
            num_classes=num_classes,
            **types,
        )

    def weights(self, config: ConfigDict, network: Any) -> dict[str, np.ndarray]:
        """Reads torchvision's weights of the backbone."""
        if not config.init_from:
            if config.backbone.norm == "frozen_bn":
                raise ValueError(
                    "`backbone.norm` is 'frozen_bn', whose statistics come with "
                    "pretrained weights; expected `init_from` to name their file, or "
                    "'group_norm'."
                )
            return {}
        from dcn_jax.weights import init_from

        init_from(network.backbone, Path(os.path.expanduser(config.init_from)))
        return {
            f"backbone.{name}": np.asarray(value)
            for name, value in variables_of(network.backbone).items()
            # The others are shapes still.
            if isinstance(value, jax.Array)
        }

    def usable(self, source: Source) -> np.ndarray:
        """Images with a box."""
        return source.num_boxes > 0

    def summary(self, source: Source, split: str, data: ConfigDict) -> str:
        """Says which images, boxes and masks are used, and which are not and why."""
        if split != data.train_split:
            return report.evaluation_line(source, split)
        return report.training_line(
            source, split, max_boxes=data.max_boxes, skip_empty=data.skip_empty
        )

    def targets(
        self, example: Example, geometry: Geometry, data: ConfigDict
    ) -> dict[str, np.ndarray]:
        """Boxes of an image, padded; see `padded_boxes`."""
        return padded_boxes(example, geometry, data.max_boxes)

    def metric(self, source: Source) -> AveragePrecision:
        """Box AP as COCO's."""
        return AveragePrecision(source)

    def draw(
        self,
        image: np.ndarray,
        prediction: Detections,
        geometry: Geometry,
        names: Sequence[str],
        score: float,
    ) -> np.ndarray:
        """Draws the boxes that reach the score."""
        found = _best(prediction, geometry, score)
        return draw.draw_detections(
            image, found.boxes, found.scores, found.labels.tolist(), names
        )

    def records(
        self,
        prediction: Detections,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> list[dict[str, Any]]:
        """Lists label, category_id, bbox (x y w h) and score of each box."""
        found = _best(prediction, geometry, score)
        rows = zip(found.boxes, found.scores, found.labels, strict=True)
        return [
            {
                "label": categories[label - 1]["name"],
                "category_id": categories[label - 1]["id"],
                "bbox": [float(v) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": float(reached),
            }
            for (x1, y1, x2, y2), reached, label in rows
        ]


def padded_boxes(
    example: Example, geometry: Geometry, max_boxes: int
) -> dict[str, np.ndarray]:
    """Returns the boxes of an image, as it lies on its canvas.

    Args:
      example: The image with its boxes.
      geometry: How it came onto its canvas.
      max_boxes: Boxes are padded to this many; of an image with more, the first stay.

    Returns:
      `boxes` [M, 4] float32 in canvas pixels, `labels` [M] int32, `valid` [M] bool.
    """
    boxes = transforms.scale_boxes(example.boxes, np.asarray(geometry.scale))
    boxes = transforms.clip_boxes(boxes, geometry.size)
    if geometry.flip:
        boxes = transforms.flip_boxes(boxes, geometry.size[1])
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
    return rows


def _best(prediction: Detections, geometry: Geometry, score: float) -> Any:
    """Returns what reaches the score, with boxes in pixels of the original image."""
    reached = prediction.valid & (prediction.scores >= score)
    rows: list[Any] = [np.asarray(field)[reached] for field in prediction]
    found = Detections(*rows)
    return found._replace(boxes=original_boxes(rows[0], geometry))
