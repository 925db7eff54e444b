"""Pictures in a grid, and a run's curves."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from train.whole_file import write_whole

# Pixels between pictures, and the least height of a strip above one.
_GAP, _STRIP = 4, 18
# Curves of each group of an evaluation.
_DRAWN = 3


def grid(pictures: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pictures side by side in about a square, each in an equal cell."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    height = max(p.shape[0] for p in pictures) + _GAP
    width = max(p.shape[1] for p in pictures) + _GAP
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * height, i % columns * width
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def beside(
    panels: Mapping[str, UInt8[np.ndarray, "H W 3"]],
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Returns pictures in a row, each under a strip with its name.

    Args:
      panels: By name; smaller ones are at the top of their place.
    """
    height = max(picture.shape[0] for picture in panels.values())
    strip = max(_STRIP, round(height / 24))
    columns = []
    for name, picture in panels.items():
        width = picture.shape[1]
        column = np.full((strip + height, width, 3), 255, np.uint8)
        column[strip : strip + picture.shape[0]] = picture
        cv2.putText(
            column, name, (strip // 4, round(0.75 * strip)), cv2.FONT_HERSHEY_SIMPLEX,
            strip / 36, (0, 0, 0), max(1, strip // 20), cv2.LINE_AA,
        )  # fmt: skip
        columns += [np.full((strip + height, _GAP, 3), 255, np.uint8), column]
    return np.concatenate(columns[1:], axis=1)


def save_picture(path: Path, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes an RGB picture; the ending of `path` says how.

    Raises:
      OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, encoded(picture, path.suffix))


def encoded(picture: UInt8[np.ndarray, "H W 3"], ending: str = ".png") -> bytes:
    """Returns an RGB picture as a file whose name ends so."""
    return cv2.imencode(ending, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def at_most(
    picture: UInt8[np.ndarray, "H W 3"], side: int
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Returns the picture, or one whose longer side has so many pixels."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def figure_png(figure: Any) -> bytes:
    """Returns a matplotlib figure as a PNG file."""
    from dcn_jax.explain.figures import render

    with warnings.catch_warnings():
        # Names may be in scripts that the font does not have; they are boxes then.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        return render(figure, "png", dpi=100)


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
