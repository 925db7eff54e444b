"""The three pictures of the page, which move together.

They are drawn from sources that the page fills when somebody points at a place. The
axes are those of boxes: the first pixel is from 0 to 1.

Shape letters: H W image.
"""

from typing import Any, NamedTuple

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    LinearColorMapper,
    PanTool,
    Range1d,
    WheelZoomTool,
)
from bokeh.palettes import Inferno256
from bokeh.plotting import figure
from jaxtyping import UInt8

from train.explain.viewer.columns import LEVELS

# Space round the image, as a share of its longer side: for points that left the map.
_MARGIN = 0.06
# Of a receptive field; the weakest is clear.
_OPACITY = 0.9
# Outlines that are seen on bright and dark pictures, and in grey.
_INK, _PAPER, _BOX = "#000000", "#ffffff", "#56b4e9"
_GROUND = "#3a3a3a"

# From weak to strong: gets brighter evenly, so it is legible in grey too.
PALETTE = Inferno256

# Tells the page where somebody pointed.
_PICK = """
dispatchEvent(new CustomEvent("pick", {detail: {x: cb_obj.x, y: cb_obj.y}}));
"""


class View(NamedTuple):
    """What of the plane is shown."""

    x: tuple[float, float]
    y: tuple[float, float]  # bottom and top


def whole_view(height: int, width: int) -> View:
    """The image with a margin."""
    margin = _MARGIN * max(height, width)
    return View((-margin, width + margin), (height + margin, -margin))


def make_plots(
    image: UInt8[np.ndarray, "H W 3"],
    cells: tuple[int, int],
    cell: int,
    columns: list[ColumnDataSource],
) -> list[figure]:
    """Returns pictures of points, of the receptive field and of detections.

    Args:
      image: RGB.
      cells: (rows, columns) of the receptive field.
      cell: Side of one in pixels.
      columns: What the page reads; the pictures only carry them.
    """
    view = whole_view(*image.shape[:2])
    ranges: dict[str, Any] = {
        "x_range": Range1d(start=view.x[0], end=view.x[1]),
        "y_range": Range1d(start=view.y[0], end=view.y[1]),
    }
    pick = CustomJS(args={"columns": columns}, code=_PICK)
    # Darker than what is drawn on them, whose strongest are the brightest.
    dark = (image * 0.6).astype(np.uint8)
    grey = np.repeat(image.mean(-1, keepdims=True) / 2, 3, axis=-1).astype(np.uint8)
    plots = [
        _plot(name, picture, ranges, view)
        for name, picture in (
            ("points", dark),
            ("field", grey),
            ("detections", image),
        )
    ]
    points, field, detections = plots
    _draw_points(points)
    _draw_field(field, cells, cell)
    _draw_detections(detections)
    node = ColumnDataSource({"x": [], "y": []}, name="shown node")
    for plot in plots:
        for colour, width in ((_INK, 5), (_PAPER, 2)):
            plot.scatter(
                *("x", "y"),
                source=node,
                marker="cross",
                size=18,
                line_color=colour,
                line_width=width,
            )
        # A press is a long click, and a double one comes in place of a second click.
        for event in ("tap", "press", "doubletap"):
            plot.js_on_event(event, pick)
    return plots


def _plot(
    name: str,
    picture: UInt8[np.ndarray, "H W 3"],
    ranges: dict[str, Any],
    view: View,
) -> figure:
    height, width = picture.shape[:2]
    plot = figure(
        **ranges,
        name=f"{name}-picture",
        sizing_mode="scale_width",
        aspect_ratio=(view.x[1] - view.x[0]) / (view.y[0] - view.y[1]),
        toolbar_location=None,
        tools=[
            PanTool(),
            WheelZoomTool(modifiers={"ctrl": True}),
        ],
        min_border=0,
        outline_line_color=None,
        background_fill_color=_GROUND,
    )
    plot.axis.visible = False
    plot.grid.visible = False
    opaque = np.full((height, width, 1), 255, np.uint8)
    pixels = np.concatenate([picture, opaque], axis=-1).view(np.uint32)[..., 0]
    shown = ColumnDataSource({"image": [pixels]})
    plot.image_rgba(image="image", source=shown, x=0, y=0, dw=width, dh=height)
    return plot


def _draw_points(plot: figure) -> None:
    empty: dict[str, Any] = dict(x=[], y=[], level=[], size=[])
    inside = ColumnDataSource(empty, name="shown points")
    outside = ColumnDataSource(dict(x=[], y=[]), name="shown points outside")
    plot.scatter(
        *("x", "y"),
        source=outside,
        marker="x",
        size=7,
        line_color=_PAPER,
        line_alpha=0.8,
    )
    plot.scatter(
        *("x", "y"),
        source=inside,
        size="size",
        fill_color=_by_level(),
        line_color=_INK,
        line_width=0.7,
    )


def _draw_field(plot: figure, cells: tuple[int, int], cell: int) -> None:
    height, width = cells
    shown = ColumnDataSource({"image": [np.zeros(cells, np.uint8)]}, name="shown field")
    clear = [
        f"{colour}{round(255 * _OPACITY * np.sqrt(i / LEVELS)):02x}"
        for i, colour in enumerate(PALETTE)
    ]
    style: dict[str, Any] = {
        "color_mapper": LinearColorMapper(palette=clear, low=0, high=LEVELS)
    }
    plot.image(
        image="image",
        source=shown,
        x=0,
        y=0,
        dw=cell * width,
        dh=cell * height,
        **style,
    )


def _draw_detections(plot: figure) -> None:
    empty: dict[str, Any] = {
        name: [] for name in ("x1", "y1", "x2", "y2", "width", "alpha")
    }
    boxes = ColumnDataSource(empty, name="shown boxes")
    corners: dict[str, Any] = dict(
        left="x1", top="y1", right="x2", bottom="y2", source=boxes
    )
    plot.quad(
        **corners, fill_color=None, line_color=_INK, line_width=4, line_alpha="alpha"
    )
    bins = ColumnDataSource(
        {name: [] for name in ("x", "y", "width", "height", "level")},
        name="shown bins",
    )
    colour = _by_level()
    plot.rect(
        *("x", "y", "width", "height"),
        source=bins,
        fill_color=colour,
        fill_alpha=0.3,
        line_color=_INK,
        line_alpha=0.6,
    )
    plot.scatter(
        *("x", "y"),
        source=bins,
        size=6,
        fill_color=colour,
        line_color=_INK,
        line_width=0.7,
    )
    plot.quad(
        **corners,
        fill_color=None,
        line_color=_BOX,
        line_width="width",
        line_alpha="alpha",
    )
    style: dict[str, Any] = dict(
        anchor="top_left",
        text_font_size="12px",
        text_color=_INK,
        background_fill_color=_BOX,
        padding=2,
    )
    name = ColumnDataSource({"x": [], "y": [], "text": []}, name="shown name")
    plot.text(*("x", "y", "text"), source=name, **style)


def _by_level() -> Any:
    """Colour by a column of levels."""
    mapper = LinearColorMapper(palette=list(PALETTE), low=0, high=LEVELS)
    return {"field": "level", "transform": mapper}
