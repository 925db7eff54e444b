"""COCO average precision of a model on held-out images.

As a program, `python -m train.evaluate --config=... [--workdir=...] [--output=DIR]`, it
evaluates the newest checkpoint of a run and writes evaluation.json, detections.json and
pictures into DIR, or else into the run's folder, in place of those that lie there.
"""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

import contextlib
import io
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_jax.detection.records import Detections
from train import cli, draw, inputs, interrupt, sharding
from train.checkpoint import Checkpoints, abstract
from train.config_dict import ConfigDict
from train.model import Skeleton, Variables, build_skeleton, describe
from train.whole_file import write_whole

_log = logging.getLogger("train")

OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder for what is written; default: that of the run (train.evaluate), or "
    "predictions (train.predict).",
)

# Names of COCOeval's twelve summary numbers, in its order.
SUMMARY = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


class Evaluation(NamedTuple):
    """What an evaluation found."""

    # "AP", "AP50", ... as in SUMMARY; None where there is no ground truth.
    bbox: dict[str, float | None]
    # Category name -> AP.
    per_class: dict[str, float | None]
    # COCO results: image_id, category_id, bbox (x y w h, original pixels), score.
    detections: list[dict[str, Any]]
    # The first images, with their detections drawn.
    pictures: list[np.ndarray]
    # Of what: name, split, options and number of images of the data set.
    data: dict[str, Any]


def average_precision(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Returns pycocotools' box AP, whole and by category.

    Args:
      ground_truth: As an instances JSON file: images, annotations, categories. Images
        without detections count as missed.
      detections: COCO results, see `Evaluation.detections`.

    Returns:
      The summary (names as in SUMMARY) and {category name: AP}; None where there is
      nothing to find.
    """
    boxes = []
    for i, detection in enumerate(detections):
        area = detection["bbox"][2] * detection["bbox"][3]
        boxes.append({**detection, "id": i + 1, "area": area, "iscrowd": 0})
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        # createIndex and COCOeval write into the annotations.
        truth.dataset = json.loads(json.dumps(ground_truth))
        # To COCOeval the id 0 says that nothing matched.
        for i, annotation in enumerate(truth.dataset["annotations"]):
            annotation["id"] = i + 1
        found.dataset = {**truth.dataset, "annotations": boxes}
        truth.createIndex()
        found.createIndex()
        judge = COCOeval(truth, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    summary: dict[str, float | None] = {
        name: _number(value) for name, value in zip(SUMMARY, judge.stats, strict=True)
    }
    # [IoU threshold, recall, category, area range, detection limit]
    precision = judge.eval["precision"][:, :, :, 0, -1]
    names = {c["id"]: c["name"] for c in truth.dataset["categories"]}
    per_class = {}
    for k, category in enumerate(judge.params.catIds):
        known = precision[:, :, k][precision[:, :, k] > -1]
        per_class[names[category]] = _number(known.mean() if known.size else -1.0)
    return summary, per_class


def _number(value: float) -> float | None:
    # pycocotools says -1 where there is no ground truth.
    return None if value < 0 else float(value)


class Evaluator:
    """Runs a detector over a data set; the compiled program is kept between calls."""

    def __init__(self, config: ConfigDict, skeleton: Skeleton, mesh: Mesh, source: Any):
        if not source.num_boxes.any():
            _log.warning(
                "WARNING: the split %r has no box to find: its AP is no number",
                config.data.eval_split,
            )
        self._config, self._mesh, self._source = config, mesh, source
        self._detect = make_detect(skeleton, mesh)

    def __call__(
        self, variables: Variables, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """Evaluates; every process takes its share of the images and has the result.

        Args:
          variables: The model's.
          stop: Asked before every batch; where it says yes, the result is None.
        """
        config, source = self._config, self._source
        with contextlib.closing(inputs.open_eval_loader(config, source)) as batches:
            found = self._detections(variables, batches, stop)
        if found is None:
            return None
        results, pictures = found
        results = _gather(results)
        summary, per_class = average_precision(source.ground_truth(), results)
        data = {
            "name": config.data.name,
            "split": config.data.eval_split,
            "options": config.data.options.to_dict(),
            "images": len(source),
        }
        return Evaluation(summary, per_class, results, pictures, data)

    def _detections(
        self, variables: Variables, batches: Any, stop: Callable[[], bool]
    ) -> tuple[list[dict[str, Any]], list[np.ndarray]] | None:
        """Returns this process's COCO results and pictures; None where stopped."""
        config, source = self._config, self._source
        names = [category["name"] for category in source.categories]
        results, pictures = [], []
        for batch in batches:
            if stop():
                return None
            arrays = {name: batch[name] for name in ("images", "sizes")}
            found = local_rows(
                self._detect(variables, **sharding.to_devices(arrays, self._mesh))
            )
            for row, image_id in enumerate(batch["image_id"]):
                if image_id < 0:  # completes a batch
                    continue
                detections = Detections(*(field[row] for field in found))
                results += coco_results(
                    detections, batch["scale"][row], int(image_id), source
                )
                if len(pictures) < config.eval.pictures:
                    height, width = batch["sizes"][row]
                    picture = draw_best(
                        batch["images"][row, :height, :width],
                        detections,
                        names,
                        config.eval.picture_score,
                    )
                    pictures.append(picture)
        return results, pictures


def make_detect(skeleton: Skeleton, mesh: Mesh):
    """Returns the compiled `detect(variables, images, sizes) -> Detections`."""

    def detect(variables, images, sizes):
        return skeleton.model(variables).detect(images, sizes)

    return jax.jit(detect, out_shardings=sharding.divided(mesh))


def local_rows(detections: Detections) -> Detections:
    """Returns this process's rows of the detections, in order, on the host."""

    def rows(array: jax.Array) -> Any:
        # Along the axis `model` the same rows stand on several devices.
        shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    return Detections(*map(rows, detections))


def original_boxes(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns boxes [D, 4] in pixels of the image file.

    Args:
      boxes: x1 y1 x2 y2 in canvas pixels.
      scale: Resized over original size, (y, x).
    """
    return boxes / np.asarray([scale[1], scale[0], scale[1], scale[0]], boxes.dtype)


def coco_results(
    detections: Detections, scale: np.ndarray, image_id: int, source: Any
) -> list[dict[str, Any]]:
    """Returns the valid detections of one image as COCO results."""
    boxes = original_boxes(np.asarray(detections.boxes), scale)
    return [
        {
            "image_id": image_id,
            "category_id": source.category_id(int(detections.labels[i])),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(detections.scores[i]),
        }
        for i, (x1, y1, x2, y2) in enumerate(boxes)
        if detections.valid[i]
    ]


def draw_best(
    image: np.ndarray, detections: Detections, names: Sequence[str], score: float
) -> np.ndarray:
    """Draws the detections of one image that reach a score."""
    shown = detections.valid & (detections.scores >= score)
    boxes, scores, labels, _ = (np.asarray(field)[shown] for field in detections)
    return draw.draw_detections(image, boxes, scores, labels.tolist(), names)


def _gather(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the results of all processes together."""
    if jax.process_count() == 1:
        return results
    text = np.frombuffer(json.dumps(results).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([text.size], np.int32))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    parts = multihost_utils.process_allgather(padded)
    return [
        result
        for part, size in zip(parts, sizes.ravel(), strict=True)
        for result in json.loads(part[:size].tobytes())
    ]


def write_evaluation(folder: Path, step: int, evaluation: Evaluation) -> None:
    """Writes evaluation.json, detections.json and the pictures; logs the AP."""
    record = {
        "step": step,
        "data": evaluation.data,
        "bbox": evaluation.bbox,
        "bbox_per_class": evaluation.per_class,
    }
    folder.mkdir(parents=True, exist_ok=True)
    pictures = folder / "pictures"
    # Those of the evaluation that lay here; any other picture is somebody's own.
    if (folder / "evaluation.json").exists():
        for stale in pictures.glob("*.png"):
            if re.fullmatch(r"\d{3,}|grid", stale.stem, re.ASCII):
                stale.unlink()
    write_whole(folder / "detections.json", json.dumps(evaluation.detections))
    write_whole(folder / "evaluation.json", json.dumps(record, indent=2) + "\n")
    for i, picture in enumerate(evaluation.pictures):
        draw.save_picture(pictures / f"{i:03}.png", picture)
    if evaluation.pictures:
        draw.save_picture(pictures / "grid.png", draw.grid(evaluation.pictures))
    shown = " ".join(
        f"{name} {'-' if value is None else f'{value:.3f}'}"
        for name, value in evaluation.bbox.items()
    )
    split = evaluation.data["split"]
    _log.info("evaluation of step %d on %s: %s", step, split, shown)


def load_variables(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    expected: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[int, Skeleton, Variables, dict[str, Any]]:
    """Loads the newest checkpoint of a run, without its optimiser.

    Args:
      config: The configuration of the run.
      workdir: Its folder.
      mesh: Where the variables are placed.
      expected: Categories of the data, which the checkpoint must have; None: any.

    Returns:
      Step, model, variables, description.

    Raises:
      FileNotFoundError: There is no checkpoint.
      ValueError: It is damaged, of another model, or of other categories.
    """
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no checkpoint in {folder}.")
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest()
    if step is None:
        raise FileNotFoundError(f"There is no finished checkpoint in {folder}.")
    description = checkpoints.description(step)
    categories = description["categories"] if expected is None else expected
    skeleton = build_skeleton(config, len(categories))
    checkpoints.check(step, describe(config, categories), skeleton.variables)
    shardings = sharding.state_shardings(skeleton.variables, mesh)
    like = abstract(skeleton.variables, shardings)
    variables = checkpoints.restore_variables(step, like)
    checkpoints.close()
    _log.info("using the checkpoint of step %d", step)
    return step, skeleton, variables, description


@interrupt.interruptible
def main(arguments: list[str]) -> None:
    """Evaluates the newest checkpoint of a run."""
    if arguments:
        raise ValueError(f"Unexpected arguments: {' '.join(arguments)}")
    config, workdir = cli.config(), cli.workdir()
    mesh = sharding.make_mesh(config.mesh.model)
    sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
    source = inputs.open_source(config, config.data.eval_split)
    step, skeleton, variables, _ = load_variables(
        config, workdir, mesh, source.categories
    )
    evaluation = Evaluator(config, skeleton, mesh, source)(variables)
    assert evaluation is not None
    output = Path(os.path.expanduser(OUTPUT.value or workdir))
    write_evaluation(output, step, evaluation)


if __name__ == "__main__":
    cli.run(main)
