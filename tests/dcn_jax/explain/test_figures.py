"""What figures draw, read from their artists, in pixels of the image."""

import importlib
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dcn_jax.explain import OffsetField, SaliencyRegion
from dcn_jax.explain.figures import (
    COLOUR_MAP,
    NetworkView,
    NodeView,
    Points,
    ResolutionPanel,
    RoIBins,
    draw_bins,
    draw_error_curve,
    draw_locations,
    draw_offsets,
    draw_receptive_field,
    draw_resolution,
    draw_saliency,
    node_page,
    offset_page,
    offset_row,
    render,
    resolution_page,
    sheet,
    show_image,
)
from dcn_jax.explain.figures.saliency import region_outline
from dcn_jax.explain.saliency import Curve
from tests.test_layering import begins_with, files_of, imported_names

ROOT = Path(__file__).resolve().parents[3]
IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def new_axes():
    return Figure().subplots()


def on_image(margin=0.0):
    axes = new_axes()
    show_image(axes, IMAGE, margin=margin)
    return axes


def limits(axes):
    return *axes.get_xlim(), *axes.get_ylim()


def collections(axes, kind):
    return [c for c in axes.collections if isinstance(c, kind)]


def test_pixel_centres_are_whole_numbers():
    axes = new_axes()
    shown = show_image(axes, IMAGE)
    assert shown.get_extent() == [-0.5, 7.5, 5.5, -0.5]
    assert limits(axes) == (-0.5, 7.5, 5.5, -0.5)
    np.testing.assert_array_equal(shown.get_array(), IMAGE)
    # The longer side has 8 pixels.
    assert limits(on_image(0.25)) == (-2.5, 9.5, 7.5, -2.5)


def test_locations_are_drawn_where_they_are():
    axes = on_image()
    position = np.array([[1.0, 2.5], [3.0, 4.0], [1.0, 2.5], [-0.25, 1.0], [9.0, 20.0]])
    strength = np.array([1.0, 4.0, 1.0, 2.0, 1.0])
    inside = np.array([True, True, True, False, False])
    draw_locations(axes, position, strength, inside, node=(3, 2))
    ins, out = collections(axes, PathCollection)
    # Coinciding ones are one, the strongest is last.
    np.testing.assert_array_equal(ins.get_offsets(), [(2.5, 1), (4, 3)])
    np.testing.assert_array_equal(out.get_offsets(), [(20, 9), (1, -0.25)])
    np.testing.assert_array_equal(ins.get_array(), [0.5, 1])
    np.testing.assert_array_equal(out.get_array(), [0.25, 0.5])
    sizes = ins.get_sizes()
    assert sizes[0] < sizes[1] and sizes[0] == out.get_sizes()[1]
    markers = [c.get_paths()[0].vertices.shape for c in (ins, out)]
    assert markers[0] != markers[1]
    (node,) = axes.lines
    assert node.get_xydata().tolist() == [[2, 3]] and node.get_marker() == "+"
    assert [t.get_text() for t in axes.texts] == ["1 not shown"]
    assert limits(axes) == limits(on_image())


def test_what_is_not_shown_is_told_on_the_image():
    for margin in (0.0, 0.25):
        axes = on_image(margin)
        far = np.array([[90.0, 3.0]])
        draw_locations(axes, far, np.ones(1), np.ones(1, bool))
        axes.figure.draw_without_rendering()
        (told,), (image,) = axes.texts, axes.images
        box, around = told.get_window_extent(), image.get_window_extent()
        assert around.x0 < box.x0 and box.x1 < around.x1
        assert around.y0 < box.y0 and box.y1 < around.y1


def test_gradients_of_coinciding_points_add_up():
    axes = on_image()
    position = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [3.0, 3.0]])
    gradient = np.array([[3.0, 0], [0, 4.0], [0, 10.0], [5.0, 0], [-5.0, 0]])
    draw_locations(axes, position, gradient, np.ones(5, bool))
    ins, out = collections(axes, PathCollection)
    np.testing.assert_allclose(ins.get_array(), [0, 0.5, 1])
    np.testing.assert_array_equal(ins.get_offsets(), [(3, 3), (1, 1), (2, 2)])
    assert len(out.get_offsets()) == 0 and not axes.texts


def test_strengths_of_nothing_are_drawn():
    axes = on_image()
    nothing = np.zeros((0, 2))
    draw_locations(axes, nothing, nothing[:, 0], np.zeros(0, bool))
    draw_locations(axes, np.ones((1, 2)), np.zeros(1), np.ones(1, bool))
    drawn = [c.get_offsets().tolist() for c in collections(axes, PathCollection)]
    assert drawn == [[], [], [[1, 1]], []]
    assert np.isfinite(collections(axes, PathCollection)[2].get_sizes()).all()
    assert render(axes.figure, "png", dpi=20).startswith(b"\x89PNG")


def test_a_receptive_field_ends_at_its_percentile():
    axes = new_axes()
    strength = np.arange(48.0).reshape(6, 8)
    heat = draw_receptive_field(axes, IMAGE, strength, percentile=50)
    np.testing.assert_array_equal(heat.get_array(), strength)
    assert heat.get_clim() == (0, 23.5)
    assert heat.get_extent() == [-0.5, 7.5, 5.5, -0.5]
    opacity = heat.get_alpha()
    assert opacity[0, 0] == 0 and opacity[5, 7] == 1
    assert (np.diff(opacity.reshape(-1)) >= 0).all()
    assert limits(axes) == limits(on_image())
    # A field that is mostly nothing, and one that is nothing.
    strength = np.zeros((6, 8))
    assert draw_receptive_field(new_axes(), IMAGE, strength).get_clim() == (0, 1)
    strength[0, 0] = 3
    heat = draw_receptive_field(new_axes(), IMAGE, strength, percentile=50)
    assert heat.get_clim() == (0, 3)


def region_of():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:4] = True
    mask[2, 4] = True
    return SaliencyRegion(
        region=mask,
        error=0.05,
        rectangle=(1, 0, 6, 4),
        growth=Curve(np.array([0.1, 0.4]), np.array([0.5, 0.02])),
        removal=Curve(np.array([0.4, 5 / 48]), np.array([0.02, 0.05])),
        passes=40,
        complete=True,
    )


def test_a_region_is_outlined_along_its_pixels():
    outline = region_outline(region_of().region)
    sides = {frozenset(map(tuple, edge)) for edge in outline.tolist()}
    # The pixel (2, 4), (y, x), has three edges to the rest; and 5 pixels, 12 in all.
    right = [(4.5, 1.5), (4.5, 2.5)], [(3.5, 1.5), (4.5, 1.5)], [(3.5, 2.5), (4.5, 2.5)]
    assert {frozenset(edge) for edge in right} <= sides
    assert len(sides) == len(outline) == 10
    whole = region_outline(np.ones((2, 3), bool))
    assert len(whole) == 10 and whole.min() == -0.5 and whole.max() == 2.5


def test_a_saliency_region_fades_the_rest():
    axes, region = new_axes(), region_of()
    draw_saliency(axes, IMAGE, region)
    shown = axes.images[0].get_array().astype(int)
    inside = region.region
    np.testing.assert_array_equal(shown[inside], IMAGE[inside])
    np.testing.assert_allclose(shown[~inside], IMAGE[~inside] / 4 + 191.25, atol=0.51)
    (rectangle,) = axes.lines
    assert rectangle.get_xdata().min() == 0.5 and rectangle.get_xdata().max() == 5.5
    assert rectangle.get_ydata().min() == -0.5 and rectangle.get_ydata().max() == 3.5
    (outline,) = collections(axes, LineCollection)
    assert len(outline.get_segments()) == 10
    assert axes.get_title() == "10.4 % of the image, error 0.050"
    assert limits(axes) == limits(on_image())


def test_the_curve_has_both_searches_and_the_bound():
    axes, region = new_axes(), region_of()
    draw_error_curve(axes, region, bound=0.1)
    growth, removal, bound = axes.lines
    np.testing.assert_allclose(growth.get_xydata(), [(10, 0.5), (40, 0.02)])
    np.testing.assert_allclose(removal.get_xydata(), [(40, 0.02), (500 / 48, 0.05)])
    assert set(bound.get_ydata()) == {0.1}
    assert len({line.get_linestyle() for line in axes.lines}) == 3


CENTRE = np.moveaxis(np.mgrid[:6:2, :8:2], 0, -1).astype(np.float32)


def test_arrows_begin_at_the_filters():
    offset = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    mask = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    arrows = draw_offsets(on_image(), CENTRE, offset, mask, every=2, magnified=4.0)
    assert arrows.XY.tolist() == [[0, 0], [4, 0], [0, 4], [4, 4]]
    np.testing.assert_array_equal(arrows.U, offset[::2, ::2, 1].reshape(-1))
    np.testing.assert_array_equal(arrows.V, offset[::2, ::2, 0].reshape(-1))
    np.testing.assert_array_equal(arrows.get_array(), mask[::2, ::2].reshape(-1))
    assert arrows.scale == 0.25 and arrows.angles == arrows.scale_units == "xy"
    assert arrows.get_clim() == (0, 1)
    # Without masks colours are lengths.
    arrows = draw_offsets(on_image(), CENTRE, offset)
    lengths = np.hypot(offset[..., 0], offset[..., 1])
    np.testing.assert_allclose(arrows.get_array(), lengths.reshape(-1))
    assert arrows.get_clim()[1] == lengths.max()


def test_a_page_of_offsets_says_how_it_is_drawn():
    offset = np.full((3, 4, 2, 2), 0.25, np.float32)
    page = offset_page(IMAGE, "conv", CENTRE, offset, np.full((3, 4, 2), 1.5))
    said = page.get_supxlabel()
    # Filters are 2 pixels apart, and arrows 0.35 long.
    assert "every position" in said and "arrows 4 times as long" in said
    first, second = page.axes[:2]
    assert second.get_title() == "offset group 2 of 2"
    assert first.collections[0].get_clim() == (0, 2)
    page = offset_page(IMAGE, "conv", CENTRE, 10 * offset)
    assert "arrows to scale" in page.get_supxlabel()
    rows = np.repeat(np.arange(50.0)[:, None], 3, axis=1)
    centre, offset = np.stack([rows, rows], -1), np.zeros((50, 3, 1, 2))
    page = offset_page(IMAGE, "conv", centre, offset)
    assert "one position of 3 x 3" in page.get_supxlabel()


def test_a_row_of_layers_says_how_each_is_drawn():
    small, large = (np.full((3, 4, 2, 2), value, np.float32) for value in (0.25, 2.5))
    size = np.int32([3, 4])
    fields = {
        "layer3": OffsetField(CENTRE, small, np.full((3, 4, 2), 1.5), size),
        "layer4": OffsetField(CENTRE, large[:, :, :1], None, size),
    }
    row = offset_row(IMAGE, "offsets", fields)
    first, second = row.axes[:2]
    assert (
        first.get_title() == "layer3, group 1 of 2" and second.get_title() == "layer4"
    )
    assert first.get_xlabel() == "every position; arrows 4 times as long"
    assert second.get_xlabel() == "every position; arrows to scale"
    # Masks, and lengths.
    assert first.collections[0].get_clim() == (0, 2)
    assert second.collections[0].get_clim()[1] == pytest.approx(np.hypot(2.5, 2.5))
    assert "offsets" in row.get_suptitle()


def bins_of():
    centre = np.array([[[2.0, 3.0], [2.0, 5.0]]])
    strength, mask = np.array([[4.0, 1.0]]), np.array([[0.5, 0.25]])
    return RoIBins(centre, np.array([2.0, 1.0]), mask, (2.0, 1.0, 6.0, 3.0), strength)


def test_bins_are_drawn_from_edges():
    axes, bins = on_image(), bins_of()
    draw_bins(axes, *bins[:-1], strength=bins.strength)
    (boxes,) = collections(axes, PolyCollection)
    weak, strong = (path.vertices for path in boxes.get_paths())
    # The centre of a bin at edge 3 is 0.5 less in pixel centres; height 2, width 1.
    assert strong.min(0).tolist() == [2, 0.5] and strong.max(0).tolist() == [3, 2.5]
    assert weak.min(0).tolist() == [4, 0.5]
    opacity = boxes.get_facecolor()[:, 3]
    assert opacity[0] == pytest.approx(opacity[1] / 2)
    light = boxes.get_facecolor()[:, :3].sum(1)
    assert light[1] > light[0]
    grid = np.concatenate(
        [np.concatenate(c.get_segments()) for c in collections(axes, LineCollection)]
    )
    assert grid.min(0).tolist() == [1.5, 0.5] and grid.max(0).tolist() == [5.5, 2.5]
    assert limits(axes) == limits(on_image())


def views():
    """Two networks, and two nodes, one of which reads beyond the image."""
    position = np.array([[1.0, 2.0], [3.0, 5.0], [-1.0, 0.0]])
    inside = np.array([True, True, False])
    points = Points(position, np.array([1.0, 2.0, 0.0]), inside, (2, 4))
    strength = np.random.default_rng(0).random((6, 8))
    nodes = [NodeView(n, points, strength, region_of()) for n in ("small", "large")]
    return {name: NetworkView(IMAGE, nodes) for name in ("v1", "v2")}


def test_a_sheet_has_a_block_for_each_network():
    figure = sheet(views(), bound=0.1)
    assert len(figure.axes) == 2 * 2 * 3
    said = [text.get_text() for text in figure.texts]
    assert said[:2] == ["v1", "v2"]
    assert "percentile 99.5" in said[2] and "error at most 0.1" in said[2]
    assert "crosses are outside of the map" in said[2]
    assert figure.axes[0].get_title() == figure.axes[6].get_title() == "small"
    rows = [axes.get_ylabel() for axes in figure.axes[:3]]
    assert rows == ["sampling locations", "receptive field", "saliency region"]
    # Room for what is outside, at the same scale.
    assert limits(figure.axes[0]) == limits(on_image(0.06))
    assert limits(figure.axes[1]) == limits(figure.axes[2]) == limits(on_image())
    inches = [
        axes.get_position().width * figure.get_figwidth() / np.ptp(axes.get_xlim())
        for axes in figure.axes
    ]
    np.testing.assert_allclose(inches, inches[0])
    boxes = [axes.get_position() for axes in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_a_sheet_of_rois_has_bins_in_the_first_row():
    network = views()["v1"]
    nodes = [node._replace(where=bins_of()) for node in network.nodes]
    figure = sheet({"v1": network._replace(nodes=nodes)}, bound=0.1)
    assert figure.axes[0].get_ylabel() == "bin locations"
    assert collections(figure.axes[0], PolyCollection)
    # All bins are on the image.
    assert limits(figure.axes[0]) == limits(on_image())


def test_a_page_has_a_row_for_each_network_and_the_scales():
    figure = node_page(views(), 1, bound=0.1)
    assert figure.get_suptitle() == "large"
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels.count("v1") == labels.count("v2") == 1
    assert labels.count("gradient by the pixel, to percentile 99.5") == 2
    assert labels.count("error, 1 - cosine") == 2


def test_the_same_input_gives_the_same_bytes():
    before = dict(matplotlib.rcParams)
    one = {"v1": views()["v1"]}
    pages = [node_page(one, 0, bound=0.1) for _ in range(2)]
    first, again = (render(page, "svg", dpi=50) for page in pages)
    assert first == again
    assert b"<dc:date>" not in first
    pngs = [render(page, "png", dpi=50) for page in pages]
    assert pngs[0] == pngs[1] and pngs[0].startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(ValueError, match=r"`kind` is 'pdf'; expected one of png, svg"):
        render(pages[0], "pdf")


def lightness(colour):
    """CIE 1976 L* of an sRGB colour."""
    r, g, b = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour
    )
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    return 116 * y ** (1 / 3) - 16


def test_colours_are_told_apart_in_grey():
    steps = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, 64))[:, :3]
    light = np.array([lightness(colour) for colour in steps])
    assert np.diff(light).min() > 0.5 and np.ptp(light) > 60


def test_curves_by_resolution_are_told_apart_without_colour():
    axes = new_axes()
    sides = [400, 800, 1200]
    curves = {"regular": (sides, [1, 3, 2]), "v1": (sides, [2, 3, 3])}
    draw_resolution(axes, curves | {"v2": (sides, [2, 4, 5])}, value="AP")
    assert [line.get_label() for line in axes.lines] == ["regular", "v1", "v2"]
    np.testing.assert_array_equal(
        axes.lines[0].get_xydata(), [(400, 1), (800, 3), (1200, 2)]
    )
    assert len({line.get_marker() for line in axes.lines}) == 3
    assert len({line.get_linestyle() for line in axes.lines}) == 3
    assert all(len(set(to_rgb(line.get_color()))) == 1 for line in axes.lines)
    assert axes.get_ylabel() == "AP"


def test_panels_by_resolution_stand_in_rows_of_four():
    curves = {"regular": ([400, 800], [3.0, 2.0])}
    panels = [ResolutionPanel(f"panel {i}", "AP", curves) for i in range(5)]
    figure = resolution_page(panels)
    assert [axes.get_title() for axes in figure.axes] == [p.title for p in panels]
    figure.draw_without_rendering()
    tops = [axes.get_position().y1 for axes in figure.axes]
    np.testing.assert_allclose(tops[:4], tops[0])
    assert tops[4] < 0.6 * tops[0]
    assert all(axes.get_ylim()[0] == 0 for axes in figure.axes)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    package = "dcn_jax.explain.figures"
    for name in [n for n in sys.modules if begins_with(n, (package,))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib.*dcn-jax\[explain\]"):
        importlib.import_module(package)


def test_the_rest_of_the_package_does_without_matplotlib():
    folder = ROOT / "dcn_jax" / "explain" / "figures"
    for path in files_of(ROOT, "dcn_jax"):
        if not path.is_relative_to(folder):
            names = imported_names(ROOT, path)
            assert not any(
                begins_with(n, ("matplotlib", "dcn_jax.explain.figures")) for n in names
            ), path
