"""The page of the viewer holds what it was given, and needs nothing else."""

import base64
import gzip
import html.parser
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax import modules
from tests.support.viewer_page import HOSTILE, make_atlas, make_detected, make_image
from train.explain.viewer import Detected, viewer_page, write_viewer


class Elements(html.parser.HTMLParser):
    """What a browser would find: elements, and the text of scripts by their id."""

    def __init__(self, page):
        super().__init__()
        self.found, self.scripts, self._script = [], {}, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._script = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] = json.loads(data)
            self._script = None


def sources_of(document):
    """Name of a source -> its columns."""
    found = {}

    def look(value):
        if isinstance(value, dict):
            attributes = value.get("attributes", {})
            if value.get("name") == "ColumnDataSource" and "name" in attributes:
                entries = attributes["data"]["entries"]
                found[attributes["name"]] = {k: decoded(v) for k, v in entries}
            value = list(value.values())
        if isinstance(value, list):
            for part in value:
                look(part)

    look(document)
    return found


def decoded(value):
    if not isinstance(value, dict):
        return value
    buffer = gzip.decompress(base64.b64decode(value["array"]["data"]))
    return np.frombuffer(buffer, value["dtype"]).reshape(value["shape"])


def make_page(**changes):
    arguments = dict(title="A title", detected=make_detected()) | changes
    return viewer_page(make_image(), make_atlas(), **arguments)


def test_it_holds_the_arrays():
    scripts = Elements(make_page()).scripts
    sources, atlas = sources_of(scripts["document"]), make_atlas()
    nodes = sources["nodes"]
    np.testing.assert_array_equal(np.stack([nodes["y"], nodes["x"]], -1), atlas.nodes)
    strongest = atlas.field.max((1, 2), keepdims=True)
    field = np.square(nodes["field"] / 255.0) * strongest
    # A half of 255 levels of the root is at most so much of the strongest.
    np.testing.assert_allclose(field, atlas.field, atol=1 / 255)
    np.testing.assert_array_equal(nodes["area_side"], atlas.area_side)
    np.testing.assert_array_equal(nodes["square_side"], atlas.square_side)
    for i, points in enumerate(atlas.points):
        columns = sources[f"points {i}"]
        order = np.argsort(points.strength, axis=1)
        position = np.stack([columns["y"], columns["x"]], -1) / 8
        expected = np.take_along_axis(points.position, order[..., None], 1)
        np.testing.assert_allclose(position, expected, atol=1 / 16)
        inside = np.take_along_axis(points.inside, order, 1)
        np.testing.assert_array_equal(columns["inside"], inside)
        strength = np.take_along_axis(points.strength, order, 1)
        share = strength / strength.max(1, keepdims=True)
        np.testing.assert_allclose(
            np.square(columns["strength"] / 255.0), share, atol=1 / 255
        )
        np.testing.assert_array_equal(columns["outside"], points.outside)
    detected, columns = make_detected(), sources["detections"]
    corners = np.stack([columns[name] for name in ("x1", "y1", "x2", "y2")], -1)
    np.testing.assert_array_equal(corners, detected.boxes)
    assert columns["name"] == list(HOSTILE)
    centre = np.stack([columns["bin_y"], columns["bin_x"]], -1)
    np.testing.assert_array_equal(centre.reshape(3, 2, 3, 2), detected.bins.centre)
    size = np.stack([columns["bin_height"], columns["bin_width"]], -1)
    np.testing.assert_array_equal(size, detected.bins.size)
    facts = scripts["facts"]
    assert facts["layers"] == [["top"], ["top", "middle"], ["middle"]]
    assert facts["stacks"] == [
        "1 layer from the node down",
        "2 layers from the node down",
        "Only middle",
    ]
    # It opens at the best detection, with the most layers.
    assert facts["first"] == {"place": {"x": 18, "y": 22}, "stack": 1}


def test_it_loads_nothing_and_names_break_nothing():
    page = make_page(title=HOSTILE[0])
    found = Elements(page).found
    assert {tag for tag, _ in found} <= {
        *("html", "head", "meta", "title", "style", "script", "body", "header", "h1"),
        *("h2", "p", "button", "main", "section", "label", "div", "select", "dl", "dt"),
        *("dd", "span", "i", "ul", "footer", "b"),
    }
    assert not any({"src", "href"} & attributes.keys() for _, attributes in found)
    assert "default-src 'none'" in page


def test_the_same_arguments_give_the_same_page():
    assert make_page() == make_page()


def test_places_and_strengths_that_are_no_numbers():
    atlas = make_atlas()
    first = atlas.points[0]
    first.position[0, 0] = np.nan
    first.position[0, 1] = -np.inf
    first.strength[0, :2] = np.nan
    first.strength[1] = 0
    page = viewer_page(make_image(), atlas, title="t")
    columns = sources_of(Elements(page).scripts["document"])["points 0"]
    assert columns["strength"][0].max() == 255
    assert (columns["strength"][1] == 0).all()
    assert {32767, -32767} <= set(columns["x"][0].tolist())


class Deformable(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.deform = modules.DeformConv(3, 2, 3, strides=2, rngs=rngs)

    def __call__(self, x):
        return self.deform(x)


def test_it_is_written_for_a_model_and_a_padded_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    told = []
    write_viewer(
        *(tmp_path / "viewer.html", Deformable()),
        lambda model, x: model(x.astype(jnp.float32)),
        image,
        title="t",
        size=(8, 9),
        layers=1,
        report=lambda done, of: told.append((done, of)),
    )
    scripts = Elements((tmp_path / "viewer.html").read_text()).scripts
    nodes = sources_of(scripts["document"])["nodes"]
    assert nodes["field"].shape == (20, 8, 9)
    assert told == [(16, 20), (20, 20)]
    assert scripts["facts"]["bins"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["viewer.html"]


@pytest.mark.parametrize(
    ("image", "detected", "error"),
    [
        (np.zeros((40, 63, 3), np.uint8), make_detected(), r"`image` has shape"),
        (make_image(), make_detected()._replace(names=("a",)), r"`detected` has 1 nam"),
        (make_image(), Detected(np.zeros((1, 4)), np.zeros(2), "a"), r"\(2,\)"),
    ],
)
def test_what_is_refused(image, detected, error):
    with pytest.raises(ValueError, match=error):
        viewer_page(image, make_atlas(), title="t", detected=detected)
