"""A run that starts from somebody's whole detector."""

import pickle

import numpy as np
import pytest

from dcn_jax.weights.torch_writer import write_pth
from tests.support import owner_networks as owners
from train import conventions
from train.configs import _detection
from train.skeleton import build_skeleton
from train.tasks.detection import Detection


@pytest.fixture
def config():
    config = _detection.get_config("faster_rcnn_fpn")
    model = config.model
    model.backbone.depths = (1, 1, 1, 1)
    model.backbone.stem_features = 8
    model.neck.features = model.rpn.features = 8
    model.box.features = model.pool.hidden_features = 16
    return config


@pytest.mark.parametrize("classes", [3, 7])
def test_class_layers_start_anew_where_the_classes_differ(config, tmp_path, classes):
    body = owners.Body((1, 1, 1, 1), stem=8, branch=27)
    shapes = owners.mmdetection(body, classes=classes, width=8, hidden=16)
    tensors = owners.random(shapes)
    write_pth(tmp_path / "a.pth", tensors)
    config.init_from = str(tmp_path / "a.pth")
    task = Detection()
    skeleton = build_skeleton(config, task, num_classes=3)
    start = task.weights(config, skeleton.model(skeleton.variables))
    anew = {name for name in skeleton.variables if name not in start.values}
    parts = {"roi.pool", "mimic.classifier"}
    if classes == 7:
        parts |= {"roi.classifier", "roi.regressor"}
        assert "roi.classifier.kernel" in start.notes[-1]
    assert {".".join(name.split(".")[:2]) for name in anew} <= parts
    for name, value in start.values.items():
        assert value.shape == skeleton.variables[name].shape
    np.testing.assert_array_equal(
        start.values["rpn.deltas.bias"], tensors["rpn_head.rpn_reg.bias"]
    )
    assert ("roi.classifier.bias" in start.values) == (classes == 3)


def caffe_like(tmp_path):
    """A file of detectron2: stride in the first 1x1, deviations of 1, no rounding."""
    body = owners.Body((1, 1, 1, 1), stem=8, branch=27)
    shapes = owners.detectron2(body, classes=3, width=8, hidden=16)
    path = tmp_path / "model.pkl"
    tensors = owners.random(shapes)
    path.write_bytes(pickle.dumps({"model": tensors, "__author__": "x"}, protocol=2))
    return path


def test_a_run_takes_the_conventions_of_its_weights(config, tmp_path, caplog):
    config.init_from = str(caffe_like(tmp_path))
    task, workdir = Detection(), tmp_path / "run"
    workdir.mkdir()
    with caplog.at_level("INFO", "train"):
        adopted, fields = conventions.adopt(config, task)
    conventions.keep(fields, workdir)
    model = adopted.model
    assert model.backbone.stride_in_1x1 and not model.rpn.round_anchors
    assert model.trunk.pixel_std == (1.0, 1.0, 1.0)
    assert model.trunk.clear_padding
    assert "`model.backbone.stride_in_1x1` is True in place of False" in caplog.text
    task.check(adopted)
    assert not config.model.backbone.stride_in_1x1
    # Who goes on, or evaluates, needs the file no more.
    (tmp_path / "model.pkl").unlink()
    assert conventions.kept(config, workdir).model == model
    # Nothing of the file's network differs then.
    path = caffe_like(tmp_path)
    adopted.init_from = str(path)
    skeleton = build_skeleton(adopted, task, num_classes=3)
    assert task.weights(adopted, skeleton.model(skeleton.variables)).notes == ()


def test_a_run_without_weights_keeps_its_configuration(config, tmp_path):
    config.init_from = ""
    assert conventions.adopt(config, Detection()) == (config, {})
    # Those of an earlier start that came to nothing go.
    conventions.keep({"model.trunk.pixel_std": (1.0, 1.0, 1.0)}, tmp_path)
    conventions.keep({}, tmp_path)
    assert conventions.kept(config, tmp_path) is config


def test_what_the_user_chose_stays(config, tmp_path):
    config.init_from = str(caffe_like(tmp_path))
    config.model.trunk.pixel_std = (2.0, 2.0, 2.0)
    adopted, fields = conventions.adopt(config, Detection())
    assert adopted.model.trunk.pixel_std == (2.0, 2.0, 2.0)
    assert "model.trunk.pixel_std" not in fields
    assert adopted.model.backbone.stride_in_1x1


def test_conventions_of_another_network_are_left_out(config, tmp_path):
    conventions.keep({"model.mask_pool.sampling_ratio": 2}, tmp_path)
    assert conventions.kept(config, tmp_path).to_dict() == config.to_dict()
    (tmp_path / "conventions.json").write_text("[1")
    with pytest.raises(ValueError, match=r"conventions\.json is damaged"):
        conventions.kept(config, tmp_path)
