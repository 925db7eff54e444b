"""Bins of a RoI on an image.

Shape letters: h w bins.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize

from dcn_jax.explain.figures.image import COLOUR_MAP

# Opacity of what a bin covers, and of its edge, where the mask is largest.
_FACE, _EDGE = 0.45, 1.0


def draw_bins(
    axes: Axes,
    centre: Float[Array | np.ndarray, "h w 2"],
    size: Float[Array | np.ndarray, "2"],
    mask: Float[Array | np.ndarray, "h w"],
    roi: Sequence[int | float],
    *,
    strength: Float[Array | np.ndarray, "h w"] | None = None,
) -> ScalarMappable:
    """Draws a RoI, where its bins would lie, and where they do.

    The bins' opacity is their mask, and their colour the strength, where there is one;
    the strongest are on top. The grid they would form is thin and grey.

    Args:
      axes: Show the image, see `show_image`.
      centre: (y, x) as of `BinLocations`, like all that follows.
      size: (height, width) of each.
      mask: Factors.
      roi: x1 y1 x2 y2 in pixels of the image.
      strength: Of the gradient by the location.

    Returns:
      The colours, as shares of the greatest strength; for a colour bar.
    """
    h, w = centre.shape[:2]
    middle = np.asarray(centre).reshape(-1, 2)[:, ::-1] - 0.5
    half = np.asarray(size)[::-1] / 2
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    factor = np.asarray(mask).reshape(-1)
    opacity = factor / max(1e-30, factor.max())
    share = np.ones(h * w)
    if strength is not None:
        norm = np.asarray(strength).reshape(-1)
        share = norm / max(1e-30, norm.max())
    order = np.argsort(share, kind="stable")
    colours = ScalarMappable(Normalize(0, 1), matplotlib.colormaps[COLOUR_MAP])
    faces = colours.to_rgba(share)
    edges = faces.copy()
    faces[:, 3], edges[:, 3] = _FACE * opacity, _EDGE * opacity
    bins = PolyCollection(
        list((middle[:, None] + corners[None])[order]),
        facecolors=faces[order],
        edgecolors=edges[order],
        linewidths=0.9,
        zorder=3,
    )
    axes.add_collection(bins, autolim=False)
    _draw_grid(axes, roi, h, w)
    return colours


def _draw_grid(axes: Axes, roi: Sequence[int | float], h: int, w: int) -> None:
    x1, y1, x2, y2 = np.asarray(roi, np.float64) - 0.5
    rows, columns = np.linspace(y1, y2, h + 1), np.linspace(x1, x2, w + 1)
    lines = [[(x1, y), (x2, y)] for y in rows] + [[(x, y1), (x, y2)] for x in columns]
    outer = [lines[0], lines[h], lines[h + 1], lines[-1]]
    looks = (lines, "0.55", 0.5), (outer, "black", 1.8), (outer, "white", 1.0)
    for drawn, colour, width in looks:
        grid = LineCollection(drawn, colors=colour, linewidths=width, zorder=2)
        axes.add_collection(grid, autolim=False)
