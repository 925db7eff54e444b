"""Effective receptive fields as heat over an image.

Shape letters: H W image.
"""

import numpy as np
from jaxtyping import Array, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from dcn_jax.explain.figures.image import COLOUR_MAP, blended, grey, show_image

# Of a field's pixels, so many per cent are below the end of the scale.
PERCENTILE = 99.5
# How much darker the image is beneath.
_DARKER = 0.35


def draw_receptive_field(
    axes: Axes,
    image: UInt8[np.ndarray, "H W 3"],
    strength: Float[Array | np.ndarray, "H W"],
    *,
    percentile: int | float = PERCENTILE,
) -> AxesImage:
    """Draws a field over the grey image.

    The scale is linear, from 0 to a percentile of the field; a few pixels far above the
    others would hide them. Opacity is the root of the share of that.

    Args:
      axes: Where.
      image: RGB, that of the field.
      strength: As of `ReceptiveField`.
      percentile: Where the scale ends.

    Returns:
      The heat; its norm ends at the percentile. For a colour bar.
    """
    strength = np.asarray(strength)
    end = float(np.percentile(strength, percentile))
    end = end or float(strength.max()) or 1.0
    show_image(axes, blended(grey(image), 0.0, _DARKER))
    height, width = image.shape[:2]
    return axes.imshow(
        strength,
        cmap=COLOUR_MAP,
        vmin=0,
        vmax=end,
        alpha=np.sqrt(np.clip(strength / end, 0, 1)),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )
