"""One HTML file that holds all it shows: it opens from a disk, without a server.

Bokeh (BSD-3) draws it. What a click shows is in the page already, so it costs no pass
of the network, however large that is. The page forbids its browser to load anything
from elsewhere.

Shape letters: H W image.
"""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.resources import Resources
from jaxtyping import Num, UInt8

from dcn_jax.explain import Atlas, node_atlas
from train.explain.viewer.columns import (
    LEVELS,
    STEPS,
    detection_columns,
    node_columns,
    point_columns,
)
from train.explain.viewer.detected import NOTHING, Detected, check_detected
from train.explain.viewer.plots import PALETTE, make_plots, whole_view
from train.whole_file import write_whole

_FOLDER = Path(__file__).parent


def write_viewer(
    path: Path,
    model: Any,
    call: Callable[[Any, Any], Any],
    image: Num[np.ndarray, "H W 3"],
    *,
    title: str,
    detected: Detected = NOTHING,
    size: tuple[int, int] | None = None,
    layers: int | Sequence[str] = 3,
    gradient: bool = False,
    most_nodes: int = 256,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Explains all nodes of a map and writes the page.

    Args:
      path: The file, as viewer.html.
      model: See `dcn_jax.explain.node_atlas`.
      call: Returns the map of the nodes, see there.
      image: RGB, 0 to 255, as the model takes it.
      title: Of the page.
      detected: What the network found, in pixels of `image`.
      size: (height, width) of what of `image` is no padding. None: all of it.
      layers: Layers that are stacked, see `dcn_jax.explain.node_atlas`.
      gradient: Whether points are as strong as gradients, or as weights.
      most_nodes: How many nodes there are at most.
      report: Told how many nodes are done, and how many there are.

    Raises:
      OSError: The file cannot be written.
      TypeError, ValueError: An argument is not as it should be.
    """
    check_detected(detected)
    atlas = node_atlas(
        *(model, call, image),
        size=size,
        layers=layers,
        gradient=gradient,
        most_nodes=most_nodes,
        report=report,
    )
    height, width = atlas.size
    picture = np.asarray(image)[:height, :width].astype(np.uint8)
    page = viewer_page(picture, atlas, title=title, detected=detected)
    write_whole(path, page)


def viewer_page(
    image: UInt8[np.ndarray, "H W 3"],
    atlas: Atlas,
    *,
    title: str,
    detected: Detected = NOTHING,
) -> str:
    """Returns the page; of the same arguments, the same.

    Args:
      image: RGB, without padding.
      atlas: Of the image.
      title: Any text.
      detected: What was found on the image.

    Raises:
      ValueError: The image has another size than the atlas, or detections differ in
        number.
    """
    if image.shape != (*atlas.size, 3):
        raise ValueError(
            f"`image` has shape {image.shape}; expected {(*atlas.size, 3)}, the size "
            "of the atlas in RGB"
        )
    check_detected(detected)
    columns = [
        node_columns(atlas),
        detection_columns(detected),
        *(point_columns(p, f"points {i}") for i, p in enumerate(atlas.points)),
    ]
    plots = make_plots(image, atlas.field.shape[1:], atlas.cell, columns)
    document = Document(title=title)
    for plot in plots:
        document.add_root(plot)
    content, names = _numbered(document.to_json(deferred=False))
    roots = {names[plot.id]: plot.name for plot in plots}
    facts = _facts(atlas, detected) | {"roots": roots}
    template = Template((_FOLDER / "page.html").read_text())
    return template.substitute(
        title=html.escape(title),
        gradient=", ".join(PALETTE[::15]),
        bokeh=Resources(mode="inline", components=["bokeh"]).render(),
        notes=_notes(atlas, detected),
        document=_in_script(content),
        facts=_in_script(facts),
        script=(_FOLDER / "page.js").read_text(),
    )


def _facts(atlas: Atlas, detected: Detected) -> dict[str, Any]:
    """What the page knows beside the columns."""
    bins = detected.bins
    place = np.asarray(atlas.size[::-1]) / 2
    if len(detected.names):
        x1, y1, x2, y2 = detected.boxes[np.argmax(detected.scores)]
        place = np.asarray([x1 + x2, y1 + y2]) / 2
    return {
        "stride": atlas.stride,
        "map_size": atlas.map_size,
        "steps": STEPS,
        "levels": LEVELS,
        "view": whole_view(*atlas.size)._asdict(),
        "first": {
            "place": {"x": float(place[0]), "y": float(place[1])},
            "stack": int(np.argmax([len(points.layers) for points in atlas.points])),
        },
        "stacks": _stack_names(atlas),
        "layers": [points.layers for points in atlas.points],
        "counts": [points.count for points in atlas.points],
        "bins": None if bins is None else bins.mask.shape[1:],
        # Modulation of 1 changes nothing, and some layers' is up to 2.
        "most_mask": 1.0 if bins is None else float(np.max(bins.mask, initial=1)),
    }


def _stack_names(atlas: Atlas) -> list[str]:
    """How each stack of layers is offered for choice."""
    deepest = max((points.layers for points in atlas.points), key=len)
    return [
        f"{count} layer{'s' * (count > 1)} from the node down"
        if layers == deepest[: (count := len(layers))]
        else f"Only {layers[0] or 'the model'}"
        for layers in (points.layers for points in atlas.points)
    ]


def _notes(atlas: Atlas, detected: Detected) -> str:
    """What the numbers are, as paragraphs."""
    strength = "its weight: the product of modulations and kernel norms"
    if atlas.gradient:
        strength = "the gradient of the node's response by its place"
    step = "every position"
    count = len(atlas.nodes)
    if count < np.prod([-(-side // atlas.stride) for side in atlas.size]):
        step = f"{count} positions"
    notes = [
        f"<b>Nodes</b> are {step} of the map; position x lies at pixel "
        f"{atlas.stride} · x. The nearest to the place is shown, as a cross.",
        "<b>Points</b> are where the chosen layers, from the node down, read for it. "
        f"Size and colour say {strength}. White crosses are outside of the map, or "
        "come from a point that is.",
        "<b>The receptive field</b> is the gradient of the node's response by each "
        f"pixel, the mean over {atlas.cell} × {atlas.cell} pixels. Its side by area is "
        "that of a square with as many pixels as are above 4.55 % of the strongest; "
        "that with 99 %, of the smallest square round the node with so much of all "
        "strength, part of which may lie outside of the image.",
        "<b>Colours</b> are square roots of strengths, as a share of the node's "
        "strongest.",
    ]
    if detected.bins is not None:
        notes.append(
            "<b>Bins</b> are where a detection's box is pooled as a RoI. Their colour "
            "is their modulation, from 0 to the largest of the image, at least 1."
        )
    return "\n".join(f"<p>{note}</p>" for note in notes)


def _in_script(value: Any) -> str:
    """JSON that may stand in a script element, whatever names are in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _numbered(content: Any) -> tuple[Any, dict[str, str]]:
    """The same document with models numbered from 0, and old -> new names.

    Bokeh counts all models of a process, so the same page would not be the same twice.
    """
    names: dict[str, str] = {}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: names.setdefault(part, f"m{len(names)}")
                if key == "id" and isinstance(part, str)
                else renamed(part)
                for key, part in value.items()
            }
        if isinstance(value, list | tuple):
            return [renamed(part) for part in value]
        return value

    return renamed(content), names
