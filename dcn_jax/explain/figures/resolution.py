"""A value by the size of the images, a curve for each network."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Name of a network -> shorter sides in pixels, and the value at each.
Curves = Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]]

# Curves are told apart by marker and line style, in grey too.
_LOOKS = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))
_GREYS = ("black", "0.45")
# Panels in a row, and the inches of one.
_COLUMNS = 4
_WIDTH, _HEIGHT = 3.4, 2.8


class ResolutionPanel(NamedTuple):
    """A value by the shorter side, of several networks."""

    title: str
    value: str  # its name, for the axis
    curves: Curves


def draw_resolution(
    axes: Axes,
    curves: Curves,
    *,
    value: str,
) -> None:
    """Draws how a value depends on the shorter side of the images.

    DCNv2's own figure (Zhu et al. 2019, arXiv:1811.11168, section 4) has the AP of one
    regular and one deformable network at several shorter sides. Here it is any number
    of networks, and any value: an AP as well as the side of a receptive field.

    Args:
      axes: Where.
      curves: Name of a network -> shorter sides in pixels, and the value at each.
      value: Its name, for the axis.
    """
    for i, (name, (sides, values)) in enumerate(curves.items()):
        marker, style = _LOOKS[i % len(_LOOKS)]
        axes.plot(
            *(sides, values),
            color=_GREYS[i % len(_GREYS)],
            marker=marker,
            linestyle=style,
            label=name,
        )
    axes.set_xlabel("shorter side, pixels")
    axes.set_ylabel(value)
    axes.grid(color="0.9")
    axes.legend(fontsize=8, frameon=False)


def resolution_page(panels: Sequence[ResolutionPanel]) -> Figure:
    """Returns a figure with a panel for each value.

    Args:
      panels: In the order of reading, at most four in a row.
    """
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure((_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=False):
        draw_resolution(axis, panel.curves, value=panel.value)
        axis.set_title(panel.title, fontsize=9)
        axis.set_ylim(bottom=0)
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure
