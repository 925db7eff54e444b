"""A process that trains with torch: our end of `scripts.benchmark.torch_twin`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dcn_jax.detection.records import Batch, Detections
from dcn_jax.weights.layouts import Axes
from dcn_jax.weights.names.resnet import torchvision_resnet
from dcn_jax.weights.names.table import Row, Table
from scripts.benchmark.torch_worker import Worker
from train.config_dict import ConfigDict

# Parts of a row that it times.
PARTS = ("train step", "detection")

_NAMES = Table(
    (
        *torchvision_resnet("trunk.backbone.", "body."),
        Row("trunk.neck.reduction", "reduction", "conv"),
        Row("rpn.conv", "rpn.head.conv.0.0", "conv"),
        Row("rpn.classifier", "rpn.head.cls_logits", "conv"),
        Row("rpn.deltas", "rpn.head.bbox_pred", "conv"),
        Row("roi.pool.fc1", "roi_heads.box_roi_pool.fc1", "pooled"),
        Row("roi.pool.fc2", "roi_heads.box_roi_pool.fc2", "linear"),
        Row("roi.pool.offset_fc", "roi_heads.box_roi_pool.offset_fc", "linear"),
        Row("roi.fc6", "roi_heads.box_head.fc6", "pooled"),
        Row("roi.fc7", "roi_heads.box_head.fc7", "linear"),
        Row("roi.classifier", "roi_heads.box_predictor.cls_score", "classes"),
        Row("roi.regressor", "roi_heads.box_predictor.bbox_pred", "boxes"),
    )
)

# Rounding moves scores and boxes a little, and where two overlap about as much as
# suppression allows, one side may keep another of them.
_SCORE, _PIXELS, _SHARE = 1e-2, 2.0, 0.9
# Both sides draw samples of their own.
_LOSS = 0.5


class TwinWorker(Worker):
    """A process that has torchvision's counterpart of networks.

    Args:
      python: The interpreter.
      threads: That torch may use.
      program: Module that it runs.
    """

    def __init__(
        self,
        python: str,
        threads: int,
        program: str = "scripts.benchmark.torch_twin",
    ):
        super().__init__(python, program, str(threads))

    def load(
        self,
        row: str,
        config: ConfigDict,
        num_classes: int,
        variables: Mapping[str, Any],
        batch: Batch,
    ) -> None:
        """Makes the counterpart of a network, with the same weights, on one image."""
        truth = dict(boxes=batch.boxes[0], labels=batch.labels[0])
        image = np.moveaxis(np.asarray(batch.images[0]), -1, 0)
        self._save(twin_tensors(variables) | truth | {"image": image})
        self._ask(
            "load",
            row,
            model=config.model.to_dict(),
            optim=config.optim.to_dict(),
            num_classes=num_classes,
            path=self._path,
        )

    def time(self, row: str, part: str) -> float:
        """Seconds of one of PARTS."""
        return self._ask("time", row, part=part)

    def losses(self, row: str) -> dict[str, float]:
        """Of the last train step, by our names."""
        return self._ask("losses", row)

    def detections(self, row: str) -> dict[str, np.ndarray]:
        """The boxes, scores and labels that it finds."""
        self._ask("detections", row, path=self._path)
        return dict(np.load(self._path))


def twin_tensors(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A network's variables under its counterpart's names, and in torch's layouts.

    Raises:
      ValueError: The counterpart has no such part.
    """
    axes = Axes(
        channels=variables["trunk.neck.reduction.bias"].size,
        background_first=True,
        bgr=False,
        coco_ids=False,
    )
    tensors = {}
    for path, value in variables.items():
        place = _NAMES.theirs(path)
        if place is None:
            raise ValueError(f"torchvision's counterpart has nothing like {path}")
        tensors[place.name] = place.layout.write(np.asarray(value), axes)
    return tensors


def check_losses(
    row: str, ours: Mapping[str, float], theirs: Mapping[str, float]
) -> None:
    """Refuses a counterpart that learns something else.

    Raises:
      ValueError: A loss differs by more than its random samples explain.
    """
    for name, value in theirs.items():
        if not abs(value - ours[name]) <= _LOSS * max(abs(value), abs(ours[name])):
            raise ValueError(
                f"{row}: the loss {name!r} is {ours[name]:.4g}, torchvision's "
                f"{value:.4g}"
            )


def check_detections(
    row: str, ours: Detections, theirs: Mapping[str, np.ndarray]
) -> None:
    """Refuses a counterpart that finds something else.

    Args:
      row: Of the table.
      ours: Of one image, on the host.
      theirs: Its boxes, scores and labels.

    Raises:
      ValueError: Too few detections are both sides'.
    """
    kept = np.asarray(ours.valid[0])
    boxes, scores, labels = (
        np.asarray(values[0])[kept] for values in (ours.boxes, ours.scores, ours.labels)
    )
    same = labels[:, None] == theirs["labels"][None]
    same &= np.abs(scores[:, None] - theirs["scores"][None]) < _SCORE
    apart = np.abs(boxes[:, None] - theirs["boxes"][None])
    same &= (apart < _PIXELS).all(-1)
    found = min(same.any(0).sum(), same.any(1).sum())
    count = max(same.shape)
    if found < _SHARE * count:
        raise ValueError(
            f"{row}: of {count} detections, {found} are ours and torchvision's; "
            f"expected {_SHARE:.0%}"
        )
