"""Segmentation on folders in the formats that are published, from data to mIoU."""

import json
import logging

import cv2
import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dcn_jax.images.fit import resize_labels
from dcn_jax.images.geometry import Geometry
from dcn_jax.segmentation.records import IGNORED, LabelMaps
from tests.support import cityscapes_folder, segmentation, voc_folder
from train import inputs, loop, sharding
from train.config_dict import ConfigDict
from train.configs import dcnv1
from train.data import label_maps, make_source
from train.data.sets.cityscapes_labels import CLASSES
from train.data.sets.palettes import colours_of
from train.data.source import Example
from train.evaluate import evaluate_run
from train.evaluator import Evaluator
from train.metrics import read_metrics
from train.predict import predict_files
from train.skeleton import Skeleton
from train.task import Task
from train.tasks import TASKS

TASK: Task = segmentation.SegmentationDouble()


def with_data(folder, name):
    """A configuration for a data set, which is written first."""
    config = segmentation.get_config()
    data = config.data
    data.name, data.data_dir = name, str(folder / "data")
    if name == "voc_segmentation":
        voc_folder.write_voc_folder(folder / "VOCdevkit")
        voc_folder.write_sbd_folder(folder / "dataset")
        data.options.folder = str(folder / "VOCdevkit")
        data.options.sbd = str(folder / "dataset")
        data.train_split, data.eval_split = "2012_train+sbd", "2012_val"
    elif name == "cityscapes":
        cityscapes_folder.write_cityscapes_folder(folder / "cityscapes")
        data.options.folder = str(folder / "cityscapes")
        data.short_sides, data.crop = (40, 48, 72), (40, 56)
    else:
        data.options.update({"train_images": 8, "test_images": 4, "label_maps": True})
        data.eval_split, data.flip = "test", False
    return config


@pytest.fixture(
    scope="module", params=["voc_segmentation", "cityscapes", "deformed_digits"]
)
def trained(request, tmp_path_factory):
    """The configuration and the folder of a run of a few steps."""
    folder = tmp_path_factory.mktemp(request.param)
    config = with_data(folder, request.param)
    TASK.check(config)
    loop.train(config, folder / "run", TASK)
    return config, folder / "run"


def test_it_learns_in_a_few_steps(trained):
    config, workdir = trained
    *steps, evaluation = read_metrics(workdir / "metrics.jsonl")
    assert [r["step"] for r in steps] == list(range(1, 7))
    assert steps[-1]["loss/pixel"] < 0.9 * steps[0]["loss/pixel"]
    assert 0 <= evaluation["eval/pixels/mIoU"] <= 1
    written = json.loads((workdir / "evaluation.json").read_text())
    groups = {"pixels", "pixels_per_class"}
    assert written.keys() == {"step", "data", "figures", *groups}
    assert written["figures"] == ["confusion.png"]
    assert list(written["pixels"]) == ["mIoU", "mIoU_resized"]
    count = {"voc_segmentation": 21, "cityscapes": 19, "deformed_digits": 11}
    assert len(written["pixels_per_class"]) == count[config.data.name]
    assert cv2.imread(str(workdir / "pictures/000.png")) is not None


def test_it_is_evaluated_again(trained, tmp_path):
    config, workdir = trained
    evaluate_run(config, workdir, TASK, tmp_path)
    first, again = (
        json.loads((folder / "evaluation.json").read_text())
        for folder in (workdir, tmp_path)
    )
    assert first == again


def test_it_predicts(trained, tmp_path):
    config, workdir = trained
    rng = np.random.default_rng(0)
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), rng.integers(0, 255, (50, 90, 3), np.uint8))
    predict_files(config, workdir, TASK, [str(path)], tmp_path / "out", 0.5)
    records = json.loads((tmp_path / "out/predictions.json").read_text())
    covered = np.zeros((50, 90), int)
    for record in records:
        assert record["label"] != "background"
        mask = coco_mask.decode(record["segmentation"])
        assert mask.sum() == record["area"] > 0
        covered += mask
    assert covered.max(initial=0) <= 1
    if config.data.name == "cityscapes":
        ids = {row.name: row.label_id for row in CLASSES}
        assert all(ids[r["label"]] == r["category_id"] for r in records)
        assert covered.all()
    assert cv2.imread(str(tmp_path / "out/000_wide.png")).shape == (512, 922, 3)


def test_a_run_says_what_it_uses(tmp_path, caplog, monkeypatch):
    config = with_data(tmp_path, "voc_segmentation")
    path = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2008_000002.png"
    empty = voc_folder.palette_png(
        np.full((60, 90), 255, np.uint8), voc_folder.voc_palette()
    )
    path.write_bytes(empty)
    monkeypatch.setattr(logging.getLogger("train"), "propagate", True)
    with caplog.at_level("INFO", logger="train"):
        source, held_out = inputs.open_sources(config, TASK)
    said = [r.getMessage() for r in caplog.records if r.name == "train"]
    assert [line for line in said if not line.startswith("prepar")] == [
        "2012_train+sbd: 2 of 3 images (1 without a label: `skip_empty`);"
        " 66.7% of the pixels have a label",
        "2012_val: 1 of 1 images; 95.6% of the pixels have a label",
    ]
    assert TASK.usable(source).tolist() == [False, True, True]
    assert TASK.usable(held_out).all()


def test_data_without_label_maps_are_refused(tmp_path):
    config = with_data(tmp_path, "deformed_digits")
    config.data.options.label_maps = False
    source = inputs.open_source(config, TASK, "train")
    with pytest.raises(ValueError, match=r"'train' .* no ground truth to train on"):
        inputs.open_train_loader(config, TASK, source)


def evaluated(config, colours):
    """What an oracle that knows the classes by their colours reaches."""
    source = inputs.open_source(config, TASK, config.data.eval_split)
    config.eval.batch_size = 2
    skeleton = Skeleton(lambda rngs: segmentation.Oracle(colours))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    found = Evaluator(config, TASK, skeleton, mesh, source)({})
    assert found is not None
    return found


def test_perfect_predictions_have_miou_1_on_cityscapes(tmp_path):
    config = with_data(tmp_path, "cityscapes")
    config.data.canvases = ((64, 128),)
    names = [row.name for row in CLASSES]
    # What is not judged has another colour, of which anything may be said.
    found = evaluated(config, colours_of(names))
    assert found.scores["pixels/mIoU"] == found.scores["pixels/mIoU_resized"] == 1.0
    per_class = {k: v for k, v in found.scores.items() if "per_class" in k}
    assert {v for v in per_class.values() if v is not None} == {1.0}
    assert per_class["pixels_per_class/car"] == 1.0
    # Tinted in its own colours, a picture keeps them; but for the name, and where it is
    # enlarged between two of them.
    picture = found.pictures[0]
    assert picture.shape == (21 + 512, 1024 + 4 + 1024, 3)
    road = cityscapes_folder.labels_of("val", "lindau", 0) == CLASSES[0].label_id
    road = resize_labels(road.astype(np.uint8), (512, 1024)) == 1
    for panel in (picture[21:, :1024], picture[21:, 1028:]):
        assert (panel[road] == CLASSES[0].colour).all(-1).mean() > 0.7
    confusion = found.files["confusion.json"]
    assert confusion["names"] == names
    counts = np.array(confusion["counts"])
    assert counts.any() and (counts == np.diag(np.diag(counts))).all()
    assert found.figures["confusion.png"].startswith(b"\x89PNG")


def test_padding_changes_no_score(tmp_path):
    config = with_data(tmp_path, "cityscapes")
    config.data.eval_short_side = 40
    colours = colours_of([row.name for row in CLASSES])
    scores = []
    for canvas in ((40, 80), (64, 128)):
        config.data.canvases = (canvas,)
        scores.append(evaluated(config, colours).scores)
    assert scores[0] == scores[1]


def test_a_picture_and_records_in_pixels_of_the_image():
    labels = np.full((16, 24), IGNORED, np.uint8)
    labels[:10, :12] = 0
    labels[2:6, 4:8], labels[8:10, 2:10] = 1, 2
    geometry = Geometry.of((20, 24), (10, 12), (16, 24))
    prediction = LabelMaps(labels)
    names = ["background", "cat", "dog"]
    categories = [{"id": 5 * k, "name": name} for k, name in enumerate(names)]
    found = TASK.records(prediction, geometry, categories, 0.5)
    assert [(r["label"], r["category_id"], r["area"]) for r in found] == [
        ("cat", 5, 64),
        ("dog", 10, 64),
    ]
    mask = coco_mask.decode(found[0]["segmentation"])
    expected = np.zeros((20, 24), np.uint8)
    expected[4:12, 8:16] = 1
    np.testing.assert_array_equal(mask, expected)
    image = np.full((20, 24, 3), 100, np.uint8)
    picture = TASK.draw(image, prediction, geometry, categories, 0.5)
    assert picture.shape == (512, 614, 3)
    # Corners of the cat, whose name is in its midst; and what is above it.
    assert (picture[110:130, 215:240] == [117, 40, 40]).all()
    assert (picture[:90] == 100).all() and (picture[-1, 0] != 0).all()
    nothing = LabelMaps(np.zeros_like(labels))
    picture = TASK.draw(image, nothing, geometry, categories, 0.5)
    # But a note in the lower left corner.
    assert (picture[:480] == 100).all() and (picture[-1, 0] == 0).all()


def test_a_picture_of_the_truth():
    labels = np.zeros((20, 24), np.uint8)
    labels[4:12, 8:16], labels[16:] = 1, IGNORED
    example = Example(
        image=np.zeros((20, 24, 3), np.uint8),
        image_id=1,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int32),
        segmentations=[],
        label_map=labels,
    )
    geometry = Geometry.of((20, 24), (10, 12), (16, 24))
    categories = [
        {"id": k, "name": name} for k, name in enumerate(["background", "cat"])
    ]
    image = np.full((10, 12, 3), 100, np.uint8)
    picture = TASK.draw_truth(image, example, geometry, categories, ConfigDict())
    assert picture.shape == (512, 614, 3)
    assert (picture[110:130, 215:240] == [117, 40, 40]).all()
    assert (picture[:90] == 100).all()
    # What is not judged is light.
    assert (picture[420:] == [174, 174, 155]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voc_segmentation", "cityscapes"])
def test_a_row_of_the_paper_trains_and_is_evaluated(name, tmp_path):
    """DeepLab, with a small backbone, on the data sets that its rows name."""
    row = {"voc_segmentation": "deeplab_voc", "cityscapes": "deeplab_cityscapes"}[name]
    config = dcnv1.get_config(f"table1/{row}/3")
    small = with_data(tmp_path, name).data
    assert config.data.name == small.name
    assert config.data.options.keys() == small.options.keys()
    assert config.data.train_split == small.train_split
    assert config.data.eval_split == small.eval_split
    config.data = small
    config.update_from_flattened_dict(
        {
            "steps": 6,
            "batch_size": 8,
            "model.backbone.depths": (1, 1, 1, 1),
            "model.backbone.deform_blocks": (0, 0, 0, 1),
            "model.backbone.stem_features": 8,
            "model.backbone.norm": "group_norm",
            "model.neck.features": 16,
            "optim.lr": 0.02,
            "optim.warmup_steps": 0,
            "log.every": 1,
            "log.offset_health_every": 3,
            "eval.batch_size": 8,
            "eval.every": 0,
            "eval.pictures": 1,
        }
    )
    task = TASKS[config.task]
    task.check(config)
    loop.train(config, tmp_path / "run", task)
    *steps, evaluation = read_metrics(tmp_path / "run/metrics.jsonl")
    losses = [r["loss/class"] for r in steps if "loss/class" in r]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert steps[-1]["skipped"] == 0
    assert 0 <= evaluation["eval/pixels/mIoU"] < 1
    assert (tmp_path / "run/pictures/grid.png").exists()


def test_labels_that_are_ignored_are_the_same():
    assert label_maps.IGNORE == IGNORED


def test_digits_have_label_maps_beside_what_they_had(tmp_path):
    options = {"train_images": 6, "test_images": 1}
    plain = make_source("deformed_digits", "train", tmp_path, **options)
    source = make_source(
        "deformed_digits", "train", tmp_path, label_maps=True, **options
    )
    assert [c["name"] for c in source.categories] == ["background", *"0123456789"]
    assert plain.ground_truth()["annotations"] == source.ground_truth()["annotations"]
    assert plain.categories == source.categories[1:]
    for row in range(6):
        one, other = plain[row], source[row]
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        assert one.segmentations == other.segmentations and one.label_map is None
        # A label counts from 1, the ground being the first of the categories.
        np.testing.assert_array_equal(one.labels + 1, other.labels)
        expected = np.zeros((256, 256), np.uint8)
        for label, mask in zip(one.labels, one.segmentations, strict=True):
            expected[coco_mask.decode(mask) > 0] = label
        np.testing.assert_array_equal(other.label_map, expected)
        names = [source.categories[v]["name"] for v in np.unique(expected)]
        shown = sorted(plain.categories[label - 1]["name"] for label in one.labels)
        assert names == ["background", *sorted(set(shown))]
    assert (source.labelled == 256 * 256).all() and (plain.labelled == 0).all()
