"""Offsets of a deformable convolution as arrows over an image.

Shape letters: H W image, P Q output map, G offset groups.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from dcn_jax.explain.figures.image import COLOUR_MAP, blended, grey, show_image
from dcn_jax.explain.offset_fields import OffsetField

# Of an image, so many arrows lie along its longer side at most.
_MOST = 24
# How much lighter the image is beneath.
_LIGHTER = 0.55
_COLUMNS = 4


def draw_offsets(
    axes: Axes,
    centre: Float[Array | np.ndarray, "P Q 2"],
    offset: Float[Array | np.ndarray, "P Q 2"],
    mask: Float[Array | np.ndarray, "P Q"] | None = None,
    *,
    every: int = 1,
    magnified: float = 1.0,
    brightest: float = 1.0,
) -> Quiver:
    """Draws arrows from filters to where they move.

    Colours are masks where there are any, else the arrows' lengths.

    Args:
      axes: Show the image, see `show_image`.
      centre: (y, x) in pixels of the image: of an `OffsetField`, times the stride.
      offset: (dy, dx) in pixels of the image, of one offset group.
      mask: Of the same group.
      every: Which positions get an arrow: each that is a multiple of it.
      magnified: How many times longer arrows are than the offsets.
      brightest: Mask at the end of the scale, the layer's `mask_scale`.

    Returns:
      The arrows, for a colour bar.
    """
    place, move = (np.asarray(a)[::every, ::every] for a in (centre, offset))
    place, move = place.reshape(-1, 2), move.reshape(-1, 2)
    if mask is None:
        shade = np.hypot(*move.T)
        end = float(shade.max(initial=0.0)) or 1.0
    else:
        shade, end = np.asarray(mask)[::every, ::every].reshape(-1), brightest
    arrows = axes.quiver(
        *(place[:, 1], place[:, 0], move[:, 1], move[:, 0], shade),
        cmap=COLOUR_MAP,
        angles="xy",
        scale_units="xy",
        scale=1 / magnified,
        units="inches",
        width=0.018,
        edgecolor="black",
        linewidth=0.4,
        zorder=3,
    )
    arrows.set_clim(0, end)
    return arrows


def offset_page(
    image: UInt8[np.ndarray, "H W 3"],
    title: str,
    centre: Float[Array | np.ndarray, "P Q 2"],
    offset: Float[Array | np.ndarray, "P Q G 2"],
    mask: Float[Array | np.ndarray, "P Q G"] | None = None,
) -> Figure:
    """Returns a figure of one layer, with a picture of each offset group.

    Beneath stands which positions have arrows, at most 24 along a side, and how many
    times longer than the offsets they are: 1, 2, 4, ..., so that most do not reach the
    next one.

    Args:
      image: RGB.
      title: Says which layer it is.
      centre: As of `draw_offsets`, like all that follows.
      offset: Of all groups.
      mask: Of all groups.
    """
    groups = offset.shape[2]
    columns = min(groups, _COLUMNS)
    rows = -(-groups // columns)
    height, width = image.shape[:2]
    figure = Figure(
        (4.2 * columns + 0.6, 4.2 * rows * height / width + 0.7), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    every = max(1, -(-max(offset.shape[:2]) // _MOST))
    magnified = _magnification(np.asarray(centre), np.asarray(offset), every)
    brightest = 1.0 if mask is None else max(1.0, float(np.ceil(np.max(mask))))
    beneath = blended(grey(image), 1.0, _LIGHTER)
    for group, axis in enumerate(axes.flat):
        if group >= groups:
            axis.set_visible(False)
            continue
        show_image(axis, beneath)
        of_group = None if mask is None else mask[:, :, group]
        arrows = draw_offsets(
            *(axis, centre, offset[:, :, group], of_group),
            every=every,
            magnified=magnified,
            brightest=brightest,
        )
        if groups > 1:
            axis.set_title(f"offset group {group + 1} of {groups}", fontsize=8)
        if mask is None or group % columns == columns - 1:
            label = "pixels" if mask is None else "mean mask"
            figure.colorbar(arrows, ax=axis, label=label, shrink=0.8)
    figure.suptitle(title, fontsize=10)
    how = _how_drawn(every, magnified)
    figure.supxlabel(f"mean offset of the taps; {how}", fontsize=8)
    return figure


def offset_row(
    image: UInt8[np.ndarray, "H W 3"],
    title: str,
    fields: Mapping[str, OffsetField],
) -> Figure:
    """Returns a figure of several layers, with a picture of each.

    Of offset groups the first is shown. Arrows are drawn as in `offset_page`, and
    beneath each picture stands how.

    Args:
      image: RGB.
      title: Says what is shown.
      fields: By the layer's name, in pixels of the image, as of `first_in_pixels`.
    """
    height, width = image.shape[:2]
    # Beside each picture is a bar of colours.
    size = (4.2 * len(fields), 3.3 * height / width + 1.1)
    figure = Figure(size, layout="constrained")
    row = figure.subplots(1, len(fields), squeeze=False)[0]
    beneath = blended(grey(image), 1.0, _LIGHTER)
    for axis, (layer, field) in zip(row, fields.items(), strict=True):
        show_image(axis, beneath)
        centre, offset = np.asarray(field.centre), np.asarray(field.offset)
        every = max(1, -(-max(offset.shape[:2]) // _MOST))
        magnified = _magnification(centre, offset[:, :, :1], every)
        mask = None if field.mask is None else np.asarray(field.mask)[:, :, 0]
        brightest = 1.0 if mask is None else max(1.0, float(np.ceil(mask.max())))
        arrows = draw_offsets(
            *(axis, centre, offset[:, :, 0], mask),
            every=every,
            magnified=magnified,
            brightest=brightest,
        )
        groups = offset.shape[2]
        axis.set_title(layer + f", group 1 of {groups}" * (groups > 1), fontsize=8)
        axis.set_xlabel(_how_drawn(every, magnified), fontsize=8)
        label = "pixels" if mask is None else "mean mask"
        figure.colorbar(arrows, ax=axis, label=label, fraction=0.05, pad=0.02)
    figure.suptitle(f"{title}; mean offset of the taps", fontsize=10)
    return figure


def _how_drawn(every: int, magnified: float) -> str:
    shown = "every position" if every == 1 else f"one position of {every} x {every}"
    length = "to scale" if magnified == 1 else f"{magnified:g} times as long"
    return f"{shown}; arrows {length}"


def _magnification(
    centre: Float[np.ndarray, "P Q 2"],
    offset: Float[np.ndarray, "P Q G 2"],
    every: int,
) -> float:
    steps = [np.abs(np.diff(centre, axis=axis)).max(initial=0) for axis in (0, 1)]
    room = every * max(steps)
    length = float(np.percentile(np.linalg.norm(offset, axis=-1), 95))
    if not 0 < length < room:
        return 1.0
    return float(2.0 ** np.floor(np.log2(room / length)))
