"""What a run says of its configuration and its data, and when."""

import json

import jax
import pytest
from absl.testing import flagsaver

from tests.support import double
from tests.support.coco_folder import write_coco_folder
from train import cli, loop
from train.configs import coco_faster_rcnn, digits
from train.tasks.detection import Detection

TASK = Detection()


def coco_config(folder):
    config = coco_faster_rcnn.get_config("dcnv2_mimic,800")
    write_coco_folder(folder / "coco", "train2017")
    write_coco_folder(folder / "coco", "val2017")
    config.update_from_flattened_dict(
        {
            "steps": 1,
            "batch_size": 8,
            "data.options.folder": str(folder / "coco"),
            "data.data_dir": str(folder / "data"),
            "eval.batch_size": 8,
        }
    )
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"'frozen_bn', .*expected `init_from` to"),
        ({"init_from": "nowhere.pth"}, r"nowhere\.pth"),
        ({"init_from": __file__}, r"test_refusals\.py"),
        ({"batch_size": 7}, "`batch_size` is 7; expected a multiple of the 8 devices"),
        ({"eval.batch_size": 9}, "`eval.batch_size` is 9; expected a multiple of the"),
        ({"mesh.model": 3}, "`mesh.model` is 3; expected a divisor of the 8 devices"),
        ({"optim.name": "lion"}, "`optim.name` is 'lion'; expected 'sgd' or 'adamw'"),
        ({"dtype": "float16"}, "`dtype` is 'float16'; expected one of"),
        (
            {"model.backbone.norm": "batch_norm"},
            "norm` is 'batch_norm'; expe",
        ),
        (
            {"model.backbone.depths": (1, 1, 1)},
            r"depths` is \(1, 1, 1\); exp",
        ),
        (
            {"model.backbone.offset_groups": 3},
            "`offset_groups` is 3; expe",
        ),
        ({"model.pool_layer": "max"}, "`model.pool_layer` is 'max'; expected"),
        ({"data.mask_size": 112}, "mask_size` is 112, and `network` is .*; expected 0"),
        ({"data.name": "vok"}, "`name` is 'vok'; expected one of"),
        ({"data.options.foldr": "x"}, "did you mean `data.options.folder`"),
        ({"data.options.images": 3}, "`data.options.images` is 3; expected a string"),
    ],
)
def test_what_can_be_known_is_said_before_data_are_prepared(tmp_path, fields, message):
    config = coco_config(tmp_path)
    config.model.backbone.depths = (1, 1, 1, 1)
    with config.data.options.unlocked(), config.data.options.ignore_type():
        config.data.options.foldr = config.data.options.images = "{split}"
        if "data.options.foldr" not in fields:
            del config.data.options.foldr
        config.update_from_flattened_dict(fields)
    if config.init_from == "" and fields:
        config.model.backbone.norm = fields.get("model.backbone.norm", "group_norm")
    with pytest.raises((ValueError, OSError), match=message):
        loop.train(config, tmp_path / "run", TASK)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.pop(1),
            "id 18 is 'square' in 'train2017' and missing in 'val2017'",
        ),
        (
            lambda c: c[0].update(name="x" * 9**6),
            "id 1 is 'disc' in 'train2017' and 'xx",
        ),
        (
            lambda c: c.append({"id": 99, "name": "y"}),
            "id 99 is missing in 'train2017'",
        ),
        (lambda c: c.clear(), "`categories` is empty"),
    ],
)
def test_categories_of_both_splits_are_compared_first(tmp_path, change, message):
    config = coco_config(tmp_path)
    config.model.backbone.norm = "group_norm"
    config.model.backbone.depths = (1, 1, 1, 1)
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = []
    change(content["categories"])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        loop.train(config, tmp_path / "run", TASK)
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "data" / "coco_instances").exists()


def test_a_split_of_the_digits_is_known_before_they_are_made(tmp_path):
    config = digits.get_config()
    config.data.data_dir = str(tmp_path)
    config.data.eval_split = "val"
    config.eval.batch_size = 8
    with pytest.raises(ValueError, match="`split` is 'val'; deformed_digits has test"):
        loop.train(config, tmp_path / "run", TASK)
    assert not (tmp_path / "deformed_digits").exists()


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with flagsaver.flagsaver(workdir="~/runs/a"):
        assert cli.workdir() == tmp_path / "runs" / "a"
    config = coco_config(tmp_path)
    (tmp_path / "photos").symlink_to(tmp_path / "coco")
    config.update_from_flattened_dict(
        {
            "init_from": "~/weights.pth",
            "compile_cache": "~/programs",
            "data.data_dir": "~/prepared",
            "data.options.folder": "~/coco",
        }
    )
    config.data.options.images = "~/photos/{split}"
    config.model.backbone.depths = (1, 1, 1, 1)

    class Prepared(Exception):
        pass

    def network(num_classes, rngs):
        # Before that, one is built to try the configuration.
        if num_classes > 1:
            raise Prepared
        return double.TinyDetector(num_classes, rngs)

    with pytest.raises(OSError, match=f"{tmp_path}/weights.pth"):
        loop.train(config, tmp_path / "run", TASK)
    task = double.DetectionDouble(network)
    config.init_from, config.model.backbone.norm = "", "group_norm"
    try:
        with pytest.raises(Prepared):
            loop.train(config, tmp_path / "run", task)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert (tmp_path / "prepared").is_dir()


@pytest.mark.parametrize("field", ["log.every", "checkpoint.every", "checkpoint.keep"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_1_are_refused(tmp_path, field, value):
    config = digits.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=f"`{field}` is {value}; expected a 32-bit"):
        loop.train(config, tmp_path / "run", TASK)


def test_a_missing_folder_is_refused(tmp_path):
    config = coco_faster_rcnn.get_config()
    config.batch_size = 8
    config.model.backbone.norm = "group_norm"
    config.data.data_dir = str(tmp_path)
    config.data.options.folder = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        loop.train(config, tmp_path / "run", TASK)


@pytest.mark.parametrize("row", ["", "regular", "dcnv1,800", "dconv_c3_c5,1000"])
def test_rows_of_the_paper(row):
    config = coco_faster_rcnn.get_config(row)
    assert config.model.mimicking == (not row)
    assert config.data.max_side == (1333 if "800" in row else 1667)
    assert all(side % 16 == 0 for shape in config.data.canvases for side in shape)


@pytest.mark.parametrize("row", ["dcnv3", "dcnv2,900"])
def test_unknown_rows_are_refused(row):
    with pytest.raises(ValueError, match="expected ROW or ROW,SIZE"):
        coco_faster_rcnn.get_config(row)
