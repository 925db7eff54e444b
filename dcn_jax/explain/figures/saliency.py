"""Saliency regions on an image, and their error by area.

Shape letters: H W image.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from dcn_jax.explain.figures.image import blended, outlined, show_image
from dcn_jax.explain.saliency import SaliencyRegion

# How much of what lies outside of a region is white.
_FADED = 0.75


def draw_saliency(
    axes: Axes,
    image: UInt8[np.ndarray, "H W 3"],
    region: SaliencyRegion,
) -> None:
    """Draws a region: what is outside of it fades; the title is its area and error.

    Its outline is solid; that of the rectangle in which it was searched is dashed.

    Args:
      axes: Where.
      image: RGB, that of the region.
      region: The region.
    """
    inside = region.region
    show_image(axes, blended(image, 1.0, _FADED * ~inside))
    outline = LineCollection(
        list(region_outline(inside)),
        colors="white",
        linewidths=0.8,
        path_effects=outlined(1.8),
        capstyle="projecting",
    )
    axes.add_collection(outline, autolim=False)
    x1, y1, x2, y2 = np.asarray(region.rectangle) - 0.5
    axes.plot(
        *([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]),
        color="black",
        linestyle="--",
        linewidth=0.9,
        scalex=False,
        scaley=False,
        clip_on=False,
    )
    title = f"{100 * inside.mean():.1f} % of the image, error {region.error:.3f}"
    axes.set_title(title, fontsize=8, pad=3)


def region_outline(region: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "n 2 2"]:
    """Returns the edges of pixels between a region and the rest, each (x, y) (x, y)."""
    padded = np.pad(region, 1)
    # Pixel (y, x) reaches from (y - 0.5, x - 0.5) to (y + 0.5, x + 0.5).
    y, x = np.nonzero(padded[1:] != padded[:-1])
    level = np.stack([x - 1.5, y - 0.5, x - 0.5, y - 0.5], -1)
    y, x = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = np.stack([x - 0.5, y - 1.5, x - 0.5, y - 0.5], -1)
    return np.concatenate([level, upright]).reshape(-1, 2, 2)


def draw_error_curve(axes: Axes, region: SaliencyRegion, *, bound: float) -> None:
    """Draws the error of the regions that were tried by their area.

    Args:
      axes: Where.
      region: Has the curves.
      bound: Of the error.
    """
    axes.plot(
        *(100 * region.growth.area, region.growth.error),
        color="0.45",
        linestyle="--",
        marker="s",
        markersize=3.5,
        label="rectangle grows",
    )
    axes.plot(
        *(100 * region.removal.area, region.removal.error),
        color="black",
        linestyle="-",
        marker="o",
        markersize=3.5,
        label="patches are removed",
    )
    axes.axhline(bound, color="black", linestyle=":", linewidth=1, label="bound")
    axes.set_xlabel("area, % of the image")
    axes.set_ylabel("error, 1 - cosine")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
