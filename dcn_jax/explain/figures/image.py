"""An image on axes, beneath what is drawn on it.

Shape letters: H W image.
"""

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patheffects import AbstractPathEffect, Normal, withStroke

# Its lightness grows, and most of those who are colour-blind see it as others do.
COLOUR_MAP = "viridis"
# Weights of R, G, B in the lightness of a pixel, those of ITU-R BT.601.
_LIGHTNESS = (0.299, 0.587, 0.114)


def show_image(
    axes: Axes, image: UInt8[np.ndarray, "H W 3"], *, margin: float = 0.0
) -> AxesImage:
    """Shows an image without axis labels; pixel centres are at whole numbers.

    Args:
      axes: Where.
      image: RGB.
      margin: Room around the image, as a share of its longer side.
    """
    height, width = image.shape[:2]
    shown = axes.imshow(image, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    room = margin * max(height, width)
    axes.set_xlim(-0.5 - room, width - 0.5 + room)
    axes.set_ylim(height - 0.5 + room, -0.5 - room)
    axes.set_facecolor("none")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return shown


def grey(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image without its colours, so that those drawn on it are seen."""
    lightness = np.rint(image @ np.asarray(_LIGHTNESS)).astype(np.uint8)
    return np.repeat(lightness[..., None], 3, axis=2)


def blended(
    image: UInt8[np.ndarray, "H W 3"],
    lightness: float,
    share: Float[np.ndarray, "H W"] | float,
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image that fades into one lightness.

    Args:
      image: RGB.
      lightness: Of what it fades into, 0 is black and 1 white.
      share: How much of that a pixel has.
    """
    share = np.broadcast_to(share, image.shape[:2])[..., None]
    faded = (1 - share) * image + share * 255 * lightness
    return np.rint(faded).astype(np.uint8)


def outlined(width: float) -> list[AbstractPathEffect]:
    """Path effects that put a dark edge round a light line or text, to be seen on all.

    Args:
      width: Of the line with both edges, in points.
    """
    return [withStroke(linewidth=width, foreground="black"), Normal()]
