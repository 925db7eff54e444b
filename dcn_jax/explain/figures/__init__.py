"""Pictures of what a network sees, drawn by matplotlib from arrays.

Nothing is computed from networks here: the functions of `dcn_jax.explain` return what
is drawn. They draw on axes that they are given, and need neither pyplot nor a display.

image            an image beneath all else
locations        sampling locations
bins             bins of a RoI
receptive_field  effective receptive fields
saliency         saliency regions, and their error by area
offsets          offsets of a layer as arrows
resolution       values by the size of the images
sheet            several of them in one figure
rendering        a figure as PNG or SVG

Axes count pixels from their centres: that of the first one is at (0, 0), and the image
ends half a pixel before it. Positions of pixels, and positions of a map times its
stride, are drawn where they are. Boxes and bins count edges, from 0, and are drawn half
a pixel less.

Colours are those of maps whose lightness only grows (`COLOUR_MAP`), and what colours
tell is told by size, marker, opacity or line style too.
"""

try:
    import matplotlib as _  # noqa: F401
except ImportError as error:
    raise ImportError(
        "dcn_jax.explain.figures draws by matplotlib, which is not installed; expected "
        "it, as by `pip install 'dcn-jax[explain]'`"
    ) from error

from dcn_jax.explain.figures.bins import draw_bins as draw_bins
from dcn_jax.explain.figures.image import COLOUR_MAP as COLOUR_MAP
from dcn_jax.explain.figures.image import show_image as show_image
from dcn_jax.explain.figures.locations import draw_locations as draw_locations
from dcn_jax.explain.figures.offsets import draw_offsets as draw_offsets
from dcn_jax.explain.figures.offsets import offset_page as offset_page
from dcn_jax.explain.figures.offsets import offset_row as offset_row
from dcn_jax.explain.figures.receptive_field import (
    draw_receptive_field as draw_receptive_field,
)
from dcn_jax.explain.figures.rendering import render as render
from dcn_jax.explain.figures.resolution import ResolutionPanel as ResolutionPanel
from dcn_jax.explain.figures.resolution import draw_resolution as draw_resolution
from dcn_jax.explain.figures.resolution import resolution_page as resolution_page
from dcn_jax.explain.figures.saliency import draw_error_curve as draw_error_curve
from dcn_jax.explain.figures.saliency import draw_saliency as draw_saliency
from dcn_jax.explain.figures.sheet import NetworkView as NetworkView
from dcn_jax.explain.figures.sheet import NodeView as NodeView
from dcn_jax.explain.figures.sheet import Points as Points
from dcn_jax.explain.figures.sheet import RoIBins as RoIBins
from dcn_jax.explain.figures.sheet import node_page as node_page
from dcn_jax.explain.figures.sheet import sheet as sheet
