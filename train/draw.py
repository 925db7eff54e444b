"""Pictures in a grid, and a run's curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from train.whole_file import write_whole

# Curves of each group of an evaluation.
_DRAWN = 3


def grid(pictures: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pictures side by side in about a square, each in an equal cell."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    height = max(p.shape[0] for p in pictures) + 4
    width = max(p.shape[1] for p in pictures) + 4
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def save_picture(path: Path, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes an RGB picture; the ending of `path` says how.

    Raises:
      OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    write_whole(path, encoded.tobytes())


def save_curves(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws losses, health of the offsets and evaluations of a metrics.jsonl by step.

    Of each group of an evaluation, as of "eval/bbox/AP", the first three are drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    # In the order in which they were written.
    names = list(dict.fromkeys(name for record in records for name in record))
    losses = sorted(n for n in names if n == "loss" or n.startswith("loss/"))
    health = sorted(n for n in names if n.startswith("offset/"))
    groups: dict[str, list[str]] = {}
    for name in names:
        if name.startswith("eval/"):
            groups.setdefault(name.rpartition("/")[0], []).append(name)
    scores = [name for group in groups.values() for name in group[:_DRAWN]]
    titles = ("loss", "offsets", "evaluation")
    for axis, title, shown in zip(axes, titles, (losses, health, scores), strict=True):
        for name in shown:
            points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            axis.plot(
                *zip(*points, strict=True), label=name, marker="." * (len(points) < 30)
            )
        axis.set_title(title)
        axis.set_xlabel("step")
        if shown:
            # Below the axes, where it hides no curve.
            axis.legend(
                fontsize="small",
                loc="upper center",
                bbox_to_anchor=(0.5, -0.15),
                ncols=3,
            )
    axes[0].set_yscale("log")
    figure.savefig(path, dpi=100)
    plt.close(figure)
