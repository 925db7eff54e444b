"""Nodes of networks in one figure: a page of one node, and the sheet of the papers.

Shape letters: H W image, h w bins.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from dcn_jax.explain.figures.bins import draw_bins
from dcn_jax.explain.figures.image import grey, show_image
from dcn_jax.explain.figures.locations import draw_locations
from dcn_jax.explain.figures.receptive_field import PERCENTILE, draw_receptive_field
from dcn_jax.explain.figures.saliency import draw_error_curve, draw_saliency
from dcn_jax.explain.saliency import SaliencyRegion

# Room around the places that are read where some lie outside of the image, as a share
# of its longer side.
_MARGIN = 0.06
# Lengths of a sheet in inches: the longer side of a picture, gaps between pictures and
# between networks, the least width, the rims.
_CELL, _GAP, _GROUP, _LEAST = 2.0, 0.06, 0.22, 5.0
_LEFT, _TOP, _BOTTOM = 0.3, 0.5, 0.5
# Above a picture of a region, for its title.
_TITLE = 0.2
# Areas of the strongest markers of a sheet in points^2.
_MARKER = 16.0
_CAPTION = (
    "{places}\n"
    f"Receptive fields: gradient by the pixel, to percentile {PERCENTILE:g}.\n"
    "Regions: error at most {bound:g}; dashed: where they were searched."
)
_OF_POINTS = (
    "Points: size and colour are the gradient by the place; crosses are outside of the "
    "map."
)
_OF_BINS = "Bins: colour is the gradient by the place, opacity the mask."


class Points(NamedTuple):
    """Where a position's convolutions read, as `draw_locations` takes it."""

    position: Float[np.ndarray, "points 2"]
    strength: Float[np.ndarray, "points *c"]
    inside: Bool[np.ndarray, " points"]
    node: Sequence[int | float]


class RoIBins(NamedTuple):
    """Where a RoI is pooled, as `draw_bins` takes it."""

    centre: Float[np.ndarray, "h w 2"]
    size: Float[np.ndarray, "2"]
    mask: Float[np.ndarray, "h w"]
    roi: Sequence[int | float]
    strength: Float[np.ndarray, "h w"]


class NodeView(NamedTuple):
    """What a network sees of a node, in pixels of the image that it was given."""

    label: str
    where: Points | RoIBins
    field: Float[np.ndarray, "H W"]  # strength of the receptive field
    saliency: SaliencyRegion


class NetworkView(NamedTuple):
    """An image as a network was given it, and what it sees of nodes there."""

    image: UInt8[np.ndarray, "H W 3"]
    nodes: Sequence[NodeView]


def node_page(
    networks: Mapping[str, NetworkView], index: int, *, bound: float
) -> Figure:
    """Returns a figure of one node: a row for each network.

    Each has the places that are read, the receptive field, the saliency region, and the
    curve of that one's error.

    Args:
      networks: Name -> what it sees.
      index: Of the node.
      bound: Of the saliency regions' error.
    """
    height, width = next(iter(networks.values())).image.shape[:2]
    row = 3.4 * min(1.3, height / width) + 0.4
    figure = Figure((15.0, row * len(networks) + 0.4), layout="constrained")
    axes = figure.subplots(len(networks), 4, squeeze=False)
    margin = _margin(networks)
    for line, (name, network) in zip(axes, networks.items(), strict=True):
        node = network.nodes[index]
        places = _draw_where(line[0], network.image, node.where, margin)
        _add_bar(figure, line[0], places, "gradient by the place / the strongest")
        heat = draw_receptive_field(line[1], network.image, node.field)
        label = f"gradient by the pixel, to percentile {PERCENTILE:g}"
        _add_bar(figure, line[1], heat, label, extend="max")
        draw_saliency(line[2], network.image, node.saliency)
        draw_error_curve(line[3], node.saliency, bound=bound)
        line[3].set_box_aspect(1)
        line[0].set_ylabel(name, fontsize=10)
        titles = (_title(node.where), "effective receptive field")
        for axis, title in zip(line, titles, strict=False):
            axis.set_title(title, fontsize=8, pad=3)
    first = next(iter(networks.values())).nodes[index]
    figure.suptitle(first.label, fontsize=11)
    return figure


def sheet(networks: Mapping[str, NetworkView], *, bound: float) -> Figure:
    """Returns the figure of the papers: a block for each network.

    A block has a column for each node, and rows of the places that are read, receptive
    fields and saliency regions, as Figures 1 and 2 of Zhu et al. 2019 (arXiv:
    1811.11168), whose nodes are a small object, a large object and the background.

    Args:
      networks: Name -> what it sees; all have the same nodes, of one kind.
      bound: Of the saliency regions' error.
    """
    first = next(iter(networks.values()))
    height, width = first.image.shape[:2]
    margin = _margin(networks)
    room = margin * _CELL
    gap = _GAP + 2 * room
    wide, high = (_CELL * side / max(height, width) for side in (width, height))
    count = len(first.nodes)
    block = count * wide + (count - 1) * gap
    total = _LEFT + len(networks) * (block + _GROUP + 2 * room)
    # Below the first row is room for its points, above the last are titles.
    tops = np.cumsum([_TOP + room, high + _GAP + room, high + _GAP + _TITLE])
    figure = Figure((max(total, _LEAST), tops[2] + high + _BOTTOM))
    size = figure.get_size_inches()

    def cell(row: int, left: float) -> Axes:
        around = room if row == 0 else 0.0
        corner = left - around, size[1] - tops[row] - high - around
        extent = wide + 2 * around, high + 2 * around
        return figure.add_axes((*(corner / size), *(extent / size)))

    for i, (name, network) in enumerate(networks.items()):
        start = _LEFT + room + i * (block + _GROUP + 2 * room)
        middle = (start + block / 2) / size[0]
        figure.text(middle, 1 - 0.06 / size[1], name, ha="center", va="top")
        for j, node in enumerate(network.nodes):
            axes = [cell(row, start + j * (wide + gap)) for row in range(3)]
            _draw_column(axes, network.image, node, margin)
            if i == j == 0:
                _label_rows(axes, node)
    roi = isinstance(first.nodes[0].where, RoIBins)
    caption = _CAPTION.format(places=_OF_BINS if roi else _OF_POINTS, bound=bound)
    corner = _LEFT / size[0], 0.06 / size[1]
    figure.text(*corner, caption, ha="left", va="bottom", fontsize=7)
    return figure


def _label_rows(axes: Sequence[Axes], node: NodeView) -> None:
    rows = (_title(node.where), "receptive field", "saliency region")
    for axis, row in zip(axes, rows, strict=True):
        axis.set_ylabel(row, fontsize=9)


def _add_bar(
    figure: Figure, axes: Axes, colours: ScalarMappable, label: str, **look: Any
) -> None:
    """Adds a colour bar with the ends of its scale."""
    end = colours.get_clim()[1]
    bar = figure.colorbar(colours, ax=axes, shrink=0.8, aspect=30, pad=0.02, **look)
    bar.set_ticks([0, end], labels=["0", f"{end:.2g}"])
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=7, labelpad=-8)


def _draw_column(
    axes: Sequence[Axes], image: np.ndarray, node: NodeView, margin: float
) -> None:
    _draw_where(axes[0], image, node.where, margin, size=_MARKER)
    draw_receptive_field(axes[1], image, node.field)
    draw_saliency(axes[2], image, node.saliency)
    axes[0].set_title(node.label, fontsize=9, pad=3)
    region = node.saliency
    short = f"{100 * region.region.mean():.1f} %, error {region.error:.3f}"
    axes[2].set_title(short, fontsize=8, pad=3)


def _draw_where(
    axes: Axes, image: np.ndarray, where: Points | RoIBins, margin: float, **size: float
) -> ScalarMappable:
    show_image(axes, grey(image), margin=margin)
    if isinstance(where, RoIBins):
        return draw_bins(axes, *where[:-1], strength=where.strength)
    return draw_locations(axes, *where[:-1], node=where.node, **size)


def _title(where: Points | RoIBins) -> str:
    return "bin locations" if isinstance(where, RoIBins) else "sampling locations"


def _margin(networks: Mapping[str, NetworkView]) -> float:
    """Room for points outside, the same in all pictures."""
    found = False
    for network in networks.values():
        edges = np.asarray(network.image.shape[:2])
        for node in network.nodes:
            if isinstance(node.where, Points):
                found |= not node.where.inside.all()
            else:
                reach = node.where.size / 2
                middle = node.where.centre
                found |= bool(((middle < reach) | (middle > edges - reach)).any())
    return _MARGIN if found else 0.0
