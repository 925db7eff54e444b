"""Trained networks in files, with what is needed to use them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dcn_jax.categories import Category, numbered
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
    file_name: str,
    *,
    segments: bool,
    names: Sequence[str] | None,
    preprocessing: Preprocessing | None,
    dtype: Any,
) -> Loaded:
    """Loads what a file, or the folder of a run, holds.

    Args:
      path: The file or folder.
      file_name: Of the file in a folder.
      segments: Whether the network should label pixels; else it should find boxes.
      names: Of the categories; None takes those of the file.
      preprocessing: None takes that of the file, or the papers'.
      dtype: Of the computation; None is the parameters'.

    Raises:
      OSError: It cannot be opened.
      ValueError: It holds no such network, or another number of categories.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        folder, path = path, path / file_name
        if not path.exists():
            raise FileNotFoundError(
                f"the folder {quoted(str(folder), 500)} has no {file_name}, which a "
                "run of train.main leaves at its end; expected one, or the path of a "
                "file of weights"
            )
    file, shown = read_detector(path), quoted(path.name, 260)
    if (file.network in SEGMENTERS) != segments:
        kind = "labels pixels" if file.network in SEGMENTERS else "finds boxes"
        other = "Segmenter" if file.network in SEGMENTERS else "Detector"
        raise ValueError(
            f"{shown} holds {file.network}, which {kind}; load it by `dcn_jax.{other}`"
        )
    network = build(file, shown, dtype)
    count = file.arguments["num_classes"]
    categories = file.categories or numbered(count)
    if names is not None:
        if len(names) != count:
            raise ValueError(
                f"`names` has {len(names)} names; the network of {shown} tells {count} "
                "classes apart"
            )
        rows = zip(categories, names, strict=True)
        categories = tuple(row._replace(name=str(name)) for row, name in rows)
    chosen = preprocessing or file.preprocessing or Preprocessing()
    return Loaded(network, categories, chosen)
