"""Runs a network over held-out images and judges it by its task's metric."""

import contextlib
import json
import logging
import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dcn_jax.images.geometry import Geometry
from train import draw, inputs, sharding
from train.config_dict import ConfigDict
from train.skeleton import Skeleton, Variables
from train.task import Metric, Task
from train.whole_file import write_whole

_log = logging.getLogger("train")
# Scores in a line of the log: half of COCO's.
_IN_A_LINE = 6


class Evaluation(NamedTuple):
    """What an evaluation found."""

    # GROUP/NAME -> number, as `train.task.Metric.compute` returns them.
    scores: dict[str, float | None]
    # Name -> content, of the files that are written beside evaluation.json.
    files: dict[str, Any]
    # Name -> PNG, of the figures that are.
    figures: dict[str, bytes]
    # The first images, with their ground truth and their predictions side by side.
    pictures: list[np.ndarray]
    # Of what: name, split, options and number of images of the data set.
    data: dict[str, Any]

    def groups(self) -> dict[str, dict[str, float | None]]:
        """Returns the scores as group -> name -> number."""
        groups: dict[str, dict[str, float | None]] = {}
        for score, value in self.scores.items():
            group, _, name = score.partition("/")
            groups.setdefault(group, {})[name] = value
        return groups

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Returns the groups that do not list every class."""
        return {
            group: scores
            for group, scores in self.groups().items()
            if not group.endswith("_per_class")
        }

    def scalars(self) -> dict[str, float]:
        """Returns the numbers of the summary as eval/GROUP/NAME."""
        return {
            f"eval/{group}/{name}": value
            for group, scores in self.summary().items()
            for name, value in scores.items()
            if value is not None
        }


class Evaluator:
    """Runs a network over a data set; the compiled program is kept between calls."""

    def __init__(
        self,
        config: ConfigDict,
        task: Task,
        skeleton: Skeleton,
        mesh: Mesh,
        source: Any,
    ):
        if not task.usable(source).any():
            _log.warning(
                "WARNING: the split %r has no ground truth to find: its scores are no "
                "numbers",
                config.data.eval_split,
            )
        self._config, self._task = config, task
        self._mesh, self._source = mesh, source
        self._predict = make_predict(skeleton, mesh)

    def __call__(
        self, variables: Variables, stop: Callable[[], bool] = lambda: False
    ) -> Evaluation | None:
        """Evaluates; every process takes its share of the images and has the result.

        Args:
          variables: The model's.
          stop: Asked before every batch; where it says yes, the result is None.
        """
        config, source = self._config, self._source
        metric = self._task.metric(source)
        with contextlib.closing(inputs.open_eval_loader(config, source)) as batches:
            pictures = self._judge(variables, batches, metric, stop)
        if pictures is None:
            return None
        metric.merge(_gather(metric.state()))
        data = inputs.describe_data(config, source)
        figures: dict[str, bytes] = {}
        if jax.process_index() == 0:
            figures = {n: draw.figure_png(f) for n, f in metric.figures().items()}
        return Evaluation(metric.compute(), metric.files(), figures, pictures, data)

    def _judge(
        self,
        variables: Variables,
        batches: Any,
        metric: Metric,
        stop: Callable[[], bool],
    ) -> list[np.ndarray] | None:
        """Shows the metric this process's images; returns pictures, None if stopped."""
        pictures = []
        for batch in batches:
            if stop():
                return None
            arrays = {name: batch[name] for name in ("images", "sizes")}
            found = local_rows(
                self._predict(variables, **sharding.to_devices(arrays, self._mesh))
            )
            for row, image_id in enumerate(batch["image_id"]):
                if image_id < 0:  # completes a batch
                    continue
                prediction = jax.tree.map(operator.itemgetter(row), found)
                geometry = Geometry.of(
                    batch["original_sizes"][row],
                    batch["sizes"][row],
                    batch["images"].shape[1:3],
                )
                metric.update(prediction, int(image_id), geometry)
                if len(pictures) < self._config.eval.pictures:
                    height, width = geometry.size
                    image = batch["images"][row, :height, :width]
                    example = self._source[int(batch["index"][row])]
                    pictures.append(self._picture(image, example, prediction, geometry))
        return pictures

    def _picture(
        self, image: np.ndarray, example: Any, prediction: Any, geometry: Geometry
    ) -> np.ndarray:
        """Draws what is true and what is predicted of an image, as the network saw it.

        Args:
          image: [h, w, 3], of `geometry.size`.
          example: With the ground truth.
          prediction: Of the network.
          geometry: From the example's image to the canvas.
        """
        config, categories = self._config, self._source.categories
        truth = self._task.draw_truth(image, example, geometry, categories, config.data)
        found = self._task.draw(
            image,
            prediction,
            geometry._replace(original=geometry.size),
            categories,
            config.eval.picture_score,
        )
        return draw.beside({"ground truth": truth, "prediction": found})


def make_predict(skeleton: Skeleton, mesh: Mesh):
    """Returns the compiled `predict(variables, images, sizes)` of the network."""

    def predict(variables, images, sizes):
        return skeleton.model(variables).predict(images, sizes)

    return jax.jit(predict, out_shardings=sharding.divided(mesh))


def local_rows(predictions: Any) -> Any:
    """Returns this process's rows of a NamedTuple of arrays, in order, on the host."""

    def rows(array: jax.Array) -> Any:
        # Along the axis `model` the same rows stand on several devices.
        shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    return jax.tree.map(rows, predictions)


def _gather(state: Any) -> list[Any]:
    """Returns the states of all processes."""
    if jax.process_count() == 1:
        return [state]
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([text.size], np.int32))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    parts = multihost_utils.process_allgather(padded)
    return [
        json.loads(part[:size].tobytes())
        for part, size in zip(parts, sizes.ravel(), strict=True)
    ]


def write_evaluation(folder: Path, step: int, evaluation: Evaluation) -> None:
    """Writes evaluation.json, the files beside it and the pictures; logs the scores."""
    record = {
        "step": step,
        "data": evaluation.data,
        "figures": list(evaluation.figures),
        **evaluation.groups(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pictures = folder / "pictures"
    # Those of the evaluation that lay here; any other picture is somebody's own.
    if (folder / "evaluation.json").exists():
        for stale in pictures.glob("*.png"):
            if re.fullmatch(r"\d{3,}|grid", stale.stem, re.ASCII):
                stale.unlink()
    for name, content in evaluation.files.items():
        write_whole(folder / name, json.dumps(content))
    for name, png in evaluation.figures.items():
        write_whole(folder / name, png)
    write_whole(folder / "evaluation.json", json.dumps(record, indent=2) + "\n")
    for i, picture in enumerate(evaluation.pictures):
        draw.save_picture(pictures / f"{i:03}.png", picture)
    if evaluation.pictures:
        draw.save_picture(pictures / "grid.png", draw.grid(evaluation.pictures))
    _log.info("evaluation of step %d on %s:", step, evaluation.data["split"])
    for group, scores in evaluation.summary().items():
        shown = [f"{name} {_shown(value)}" for name, value in scores.items()]
        for start in range(0, len(shown), _IN_A_LINE):
            line = "  ".join(shown[start : start + _IN_A_LINE])
            _log.info("  %s: %s", group, line)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
