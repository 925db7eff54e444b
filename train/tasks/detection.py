"""Detection: boxes with classes, found by a network, judged by COCO's AP.

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

from dcn_jax.detection.records import Batch, Detections
from dcn_jax.networks import NETWORKS, POOL_LAYERS
from train import draw
from train.config_dict import ConfigDict
from train.configs import _detection
from train.data import report, transforms
from train.data.geometry import Geometry
from train.data.source import Example, Source
from train.evaluation.coco import AveragePrecision, original_boxes
from train.sections import construct, settings_of
from train.skeleton import variables_of
from train.task import Network, Start

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Sections of the model that weights depend on, though shapes may not tell ...
_ARCHITECTURE = (
    *("backbone", "trunk", "neck", "rpn", "pool_layer", "pool", "box"),
    *("mask_pool", "mask"),
)
# ... but for these fields of them. Which weights were kept fixed is no property of the
# result, nor is how many boxes are looked at.
_PASSING = {"backbone.frozen_stages", "rpn.sampling", "rpn.train", "rpn.test"}


class Detection:
    """See `train.task.Task`, which explains the methods and their arguments."""

    Batch = Batch
    kept_fields: tuple[str, ...] = ("model.backbone.frozen_stages",)

    def check(self, config: ConfigDict) -> None:
        """Refuses what is no configuration of a detector."""
        _detection.check(config)

    def architecture(self, config: ConfigDict) -> dict[str, Any]:
        """The sections of the stages, without what only training or testing reads."""
        fields = {"network": config.network}
        for section in _ARCHITECTURE:
            if section not in config.model:  # those of other networks
                continue
            values = config.model[section]
            if not isinstance(values, ConfigDict):
                fields[f"model.{section}"] = values
                continue
            for name, value in values.items():
                if f"{section}.{name}" not in _PASSING:
                    fields[f"model.{section}.{name}"] = value
        return fields

    def build(self, config: ConfigDict, num_classes: int, rngs: nnx.Rngs) -> Network:
        """Returns the network that the configuration names."""
        if config.dtype not in _DTYPES:
            raise ValueError(
                f"`dtype` is {config.dtype!r}; expected one of {tuple(_DTYPES)}."
            )
        model = config.model
        constructors = _detection.constructors(config.network)
        # Records of the network as a whole.
        records = {
            name: construct(constructors.pop(name), model[name])
            for name in ("sampling", "selection")
        }
        if not model.mimicking:
            del constructors["mimic"]
        layer = POOL_LAYERS[model.pool_layer]
        pools = {name: layer for name in ("pool", "mask_pool") if name in model}
        stages = {
            name: settings_of(make, model[name])
            for name, make in (constructors | pools).items()
        }
        return NETWORKS[config.network](
            num_classes,
            **stages,
            **records,
            pool_layer=layer,
            dtype=_DTYPES[config.dtype],
            rngs=rngs,
        )

    def weights(self, config: ConfigDict, network: Any) -> Start:
        """Reads the weights of a whole detector, or of its backbone."""
        if not config.init_from:
            if config.model.backbone.norm == "frozen_bn":
                raise ValueError(
                    "`model.backbone.norm` is 'frozen_bn', whose statistics come with "
                    "pretrained weights; expected `init_from` to name their file, or "
                    "'group_norm'."
                )
            return Start({}, ())
        from dcn_jax.weights import init_from

        report = init_from(network, Path(os.path.expanduser(config.init_from)))
        values = {
            name: np.asarray(value)
            for name, value in variables_of(network).items()
            # The others are shapes still.
            if isinstance(value, jax.Array)
        }
        notes = [f"init_from: {sentence}" for sentence in report.differences]
        if report.restarted:
            notes.append(
                "init_from: another number of classes: these start anew: "
                + ", ".join(report.restarted)
            )
        return Start(values, tuple(notes))

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
