"""The configuration for small data sets starts where its weights stand, and says so."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from dcn_jax.weights import import_detector
from dcn_jax.weights.torch_writer import write_pth
from tests.support import double
from tests.support import owner_networks as owners
from tests.support.coco_folder import write_coco_folder
from train import conventions, loop
from train.configs import finetune
from train.metrics import read_metrics
from train.skeleton import build_skeleton
from train.tasks.detection import Detection

BODY = owners.Body((1, 1, 1, 1), stem=8)


def small(arg=""):
    """The configuration with a network as small as `BODY`."""
    config = finetune.get_config(arg)
    model = config.model
    model.backbone.depths, model.backbone.stem_features = BODY.depths, BODY.stem
    model.neck.features = model.rpn.features = 8
    model.box.features = 16
    if arg == "mask":
        model.mask.features = 8
    return config


@pytest.mark.parametrize("arg", ["", "mask"])
def test_it_is_a_configuration_of_the_task(arg):
    config = finetune.get_config(arg)
    Detection().check(config)
    # Several evaluations, and the last of them at the end.
    assert config.steps % config.eval.every == 0 and config.steps > config.eval.every
    assert config.checkpoint.every % config.eval.every == 0
    assert len(config.data.canvases) == 1
    with pytest.raises(ValueError, match=r"finetune\.py:mas: expected no argument or"):
        finetune.get_config("mas")


@pytest.mark.parametrize(
    ("owner", "masks"),
    [
        ("torchvision", False),
        pytest.param("mmdetection", True, marks=pytest.mark.slow),
        pytest.param("detectron2", False, marks=pytest.mark.slow),
    ],
)
def test_the_network_starts_as_that_of_its_weights(tmp_path, owner, masks):
    """What deforms computes at first what does not."""
    shapes = getattr(owners, owner)(BODY, width=8, hidden=16, masks=masks)
    tensors = owners.random(shapes)
    for name in tensors:
        if name.endswith("running_var"):
            tensors[name] = np.abs(tensors[name]) + 0.5
    path = tmp_path / "weights.pth"
    write_pth(path, tensors)
    config, task = small("mask" if masks else ""), Detection()
    config.init_from = str(path)
    config, _ = conventions.adopt(config, task)
    skeleton = build_skeleton(config, task, num_classes=3)
    start = task.weights(config, skeleton.model(skeleton.variables))
    branches = {name for name in skeleton.variables if ".offset_conv." in name}
    anew = skeleton.variables.keys() - start.values.keys()
    rows = "roi.(classifier|regressor)|mask.predictor"
    assert branches and all(re.match(rows, name) for name in anew - branches)
    fresh = jax.jit(lambda: skeleton.init(0))()
    ours = skeleton.model(fresh | start.values)
    theirs = import_detector(path)
    images = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3))
    arguments = images.astype(np.float32), np.array([[64, 64]])
    levels = nnx.jit(lambda model, *a: model.features(*a).levels.rpn)
    found, expected = (levels(model, *arguments) for model in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        bound = 1e-4 * float(np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=bound)


def test_a_backbone_alone_is_taken(tmp_path):
    write_pth(tmp_path / "resnet.pth", owners.random(owners.resnet(BODY, "")))
    config, task = small(), Detection()
    config.init_from = str(tmp_path / "resnet.pth")
    config, adopted = conventions.adopt(config, task)
    skeleton = build_skeleton(config, task, num_classes=3)
    start = task.weights(config, skeleton.model(skeleton.variables))
    assert adopted == {}
    assert {name.split(".")[1] for name in start.values} == {"backbone"}


def test_a_run_evaluates_several_times(tmp_path):
    for split in ("train", "val"):
        write_coco_folder(tmp_path / "own", split)
    config = small()
    config.update_from_flattened_dict(
        {
            "data.options.folder": str(tmp_path / "own"),
            "data.data_dir": str(tmp_path / "data"),
            "batch_size": 8,
            "eval.batch_size": 8,
            "steps": 6,
            "eval.every": 2,
            "log.every": 2,
            "checkpoint.every": 6,
            "model.backbone.norm": "group_norm",
        }
    )
    loop.train(config, tmp_path / "run", double.DetectionDouble())
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if "eval/bbox/AP" in r] == [2, 4, 6]
    assert (tmp_path / "run" / "index.html").exists()
