"""`train.explain` with a network that compiles in a moment, in this process."""

import functools
import json
import logging

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from flax import nnx

from dcn_jax.detection.records import Detections
from dcn_jax.explain import (
    SaliencyRegion,
    area_side,
    bin_locations,
    effective_receptive_field,
    saliency_region,
    sampling_locations,
    square_side,
)
from dcn_jax.explain.figures import render, resolution_page
from dcn_jax.explain.saliency import Curve
from dcn_jax.modules import DeformConv, DeformRoIPool
from tests.support import double, launch
from tests.support.tiny_detector import (
    make_deeplab,
    make_mask_rcnn,
    make_r_fcn,
)
from train.configs import digits
from train.data.source import Example
from train.evaluate import sweep_folder
from train.explain import __main__ as program
from train.explain import network, pictures, resolutions, run
from train.explain.nodes import parse_node
from train.skeleton import build_skeleton
from train.task import Passes
from train.tasks.detection import Detection
from train.tasks.segmentation import Segmentation

# Of the image; it is resized to 64 x 32 on a canvas of 64 x 64.
WIDTH, HEIGHT = 60, 30
SCALE = np.array([32 / 30, 64 / 60])  # (y, x)
MEAN = (120.0, 110.0, 100.0)
BOXES = ((4.0, 4.0, 12.0, 12.0), (32.0, 4.0, 60.0, 28.0))


class Small(double.TinyDetector):
    """A deformable map at stride 4 and deformable RoIs; finds what it is told."""

    found = BOXES

    def __init__(self, num_classes, rngs):
        super().__init__(num_classes, rngs)
        self.conv = DeformConv(3, 4, (3, 3), strides=4, padding=1, rngs=rngs)
        self.pool = DeformRoIPool(
            4, 2, spatial_scale=0.25, hidden_features=4, rngs=rngs
        )
        for branch in (self.conv.offset_conv, self.pool.offset_fc):
            bias = np.random.default_rng(0).normal(size=branch.bias.shape)
            branch.bias.set_value(jnp.asarray(bias, jnp.float32))

    def features(self, images, sizes):
        return jnp.tanh(self.conv(images.astype(jnp.float32) / 255 - 0.5))

    def represent(self, images, sizes, rois):
        pooled = self.pool(self.features(images, sizes), rois)
        return pooled.reshape(*rois.shape[:2], -1)

    def predict(self, images, sizes):
        boxes = jnp.asarray(self.found, jnp.float32).reshape(1, -1, 4)
        count = boxes.shape[1]
        scores = jnp.full((1, count), 0.8)
        labels = jnp.ones((1, count), jnp.int32)
        return Detections(boxes, scores, labels, scores > 0)


class Blind(Small):
    """The same, which finds nothing."""

    found = ()


class SmallTask(double.DetectionDouble):
    def __init__(self, kind=Small, rois=True):
        super().__init__(kind)
        self._kind, self._rois = kind, rois

    def passes(self, network):
        rois = self._kind.represent if self._rois else None
        return Passes(self._kind.features, rois, MEAN)


def config_of(**fields):
    config = digits.get_config()
    config.data.canvases = ((64, 64),)
    config.data.eval_short_side = config.data.max_side = 64
    config.update(fields)
    return config


CONFIG = config_of()
CATEGORIES = [{"id": label + 1, "name": str(label)} for label in range(10)]
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """Networks come with the values that they begin with."""

    def load(config, task, workdir, mesh):
        skeleton = build_skeleton(config, task, 10)
        return 7, skeleton, skeleton.init(0), {"categories": CATEGORIES}

    monkeypatch.setattr(network, "load_variables", load)


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("train"), "propagate", True)
    caplog.set_level("INFO", logger="train")
    return lambda: "\n".join(r.getMessage() for r in caplog.records)


def explain(
    tmp_path, *nodes, task=None, beside=(), output="out", viewer=False, sides=()
):
    task = task or SmallTask()
    networks = run.open_networks(CONFIG, tmp_path / "run", beside, task, IMAGE)
    folder = tmp_path / output
    run.explain_image(
        *(networks, {"file_name": "a.png"}, [parse_node(n) for n in nodes], folder),
        score=0.5,
        max_passes=60,
        viewer=viewer,
        sides=sides,
    )
    return json.loads((folder / "explanation.json").read_text())


@pytest.fixture
def coarse(monkeypatch):
    """Pictures take less time with fewer pixels."""
    monkeypatch.setattr(pictures, "render", functools.partial(render, dpi=30))


@pytest.fixture
def brief(monkeypatch):
    """No pictures, and no search of saliency regions."""
    monkeypatch.setattr(run, "save_nodes", lambda *_: None)
    monkeypatch.setattr(run, "save_offsets", lambda *_: [])
    curve = Curve(np.array([1.0]), np.array([0.0]))
    whole = np.ones((32, 64), bool)
    region = SaliencyRegion(whole, 0.0, (0, 0, 64, 32), curve, curve, 33, True)
    monkeypatch.setattr(network, "saliency_region", lambda *_, **__: region)


def direct(call, places, locate, **options):
    """What the pure functions say of the image as the network is given it."""
    model = Small(10, nnx.Rngs(0))
    image = jnp.asarray(cv2.resize(IMAGE, (64, 32)), jnp.float32)

    def padded(model, images):
        return call(model, jnp.pad(images, ((0, 0), (0, 32), (0, 0), (0, 0))))

    def see(model, image):
        where = locate(model, padded, image, places, gradient=True, **options)
        return where, effective_receptive_field(model, padded, image, places).strength

    def region(box):
        return saliency_region(
            *(model, padded, image, places[0]),
            box=box,
            fill=MEAN,
            max_passes=60,
        )

    return *jax.device_get(jax.jit(see)(model, image)), region


@pytest.mark.usefixtures("coarse")
def test_a_position_and_a_roi_are_explained_in_pixels_of_the_image(tmp_path):
    # x is 41 * 64 / 60 of the resized image, nearest to 44 of the map's pixels.
    record = explain(tmp_path, "41,13", "roi=30,3,57,27")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    names = ("node1", "node2", "figure1", "figure2", "offsets1_conv")
    pictures = {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    assert files == {*pictures, "explanation.json"}
    assert record["image"] == {"file_name": "a.png", "size": [WIDTH, HEIGHT]}
    (about,) = record["networks"]
    assert about == {
        "name": "digits",
        "workdir": str(tmp_path / "run"),
        "step": 7,
        "layers": ["conv"],
        "given_size": [64, 32],
        "offsets": ["offsets1_conv"],
    }
    position, roi = record["nodes"]
    assert position["position"] == [41, 13] and position["pictures"] == "node1"
    assert roi["roi"] == [30, 3, 57, 27] and roi["pictures"] == "node2"

    found = position["explanations"]["digits"]
    assert found["map_position"] == [11, 3]
    places = [(3, 11)]

    def features(model, images):
        return model.features(images, None)

    where, field, region = direct(features, places, sampling_locations, layers=1)
    # The lowest map is the resized image itself, on its canvas.
    points = (where.position[0] + 0.5) / SCALE - 0.5
    locations = found["locations"]
    np.testing.assert_allclose(locations["points"], points[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(locations["weights"], where.weight[0], rtol=1e-4)
    strength = np.linalg.norm(where.gradient[0] * SCALE, axis=-1)
    np.testing.assert_allclose(locations["strengths"], strength, rtol=1e-4)
    assert locations["inside"] == where.inside[0].tolist()
    check_field(found, field[0], (12, 44))
    check_saliency(found, region((43.5, 11.5, 45.5, 13.5)))

    found = roi["explanations"]["digits"]
    box = np.array([30, 3, 57, 27]) * np.tile(SCALE[::-1], 2)
    rois = jnp.asarray(box[None, None], jnp.float32)

    def representation(model, images):
        return model.represent(images, None, rois)

    where, field, region = direct(representation, [(0,)], bin_locations)
    centres = (where.centre[0] / SCALE)[..., ::-1]
    np.testing.assert_allclose(found["bins"]["centres"], centres, rtol=1e-4)
    np.testing.assert_allclose(found["bins"]["size"], (27 / 2, 24 / 2), rtol=1e-4)
    np.testing.assert_allclose(found["bins"]["masks"], where.mask[0], rtol=1e-4)
    strength = np.linalg.norm(where.gradient[0] * SCALE, axis=-1)
    np.testing.assert_allclose(found["bins"]["strengths"], strength, rtol=1e-4)
    check_field(found, field[0], (16, 46))
    check_saliency(found, region(box.tolist()))

    # Once more, and without the second node: the same files.
    explain(tmp_path, "41,13", output="again")
    again = sorted((tmp_path / "again").glob("*.*g"))
    assert len(again) == 6
    for path in again:
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def check_field(found, strength, pixel):
    scale = np.sqrt(SCALE.prod())
    strength = jnp.asarray(strength)
    assert found["receptive_field"] == {
        "area_side": pytest.approx(float(area_side(strength)) / scale, rel=1e-4),
        "square_side": pytest.approx(
            float(square_side(strength, pixel)) / scale, rel=1e-4
        ),
    }


def check_saliency(found, region):
    said = found["saliency"]
    assert said["area"] == pytest.approx(region.region.mean(), rel=1e-4)
    assert said["error"] == pytest.approx(region.error, rel=1e-4)
    assert said["error"] <= said["bound"] == 0.1
    rectangle = np.asarray(region.rectangle) / np.tile(SCALE[::-1], 2)
    np.testing.assert_allclose(said["rectangle"], rectangle, rtol=1e-4)
    np.testing.assert_allclose(said["growth"], np.stack(region.growth, -1), rtol=1e-4)
    np.testing.assert_allclose(said["removal"], np.stack(region.removal, -1), rtol=1e-4)
    assert (said["passes"], said["complete"]) == (region.passes, region.complete)


@pytest.mark.usefixtures("brief")
def test_auto_takes_what_the_network_finds(tmp_path, said):
    record = explain(tmp_path, "auto")
    labels = ["small object", "large object", "background"]
    assert [node["label"] for node in record["nodes"]] == labels * 2
    small, large = (np.array(b) / np.tile(SCALE[::-1], 2) for b in BOXES)
    np.testing.assert_allclose(record["nodes"][3]["roi"], small, rtol=1e-4)
    np.testing.assert_allclose(record["nodes"][4]["roi"], large, rtol=1e-4)
    x, y = record["nodes"][1]["position"]
    assert (x + 0.5, y + 0.5) == pytest.approx(((large[0] + large[2]) / 2, 15))
    assert "nodes: small object at 7,7; large object at" in said()
    assert "small object, digits: saliency region of" in said()


@pytest.mark.usefixtures("brief")
def test_a_viewer_is_written_of_what_the_network_finds(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        network, "write_viewer", lambda *given, **named: written.append((given, named))
    )
    explain(tmp_path, "20,10", viewer=True)
    (((path, model, call, image), named),) = written
    assert path == tmp_path / "out" / "viewer1.html"
    assert image.shape == (64, 64, 3) and named["title"] == "digits, step 7"
    # The canvas is given, whose map it is, and what of it is the image.
    assert call(model, jnp.asarray(image[None])).shape == (1, 16, 16, 4)
    assert named["size"] == (32, 64)
    assert named["layers"] == ("conv",)
    found = named["detected"]
    np.testing.assert_allclose(found.boxes, BOXES, atol=1e-4)
    np.testing.assert_allclose(found.scores, 0.8, rtol=1e-6)
    assert list(found.names) == ["0", "0"]
    rois = jnp.asarray([BOXES], jnp.float32)
    expected = bin_locations(
        *(model, lambda m, x: m.represent(x, None, rois)),
        *(jnp.asarray(image), [(0,), (1,)]),
    )
    np.testing.assert_allclose(found.bins.centre, expected.centre, rtol=1e-4)


@pytest.mark.usefixtures("brief")
def test_without_objects_auto_says_so(tmp_path, said):
    record = explain(tmp_path, "auto", task=SmallTask(Blind, rois=False))
    assert [node["label"] for node in record["nodes"]] == ["the middle"]
    assert record["nodes"][0]["position"] == [29.5, 14.5]
    assert "digits finds no object with a score of at least 0.5: the middle" in said()


@pytest.mark.usefixtures("brief", "coarse")
def test_receptive_fields_and_scores_by_resolution(tmp_path, monkeypatch, said):
    drawn = []

    def page(panels):
        drawn.extend(panels)
        return resolution_page(panels)

    monkeypatch.setattr(resolutions, "resolution_page", page)
    other = write_run(tmp_path / "other", name="regular")
    write_score(tmp_path / "run", 32, 0.25)
    write_score(tmp_path / "run", 64, 0.5)
    write_score(other, 32, 0.75)
    write_score(other, 64, 0.125, step=6)
    record = explain(tmp_path, "41,13", "auto", beside=[other], sides=(32, 64))
    found = record["resolutions"]
    assert found["short_sides"] == [32, 64]
    assert found["area_sides"].keys() == {"digits", "regular"}
    expected = []
    for side, place in ((16, (2, 5)), (32, (3, 11))):
        image = jnp.asarray(cv2.resize(IMAGE, (2 * side, side)), jnp.float32)
        field = effective_receptive_field(
            *(Small(10, nnx.Rngs(0)), lambda m, x: m.features(x, None), image, [place])
        )
        scale = np.sqrt(side / HEIGHT * 2 * side / WIDTH)
        expected.append(float(area_side(field.strength)[0]) / scale)
    np.testing.assert_allclose(found["area_sides"]["digits"][0], expected, rtol=1e-4)
    assert found["scores"] == {
        "digits": {"bbox/AP": {"32": 0.25, "64": 0.5}},
        "regular": {"bbox/AP": {"32": 0.75}},
    }
    assert "other/sweep/64/evaluation.json is of another step" in said()
    assert [(panel.title, panel.value) for panel in drawn[:2]] == [
        ("all images of the evaluation", "bbox AP"),
        ("position 41,13", "side of receptive field, pixels"),
    ]
    of_score, of_position = drawn[0].curves, drawn[1].curves
    assert of_score == {"digits": ([32, 64], [0.25, 0.5]), "regular": ([32], [0.75])}
    assert of_position["digits"] == ((32, 64), found["area_sides"]["digits"][0])
    assert [panel.title for panel in drawn[2::3]] == [
        "small object, position",
        "small object, RoI",
    ]
    assert {path.name for path in (tmp_path / "out").glob("resolutions.*")} == {
        "resolutions.png",
        "resolutions.svg",
    }


def write_score(folder, side, score, step=7):
    """What `train.evaluate` leaves of images of another size."""
    path = sweep_folder(folder, side) / "evaluation.json"
    path.parent.mkdir(parents=True)
    groups = {"bbox": {"AP": score, "AP50": 1.0}, "bbox_per_class": {"0": 1.0}}
    path.write_text(
        json.dumps({"step": step, "data": {}, "figures": ["a.png"], **groups})
    )


@pytest.mark.usefixtures("brief", "coarse")
def test_resolutions_without_scores(tmp_path, said):
    record = explain(tmp_path, "41,13", sides=(64,))
    assert record["resolutions"]["scores"] == {"digits": {}}
    assert "no scores by resolution in" in said()
    path = sweep_folder(tmp_path / "run", 64) / "evaluation.json"
    for content in ("{", "[]", '{"step": 7}', '{"step": 7, "data": {}, "bbox": 1}'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        with pytest.raises(ValueError, match=r"64/evaluation\.json is damaged"):
            explain(tmp_path, "41,13", sides=(64,))


def test_sides_are_rising_numbers():
    assert resolutions.parse_sides("") == ()
    assert resolutions.parse_sides("400,600") == (400, 600)
    for text in ("x", "400,", "600,400", "400,400", "0,400", "-1", "1.5"):
        with pytest.raises(ValueError, match=r"`--resolutions` is .*; .*, rising, as"):
            resolutions.parse_sides(text)


def write_run(folder, **fields):
    """A folder as a run with its own configuration leaves it."""
    folder.mkdir()
    text = json.dumps(config_of(**fields).to_dict())
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.usefixtures("brief")
def test_runs_beside_have_their_own_configurations(tmp_path):
    other = write_run(tmp_path / "other", name="regular")
    record = explain(tmp_path, "20,10", beside=[other])
    assert [about["name"] for about in record["networks"]] == ["digits", "regular"]
    assert record["networks"][1]["workdir"] == str(other)
    (node,) = record["nodes"]
    assert node["explanations"].keys() == {"digits", "regular"}
    same = write_run(tmp_path / "same")
    networks = run.open_networks(CONFIG, other, [same], SmallTask(), IMAGE)
    assert list(networks) == [str(other), str(same)]


def test_runs_that_cannot_stand_beside_are_refused(tmp_path):
    def beside(*folders):
        run.open_networks(CONFIG, tmp_path / "run", folders, SmallTask(), IMAGE)

    with pytest.raises(FileNotFoundError, match=r"nothing/config\.json"):
        beside(tmp_path / "nothing")
    other = write_run(tmp_path / "other", task="segmentation")
    with pytest.raises(ValueError, match=r"whose `task` is 'segmentation'; expected a"):
        beside(other)
    wrong = write_run(tmp_path / "wrong", batch_size=0)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        beside(wrong)
    same = write_run(tmp_path / "same")
    with pytest.raises(ValueError, match="which is explained already"):
        beside(same, same)
    (wrong / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        beside(wrong)


def test_nodes_that_cannot_be_explained_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is 60,10; expected a pixel of the image"):
        explain(tmp_path, "60,10")
    with pytest.raises(ValueError, match=r"`--node` is a RoI, and digits has none to"):
        explain(tmp_path, "roi=1,2,30,20", task=SmallTask(rois=False))


class Pointwise(Small):
    def features(self, images, sizes):
        return self.backbone.offset_conv(images[..., [0, 1, 2, 0]] / 255)


def test_a_network_without_convolutions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"digits has no convolution larger than 1x1"):
        explain(tmp_path, "1,2", task=SmallTask(Pointwise))


def test_one_image_is_read(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), IMAGE[..., ::-1])
    shown, image = program.read_image(CONFIG, SmallTask(), [str(path)], None)
    np.testing.assert_array_equal(image, IMAGE)
    assert shown == {"file_name": str(path)}
    for files, example in (([], None), (["a.png", "b.png"], None), (["a.png"], 3)):
        with pytest.raises(ValueError, match="Expected one image file, or --example"):
            program.read_image(CONFIG, SmallTask(), files, example)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"image\.png"):
        program.read_image(CONFIG, SmallTask(), [str(path)], None)
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        program.read_image(CONFIG, SmallTask(), ["b.png"], None)


def test_an_example_is_one_of_the_evaluation(monkeypatch):
    opened = []

    def open_source(config, task, split):
        opened.append(split)
        example = Example(IMAGE, 5, np.zeros((0, 4)), np.zeros(0), [])
        return [example._replace(image=IMAGE[::-1]), example]

    monkeypatch.setattr(program.inputs, "open_source", open_source)
    shown, image = program.read_image(CONFIG, SmallTask(), [], 1)
    assert shown == {"example": 1, "split": "test"} and opened == ["test"]
    np.testing.assert_array_equal(image, IMAGE)
    for number in (-1, 2):
        with pytest.raises(ValueError, match=rf"is {number}; expected .* below 2"):
            program.read_image(CONFIG, SmallTask(), [], number)


def test_mistakes_in_flags_show_before_anything_is_loaded():
    with (
        flagsaver.flagsaver(node=["1;2"]),
        pytest.raises(ValueError, match="`--node` is '1;2'"),
    ):
        program.main([], SmallTask())
    with (
        flagsaver.flagsaver(resolutions="800,400"),
        pytest.raises(ValueError, match="`--resolutions` is '800,400'"),
    ):
        program.main([], SmallTask())
    with (
        flagsaver.flagsaver(score=2.0),
        pytest.raises(ValueError, match="`--score` is 2"),
    ):
        program.main([], SmallTask())


@pytest.mark.parametrize(
    ("make", "task", "channels", "features"),
    [
        (make_mask_rcnn, Detection(), 256, 16),
        (make_r_fcn, Detection(), 256, None),
        (make_deeplab, Segmentation(), 256, None),
    ],
)
def test_what_of_the_networks_is_explained(make, task, channels, features):
    model = nnx.eval_shape(make)
    passes = task.passes(model)
    assert passes.mean_colour == pytest.approx((123.675, 116.28, 103.53))
    images, sizes = jnp.zeros((1, 64, 64, 3)), jnp.asarray([[48, 64]])
    found = nnx.eval_shape(lambda m: passes.map(m, images, sizes), model)
    assert found.shape[1:3] in ((4, 4), (2, 2)) and found.shape[3] == channels
    assert (passes.rois is None) == (features is None)
    if passes.rois is not None:
        rois = jnp.ones((1, 2, 4))
        of_rois = passes.rois
        found = nnx.eval_shape(lambda m: of_rois(m, images, sizes, rois), model)
        assert found.shape == (1, 2, features)


def test_a_network_without_a_trunk_is_refused():
    with pytest.raises(ValueError, match="a TinyDetector without a `trunk`"):
        Detection().passes(double.TinyDetector(3, nnx.Rngs(0)))


@pytest.mark.slow
def test_a_trained_detector_is_explained(tmp_path):
    """The demo's network after one step, started as a user does."""
    folders = {"data": tmp_path, "workdir": tmp_path / "run"}
    assert launch.run("train.main", "--config.steps=1", **folders)[0] == 0
    flags = ("--example=1", "--node=auto", "--node=9,9", "--max_passes=40")
    for output in ("one", "two"):
        out = f"--output={tmp_path / output}"
        status, errors = launch.run("train.explain", *flags, out, **folders)
        assert status == 0, errors
    files = sorted((tmp_path / "one").iterdir())
    record = json.loads((tmp_path / "one" / "explanation.json").read_text())
    assert record["nodes"][-1]["position"] == [9, 9] and "roi" in record["nodes"][-2]
    assert {"figure1.svg", "figure2.png", "node1.png"} <= {path.name for path in files}
    layers = [f"trunk.backbone.layer{n}.conv2" for n in ("4.0", "3.1", "3.0")]
    assert record["networks"][0]["layers"] == layers
    assert len(record["networks"][0]["offsets"]) == 4
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
