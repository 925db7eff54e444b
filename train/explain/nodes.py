"""Nodes: the positions and RoIs of an image that are explained.

Coordinates are pixels of the given image: positions count pixels from their centres,
the first of which is at 0; boxes count edges, so that the first pixel is from 0 to 1.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dcn_jax.quoting import quoted

AUTO = "auto"


class Position(NamedTuple):
    """A position of a map, the nearest to a pixel."""

    label: str
    x: float
    y: float


class RoI(NamedTuple):
    """A region of interest."""

    label: str
    box: tuple[float, float, float, float]  # x1 y1 x2 y2


Node = Position | RoI


def parse_node(text: str) -> Node | None:
    """Returns what `--node` says; None is "auto".

    Raises:
      ValueError: It is none of "x,y", "roi=x1,y1,x2,y2" and "auto".
    """
    if text == AUTO:
        return None
    match = re.fullmatch(r"(roi=)?([^=]+)", text)
    try:
        numbers = [float(part) for part in match[2].split(",")] if match else []
    except ValueError:
        numbers = []
    if match and all(map(math.isfinite, numbers)):
        if match[1] and len(numbers) == 4:
            x1, y1, x2, y2 = numbers
            return RoI(f"RoI {match[2]}", (x1, y1, x2, y2))
        if not match[1] and len(numbers) == 2:
            return Position(f"position {match[2]}", *numbers)
    raise ValueError(
        f"`--node` is {quoted(text)}; expected x,y, roi=x1,y1,x2,y2 or {AUTO}."
    )


def check_node(node: Node, size: tuple[int, int]) -> None:
    """Refuses a node outside of an image.

    Args:
      node: As it was given.
      size: (height, width) of the image.

    Raises:
      ValueError: It is not on the image, or a box has no area.
    """
    height, width = size
    image = f"the image, which has {width} x {height} pixels (width x height)"
    if isinstance(node, Position):
        if not (0 <= node.x <= width - 1 and 0 <= node.y <= height - 1):
            raise ValueError(
                f"`--node` is {node.x:g},{node.y:g}; expected a pixel of {image}."
            )
        return
    x1, y1, x2, y2 = node.box
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(
            f"`--node` is roi={x1:g},{y1:g},{x2:g},{y2:g}; expected x1 < x2 and "
            f"y1 < y2 on {image}."
        )


def choose_nodes(
    boxes: Float[np.ndarray, "D 4"],
    size: tuple[int, int],
    pixels: Float[np.ndarray, "P Q 2"],
    *,
    rois: bool,
) -> list[Node]:
    """Chooses a small object, a large object, and background.

    Objects are the boxes of least and of most area, and their centres. Background is
    the position of the map that is farthest from all boxes and from the border of the
    image, and round it a square as large as the mean (geometric) of both objects.
    Without boxes it is the middle of the image, and a box of half its sides.

    Args:
      boxes: Of objects, x1 y1 x2 y2.
      size: (height, width) of the image.
      pixels: (y, x) of the map's positions.
      rois: Whether boxes are nodes too.

    Returns:
      Positions, and then RoIs if wanted.
    """
    height, width = size
    if not len(boxes):
        middle = np.array([width / 4, height / 4, 3 * width / 4, 3 * height / 4])
        return _with_rois({"the middle": middle}, size, rois)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    small, large = int(areas.argmin()), int(areas.argmax())
    chosen = {"object": boxes[small]}
    if small != large:
        chosen = {"small object": boxes[small], "large object": boxes[large]}
    centre = _farthest(boxes, pixels, size)
    if centre is not None:
        half = (areas[small] * areas[large]) ** 0.25 / 2
        chosen["background"] = np.concatenate([centre - half, centre + half])
    return _with_rois(chosen, size, rois)


def _farthest(
    boxes: Float[np.ndarray, "D 4"],
    pixels: Float[np.ndarray, "P Q 2"],
    size: tuple[int, int],
) -> Float[np.ndarray, "2"] | None:
    """(x, y), in edges, of the position farthest from boxes; None: all are in boxes."""
    centres = pixels.reshape(-1, 1, 2)[..., ::-1] + 0.5
    outside = np.maximum(boxes[:, :2] - centres, centres - boxes[:, 2:]).clip(0)
    distance = np.hypot(*np.moveaxis(outside, -1, 0)).min(1)
    border = np.minimum(centres, np.asarray(size[::-1]) - centres).min((1, 2))
    distance = np.minimum(distance, border)
    best = int(distance.argmax())
    return centres[best, 0] if distance[best] > 0 else None


def _with_rois(
    chosen: dict[str, np.ndarray], size: tuple[int, int], rois: bool
) -> list[Node]:
    height, width = size
    edges = np.array([width, height, width, height])
    nodes: list[Node] = []
    for label, box in chosen.items():
        x, y = ((box[:2] + box[2:]) / 2 - 0.5).clip(0, edges[:2] - 1)
        nodes.append(Position(label, float(x), float(y)))
    if rois:
        for label, box in chosen.items():
            x1, y1, x2, y2 = box.clip(0, edges).tolist()
            nodes.append(RoI(label, (x1, y1, x2, y2)))
    return nodes


def labelled(nodes: Sequence[Node]) -> str:
    """Returns nodes as a line of the log says them."""
    return "; ".join(
        f"{node.label} at {node.x:.0f},{node.y:.0f}"
        if isinstance(node, Position)
        else f"{node.label} roi=" + ",".join(f"{edge:.0f}" for edge in node.box)
        for node in nodes
    )
