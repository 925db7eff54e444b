"""A run that starts from somebody's whole detector."""

import numpy as np
import pytest

from dcn_jax.weights.torch_writer import write_pth
from tests.support import owner_networks as owners
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
