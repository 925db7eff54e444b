"""The figures of an explanation, as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dcn_jax.explain.figures import (
    NetworkView,
    NodeView,
    Points,
    RoIBins,
    node_page,
    offset_page,
    render,
    sheet,
)
from train.explain.network import ERROR_BOUND, ExplainedNetwork, Explanation
from train.explain.nodes import Position
from train.whole_file import write_whole

_ENDINGS = ("png", "svg")


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG and as SVG.

    Args:
      path: Of both, without their endings.
      figure: What is drawn.

    Raises:
      OSError: It cannot be written.
    """
    for ending in _ENDINGS:
        # A layer's name has dots.
        write_whole(path.with_name(f"{path.name}.{ending}"), render(figure, ending))


def save_nodes(
    folder: Path,
    networks: Mapping[str, ExplainedNetwork],
    found: Mapping[str, Sequence[Explanation]],
    names: Sequence[str],
    sheet_name: str,
) -> None:
    """Writes a page for each node, and the sheet of all.

    Args:
      folder: Where.
      networks: By name.
      found: What each sees of the nodes, which are of one kind.
      names: Of the pages, one for each node.
      sheet_name: Of the sheet.
    """
    views = {
        name: NetworkView(
            networks[name].image, [_view(f, networks[name]) for f in seen]
        )
        for name, seen in found.items()
    }
    for index, name in enumerate(names):
        save_figure(folder / name, node_page(views, index, bound=ERROR_BOUND))
    save_figure(folder / sheet_name, sheet(views, bound=ERROR_BOUND))


def save_offsets(folder: Path, number: int, network: ExplainedNetwork) -> list[str]:
    """Writes a figure for each deformable layer; returns their names.

    Args:
      folder: Where.
      number: Of the network, from 1, for the names.
      network: Has the layers.
    """
    names = []
    for layer, field in network.offsets().items():
        names.append(f"offsets{number}_{layer}")
        title = f"{network.name}: {layer}"
        page = offset_page(network.image, title, field.centre, field.offset, field.mask)
        save_figure(folder / names[-1], page)
    return names


def _view(found: Explanation, network: ExplainedNetwork) -> NodeView:
    where: Any = found.where
    if isinstance(found.node, Position):
        places = Points(where.position, where.gradient, where.inside, found.centre)
    else:
        y, x = network.geometry.scale
        x1, y1, x2, y2 = found.node.box
        strength = np.linalg.norm(where.gradient, axis=-1)
        roi = (x1 * x, y1 * y, x2 * x, y2 * y)
        places = RoIBins(where.centre, where.size, where.mask, roi, strength)
    return NodeView(found.node.label, places, found.field, found.saliency)
