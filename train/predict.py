"""Finds objects in image files.

`python -m train.predict --config=... [--workdir=...] [--output=DIR] IMAGES...` uses the
newest checkpoint of a run; a folder stands for the JPEG and PNG files in it. DIR gets
every image with its detections drawn, and predictions.json: a list of {"file_name",
"label", "category_id", "bbox", "score"} with boxes as x, y, width, height in pixels of
the image as it is shown (upright).

An image that cannot be read is told and left out. The program then ends with status 1,
when it has done the rest.
"""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from dcn_jax.detection.records import Detections
from dcn_jax.quoting import one_line
from train import cli, draw, interrupt, sharding
from train.config_dict import ConfigDict
from train.data import transforms
from train.data.image_headers import read_header
from train.evaluate import OUTPUT, load_variables, make_detect, original_boxes
from train.whole_file import write_whole

_log = logging.getLogger("train")

_SCORE = flags.DEFINE_float("score", 0.5, "Lowest score of what is drawn and listed.")
# Of the files of a folder, those that are taken for images.
_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
# Bytes of a picture's name that are taken from the image's: file systems have 255.
_NAME_BYTES = 200


@interrupt.interruptible
def main(arguments: list[str]) -> None:
    """Writes pictures and predictions.json for the images named as arguments."""
    # Before the model is loaded: mistakes show at once.
    if not 0 <= _SCORE.value <= 1:
        raise ValueError(f"`--score` is {_SCORE.value}; expected a number from 0 to 1.")
    paths = image_files(arguments)
    output = Path(os.path.expanduser(OUTPUT.value or "predictions"))
    output.mkdir(parents=True, exist_ok=True)
    detector = _Detector(cli.config(), cli.workdir())
    records: list[dict[str, Any]] = []
    failures: list[Exception] = []
    try:
        for number, path in enumerate(paths):
            try:
                image, found = detector(path)
                records += detector.records(path, found)
                name = f"{number:03}_{_beginning(Path(path).stem)}.png"
                draw.save_picture(output / name, detector.picture(image, found))
            except (ValueError, OSError) as error:
                failures.append(error)
                _log.warning("%s", one_line(str(error)))
    finally:
        text = json.dumps(records, indent=2) + "\n"
        write_whole(output / "predictions.json", text)
    done = len(paths) - len(failures)
    _log.info("%d objects in %d images: see %s", len(records), done, output)
    if failures:
        more = f"; and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise ValueError(
            f"{len(failures)} of {len(paths)} images failed: {failures[0]}{more}"
        )


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


class _Detector:
    """The newest checkpoint of a run, and what it says of an image file."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self._data = config.data
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        _, skeleton, self._variables, description = load_variables(
            config, workdir, mesh
        )
        self._categories = description["categories"]
        self._names = [category["name"] for category in self._categories]
        self._detect = make_detect(skeleton, mesh)

    def __call__(self, path: str) -> tuple[np.ndarray, Detections]:
        """Returns the image, and what is found in it, in its pixels.

        Raises:
          ValueError: The image is broken or too large.
          OSError: It cannot be read.
        """
        data = self._data
        file = transforms.read_file(path, data.max_pixels)
        image = transforms.decode_image(file, path, data.max_pixels, upright=True)
        if (tag := read_header(file, path).orientation) != 1:
            shown = one_line(path, 300)
            _log.info("%s is turned as its orientation tag (%d) says", shown, tag)
        canvas, size, scale = transforms.fit_image(
            image,
            canvases=data.canvases,
            short_side=data.eval_short_side,
            max_side=data.max_side,
        )
        found = jax.device_get(self._detect(self._variables, canvas[None], size[None]))
        best = found.valid[0] & (found.scores[0] >= _SCORE.value)
        rows: list[Any] = [field[0][best] for field in found]
        rows[0] = original_boxes(rows[0], scale)
        return image, Detections(*rows)

    def picture(self, image: np.ndarray, found: Detections) -> np.ndarray:
        """Returns the image with what was found drawn on it."""
        boxes, scores, labels, _ = map(np.asarray, found)
        return draw.draw_detections(image, boxes, scores, labels.tolist(), self._names)

    def records(self, path: str, found: Detections) -> Iterator[dict[str, Any]]:
        """Yields the entries of predictions.json."""
        rows = zip(found.boxes, found.scores, found.labels, strict=True)
        for (x1, y1, x2, y2), score, label in rows:
            category = self._categories[label - 1]
            yield {
                "file_name": path,
                "label": category["name"],
                "category_id": category["id"],
                "bbox": [float(v) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": float(score),
            }


if __name__ == "__main__":
    cli.run(main)
