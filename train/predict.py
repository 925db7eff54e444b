"""Predicts what is in image files.

`python -m train.predict --workdir=DIR [--output=DIR] IMAGES...` uses the newest
checkpoint of a run; a folder stands for the JPEG and PNG files in it. The output gets
every image with its prediction drawn, and predictions.json: a list of what was found,
of a detector {"file_name", "label", "category_id", "bbox", "score"} with boxes as x, y,
width, height in pixels of the image as it is shown (upright), and where it predicts
masks "segmentation", run-length encoded as COCO's. Of a label map it lists the pixels
of each category but the background, {"file_name", "label", "category_id", "area",
"segmentation"}. Where no box of an image reaches `--score`, its picture shows the best
three, and says so; none is listed.

An image that cannot be read is told and left out. The program then ends with status 1,
when it has done the rest.
"""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from dcn_jax.images.files import decode_image, read_file
from dcn_jax.images.headers import read_header
from dcn_jax.inference.predictor import Predictor
from dcn_jax.quoting import one_line
from train import cli, conventions, draw, interrupt, sharding
from train.config_dict import ConfigDict
from train.evaluate import load_variables, output_folder
from train.preprocessing import preprocessing_of
from train.task import Task
from train.whole_file import write_whole

_log = logging.getLogger("train")

_SCORE = flags.DEFINE_float(
    "score",
    0.5,
    "Lowest score of what is drawn and listed, or chosen to be explained.",
)
# Of the files of a folder, those that are taken for images.
_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
# Bytes of a picture's name that are taken from the image's: file systems have 255.
_NAME_BYTES = 200


def predict_files(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    files: Sequence[str],
    output: Path,
    score: float,
) -> None:
    """Writes pictures and predictions.json for images.

    Args:
      config: The configuration of a run.
      workdir: Its folder.
      task: Its task.
      files: Images, and folders of them.
      output: Folder for the results.
      score: Lowest score of what is drawn and listed, where predictions have one.

    Raises:
      OSError: There is no such file, or one cannot be read or written.
      ValueError: The configuration or the checkpoint is at fault; or images are, when
        all others are done.
    """
    # Before the model is loaded: mistakes show at once.
    check_score(score)
    paths = image_files(files)
    output.mkdir(parents=True, exist_ok=True)
    config = conventions.kept(config, workdir)
    predictor = _Run(config, workdir, task, score)
    records: list[dict[str, Any]] = []
    failures: list[Exception] = []
    try:
        for number, path in enumerate(paths):
            try:
                found, picture = predictor(path)
                records += ({"file_name": path, **record} for record in found)
                name = f"{number:03}_{_beginning(Path(path).stem)}.png"
                draw.save_picture(output / name, picture)
            except (ValueError, OSError) as error:
                failures.append(error)
                _log.warning("%s", one_line(str(error)))
    finally:
        text = json.dumps(records, indent=2) + "\n"
        write_whole(output / "predictions.json", text)
    done = len(paths) - len(failures)
    _log.info("%d predictions in %d images: see %s", len(records), done, output)
    if failures:
        more = f"; and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise ValueError(
            f"{len(failures)} of {len(paths)} images failed: {failures[0]}{more}"
        )


def lowest_score() -> float:
    """Returns what `--score` says."""
    return _SCORE.value


def check_score(score: float) -> None:
    """Refuses what is no score.

    Raises:
      ValueError: It is not from 0 to 1.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"`--score` is {score}; expected a number from 0 to 1.")


def read_upright(path: str, max_pixels: int) -> np.ndarray:
    """Reads an image as it is shown, [H, W, 3] uint8 RGB.

    Raises:
      ValueError: The image is broken or too large.
      OSError: It cannot be read.
    """
    file = read_file(path, max_pixels)
    image = decode_image(file, path, max_pixels, upright=True)
    if (tag := read_header(file, path).orientation) != 1:
        shown = one_line(path, 300)
        _log.info("%s is turned as its orientation tag (%d) says", shown, tag)
    return image


def image_files(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments, a folder replaced by the images in it, by name.

    Raises:
      FileNotFoundError: There is no such file or folder.
      ValueError: There is no image.
    """
    paths: list[str] = []
    for argument in map(os.path.expanduser, arguments):
        if Path(argument).is_dir():
            paths += _images_in(Path(argument))
        elif Path(argument).is_file():
            paths.append(argument)
        else:
            raise FileNotFoundError(f"{argument}: no such image file or folder")
    if not paths:
        raise ValueError("Expected image files, or folders of them, as arguments.")
    return paths


def _images_in(folder: Path) -> list[str]:
    """Returns the images in a folder; logs what else is there."""
    # Names that begin with a dot are what systems and editors leave beside files.
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".")
    )
    images = [str(path) for path in files if path.suffix.lower() in _ENDINGS]
    others = [path.name for path in files if path.suffix.lower() not in _ENDINGS]
    if not images:
        raise ValueError(
            f"The folder {folder} has no image file; expected some of "
            f"{', '.join(_ENDINGS)}."
        )
    if others:
        _log.info(
            "%s: left out %d files that are no JPEG or PNG by their names, such as %s",
            one_line(str(folder), 300),
            len(others),
            one_line(others[0], 300),
        )
    return images


def _beginning(name: str) -> str:
    return name.encode(errors="replace")[:_NAME_BYTES].decode(errors="ignore")


class _Run:
    """The newest checkpoint of a run, and what it says of an image file."""

    def __init__(self, config: ConfigDict, workdir: Path, task: Task, score: float):
        self._task, self._score = task, score
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        _, skeleton, variables, description = load_variables(
            config, task, workdir, mesh
        )
        self._categories = description["categories"]
        preprocessing = preprocessing_of(config.data)
        self._predict = Predictor(skeleton.model(variables), preprocessing)

    def __call__(self, path: str) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Returns what is found in an image, and the image with that drawn on it.

        Raises:
          ValueError: The image is broken or too large.
          OSError: It cannot be read.
        """
        image = read_upright(path, self._predict.preprocessing.max_pixels)
        found = (*self._predict(image), self._categories, self._score)
        return self._task.records(*found), self._task.draw(image, *found)


@interrupt.interruptible
def main(arguments: list[str], task: Task) -> None:
    """Predicts what is in the images named as arguments."""
    output = output_folder() or Path("predictions")
    score = lowest_score()
    predict_files(cli.config(), cli.workdir(), task, arguments, output, score)


if __name__ == "__main__":
    cli.run(main)
