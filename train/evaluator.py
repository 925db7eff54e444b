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
from train.offset_picture import OffsetPicture
from train.skeleton import Skeleton, Variables
from train.task import Metric, Task
from train.whole_file import write_whole

_log = logging.getLogger("train")
# Scores in a line of the log: half of COCO's.
_IN_A_LINE = 6
# How the name of a group ends that lists every class.
_BY_CLASS = "_per_class"
# Pixels of the longer side of all pictures in one.
_SHEET = 2048


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
        groups = self.groups().items()
        return {g: scores for g, scores in groups if not g.endswith(_BY_CLASS)}

    def scalars(self) -> dict[str, float]:
        """Returns the numbers of the summary as eval/GROUP/NAME."""
        return _scalars(self.summary())

    def scalars_by_class(self) -> dict[str, float]:
        """Returns the other numbers as eval/GROUP/NAME."""
        groups = self.groups().items()
        return _scalars({g: scores for g, scores in groups if g.endswith(_BY_CLASS)})

    def shown(self) -> dict[str, bytes]:
        """Returns the figures, and the pictures in one, as eval/NAME -> PNG."""
        figures = {Path(name).stem: png for name, png in self.figures.items()}
        if self.pictures:
            sheet = draw.at_most(draw.grid(self.pictures), _SHEET)
            figures["pictures"] = draw.encoded(sheet)
        return {f"eval/{name}": png for name, png in figures.items()}


def _scalars(groups: dict[str, dict[str, float | None]]) -> dict[str, float]:
    return {
        f"eval/{group}/{name}": value
        for group, scores in groups.items()
        for name, value in scores.items()
        if value is not None
    }


class _Shown(NamedTuple):
    """What is drawn of an evaluation."""

    pictures: list[np.ndarray]
    offsets: bytes | None


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
        self._offsets = OffsetPicture(skeleton, mesh)

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
            shown = self._judge(variables, batches, metric, stop)
        if shown is None:
            return None
        metric.merge(_gather(metric.state()))
        data = inputs.describe_data(config, source)
        figures: dict[str, bytes] = {}
        if jax.process_index() == 0:
            figures = {n: draw.figure_png(f) for n, f in metric.figures().items()}
            if shown.offsets is not None:
                figures["offsets.png"] = shown.offsets
        scores, files = metric.compute(), metric.files()
        return Evaluation(scores, files, figures, shown.pictures, data)

    def _judge(
        self,
        variables: Variables,
        batches: Any,
        metric: Metric,
        stop: Callable[[], bool],
    ) -> _Shown | None:
        """Shows the metric this process's images; returns pictures, None if stopped."""
        pictures: list[np.ndarray] = []
        offsets = None
        for number, batch in enumerate(batches):
            if stop():
                return None
            names = ("images", "sizes")
            arrays = sharding.to_devices({n: batch[n] for n in names}, self._mesh)
            found = local_rows(self._predict(variables, **arrays))
            if number == 0 and self._config.eval.pictures:
                offsets = self._offset_picture(variables, arrays, batch)
            for row, image_id in enumerate(batch["image_id"]):
                if image_id < 0:  # completes a batch
                    continue
                prediction = jax.tree.map(operator.itemgetter(row), found)
                geometry = _geometry(batch, row)
                metric.update(prediction, int(image_id), geometry)
                if len(pictures) < self._config.eval.pictures:
                    height, width = geometry.size
                    image = batch["images"][row, :height, :width]
                    example = self._source[int(batch["index"][row])]
                    pictures.append(self._picture(image, example, prediction, geometry))
        return _Shown(pictures, offsets)

    def _offset_picture(
        self, variables: Variables, arrays: Any, batch: dict[str, np.ndarray]
    ) -> bytes | None:
        """Draws the offsets on the first image, where this process has it."""
        fields = self._offsets.fields(variables, arrays)
        if jax.process_index() != 0:
            return None
        geometry = _geometry(batch, 0)
        height, width = geometry.size
        return self._offsets.png(fields, batch["images"][0, :height, :width], geometry)

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


def _geometry(batch: dict[str, np.ndarray], row: int) -> Geometry:
    sizes = batch["original_sizes"][row], batch["sizes"][row]
    return Geometry.of(*sizes, batch["images"].shape[1:3])


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
    _remove_pictures(folder)
    for name, content in evaluation.files.items():
        write_whole(folder / name, json.dumps(content))
    for name, png in evaluation.figures.items():
        write_whole(folder / name, png)
    write_whole(folder / "evaluation.json", json.dumps(record, indent=2) + "\n")
    pictures = folder / "pictures"
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


def _remove_pictures(folder: Path) -> None:
    """Removes those of the evaluation that lies in a folder.

    Any other picture is somebody's own.
    """
    path = folder / "evaluation.json"
    if not path.exists():
        return
    for picture in (folder / "pictures").glob("*.png"):
        if re.fullmatch(r"\d{3,}|grid", picture.stem, re.ASCII):
            picture.unlink()
    # A damaged one is replaced.
    with contextlib.suppress(ValueError):
        for name in figures_of(json.loads(path.read_text())):
            (folder / name).unlink(missing_ok=True)


def figures_of(record: Any) -> list[str]:
    """Names of the figures beside an evaluation.json, of what that holds."""
    names = record.get("figures", []) if isinstance(record, dict) else []
    return [n for n in names if isinstance(n, str) and re.fullmatch(r"\w+\.png", n)]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
