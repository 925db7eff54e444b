"""Trained networks in files, with what is needed to use them."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcn_jax.categories import Category, numbered
from dcn_jax.images.headers import MAX_PIXELS
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.networks import SEGMENTERS, Network
from dcn_jax.quoting import quoted
from dcn_jax.weights.detector import build
from dcn_jax.weights.detector_file import read_detector


class Loaded(NamedTuple):
    """A network, and what is needed to use it."""

    network: Network
    categories: tuple[Category, ...]
    preprocessing: Preprocessing


def load(
    path: str | os.PathLike,
    kind: str,
    *,
    first_label: int,
    names: Sequence[str] | None,
    coco_ids: bool = True,
    preprocessing: Preprocessing | None,
    dtype: Any,
) -> Loaded:
    """Loads what a file, or the folder of a run, holds.

    Args:
      path: The file or folder.
      kind: "detector" or "segmenter".
      first_label: 0 or 1.
      names: Of the categories; None takes those of the file.
      coco_ids: As in `read_detector`.
      preprocessing: None takes that of the file, or the papers'.
      dtype: Of the computation; None is the parameters'.

    Raises:
      OSError: It cannot be opened.
      ValueError: It holds no such network, or another number of categories.
    """
    segments, file_name = kind == "segmenter", f"{kind}.safetensors"
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        folder, path = path, path / file_name
        if not path.exists():
            _check_other(folder, segments)
            raise FileNotFoundError(
                f"the folder {quoted(str(folder), 500)} has no {file_name}, which a "
                "run of train.main leaves at its end; expected one, or the path of a "
                "file of weights"
            )
    file = read_detector(path, coco_ids=coco_ids)
    shown = quoted(path.name, 260)
    if (file.network in SEGMENTERS) != segments:
        raise ValueError(f"{shown} holds {file.network}{_other(segments)}")
    network = build(file, shown, dtype)
    count = file.arguments["num_classes"]
    categories = file.categories or numbered(count, first_label)
    if names is not None:
        if isinstance(names, str) or len(names) != count:
            raise ValueError(
                f"`names` is {quoted(names)}; expected {count} names, as many as the "
                f"network of {shown} tells classes apart"
            )
        rows = zip(categories, names, strict=True)
        categories = tuple(row._replace(name=str(name)) for row, name in rows)
    chosen = preprocessing or file.preprocessing
    if chosen is None:
        if file.owner == "dcn_jax":
            raise ValueError(
                f"{shown} does not say how its images are prepared; expected "
                "`preprocessing`, as of the configuration that it was trained by"
            )
        chosen = Preprocessing()
    elif preprocessing is None and chosen.max_pixels > MAX_PIXELS:
        # Not for a file to decide.
        chosen = dataclasses.replace(chosen, max_pixels=MAX_PIXELS)
    return Loaded(network, categories, chosen)


def _check_other(folder: Path, segments: bool) -> None:
    """Says so where a folder has the file of the other kind of network."""
    other = "detector" if segments else "segmenter"
    if (folder / f"{other}.safetensors").exists():
        raise ValueError(
            f"the folder {quoted(str(folder), 500)} has a network{_other(segments)}"
        )


def _other(segments: bool) -> str:
    if segments:
        return ", which finds boxes; load it by `dcn_jax.Detector`"
    return ", which labels pixels; load it by `dcn_jax.Segmenter`"
