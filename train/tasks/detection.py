"""Detection: boxes with classes, and masks, found by a network, judged by their AP.

Shape letters: M ground-truth boxes of an image (padded), D detections of an image.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.detection.paste import paste_mask
from dcn_jax.detection.records import Batch, Detections
from dcn_jax.networks import NETWORKS, POOL_LAYERS
from train import draw
from train.config_dict import ConfigDict
from train.configs import _detection
from train.data import masks, report, transforms
from train.data.geometry import Geometry
from train.data.source import Example, Source
from train.evaluation.coco import AveragePrecision
from train.evaluation.coco_results import coco_results, original_boxes
from train.evaluation.voc import VocAveragePrecision
from train.sections import construct, settings_of
from train.skeleton import variables_of
from train.task import Network, Start

# What `Source.judged_by` may name.
METRICS: dict[str, Callable[[Any], AveragePrecision]] = {
    "coco": AveragePrecision,
    "voc_11point": functools.partial(VocAveragePrecision, rule="11point"),
    "voc_area": functools.partial(VocAveragePrecision, rule="area"),
}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Sections of the model that weights depend on, though shapes may not tell ...
_ARCHITECTURE = (
    *("backbone", "trunk", "neck", "rpn", "pool_layer", "pool", "box"),
    *("mask_pool", "mask"),
)
# ... but for these fields of them. Which weights were kept fixed, and what they were
# taught, is no property of the result, nor is how many boxes are looked at.
_PASSING = {
    "model.backbone.frozen_stages",
    "model.rpn.loss_beta",
    "model.rpn.sampling",
    "model.rpn.train",
    "model.rpn.test",
    "model.box.loss_beta",
    "model.mask.aligned_targets",
    "model.mask.binary_targets",
}


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
            if section in config.model:  # else of another network
                fields |= _flat(f"model.{section}", config.model[section])
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

    def conventions(self, config: ConfigDict) -> dict[str, Any]:
        """What the owner of a whole detector does otherwise."""
        if not config.init_from:
            return {}
        from train.tasks import owner

        return owner.conventions(config)

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
        names: Sequence[str],
        score: float,
    ) -> np.ndarray:
        """Draws the boxes that reach the score, and their masks if there are any."""
        picture = draw.enlarged(image)
        size = picture.shape[:2]
        found = _best(prediction, geometry._replace(original=size), score)
        labels = found.labels.tolist()
        if found.masks is not None:
            # The best is drawn last, on top, as of the boxes.
            for i in np.argsort(found.scores):
                mask = paste_mask(found.masks[i], found.boxes[i], size)
                picture = draw.draw_mask(picture, mask, labels[i])
        return draw.draw_boxes(picture, found.boxes, found.scores, labels, names)

    def records(
        self,
        prediction: Detections,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> list[dict[str, Any]]:
        """Lists the label of each box, and what `coco_results` does."""
        reached = prediction.valid & (prediction.scores >= score)
        found = prediction._replace(valid=reached)
        results = coco_results(
            found, geometry, lambda label: categories[label - 1]["id"]
        )
        labels = prediction.labels[reached]
        return [
            {"label": categories[label - 1]["name"], **result}
            for label, result in zip(labels, results, strict=True)
        ]


def _flat(path: str, value: Any) -> dict[str, Any]:
    """Fields at and below a path that weights depend on."""
    if path in _PASSING:
        return {}
    if not isinstance(value, ConfigDict):
        return {path: value}
    fields = {}
    for name, inner in value.items():
        fields |= _flat(f"{path}.{name}", inner)
    return fields


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


def _best(prediction: Detections, geometry: Geometry, score: float) -> Any:
    """Returns what reaches the score, with boxes in pixels of the original image."""
    reached = prediction.valid & (prediction.scores >= score)
    found = jax.tree.map(lambda field: np.asarray(field)[reached], prediction)
    return found._replace(boxes=original_boxes(found.boxes, geometry))
