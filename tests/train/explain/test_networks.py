"""`train.explain` with each kind of network, tiny and untrained."""

import functools
import json

import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain.figures import render
from tests.support.tiny_detector import (
    filled,
    make_class_aware_rpn,
    make_deeplab,
    make_detector,
    make_mask_rcnn,
    make_r_fcn,
)
from tests.train.test_new_network import one_stage
from train.configs import digits
from train.explain import network, pictures, run
from train.explain.nodes import parse_node
from train.skeleton import build_skeleton, variables_of
from train.tasks.detection import Detection
from train.tasks.segmentation import Segmentation

CATEGORIES = [{"id": label + 1, "name": str(label)} for label in range(4)]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def make_one_stage():
    return one_stage(3, nnx.Rngs(0))


class OfDetector(Detection):
    def __init__(self, make):
        self._make = make

    def build(self, config, num_classes, rngs):
        return self._make()


class OfPixels(Segmentation):
    def __init__(self, make):
        self._make = make

    def build(self, config, num_classes, rngs):
        return self._make()


DEFORMABLE = {"deform_blocks": (0, 0, 1, 1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "task", "rois", "deformable"),
    [
        (functools.partial(make_detector, DEFORMABLE), OfDetector, True, 2),
        (functools.partial(make_mask_rcnn, DEFORMABLE), OfDetector, True, 2),
        (functools.partial(make_r_fcn, DEFORMABLE), OfDetector, False, 2),
        (functools.partial(make_class_aware_rpn, DEFORMABLE), OfDetector, False, 2),
        (functools.partial(make_deeplab, DEFORMABLE), OfPixels, False, 2),
        (make_one_stage, OfDetector, False, 0),
    ],
    ids=["faster", "mask", "r_fcn", "class_aware_rpn", "deeplab", "one_stage"],
)
def test_it_is_explained(make, task, rois, deformable, tmp_path, monkeypatch):
    def load(config, task, workdir, mesh):
        skeleton = build_skeleton(config, task, len(CATEGORIES))
        description = {"categories": CATEGORIES}
        return 7, skeleton, variables_of(filled(make)), description

    monkeypatch.setattr(network, "load_variables", load)
    monkeypatch.setattr(pictures, "render", functools.partial(render, dpi=30))
    config = digits.get_config()
    config.data.canvases = ((64, 64),)
    config.data.eval_short_side = config.data.max_side = 64
    networks = run.open_networks(config, tmp_path, [], task(make), IMAGE)
    nodes = ["auto", "9,9", *["roi=5,5,30,30"] * rois]
    run.explain_image(
        *(networks, {}, [parse_node(n) for n in nodes], tmp_path / "out"),
        score=0.05,
        max_passes=34,
        viewer=True,
        sides=(64,),
    )
    record = json.loads((tmp_path / "out" / "explanation.json").read_text())
    (about,) = record["networks"]
    assert len(about["offsets"]) == deformable and len(about["layers"]) == 3
    assert any("roi" in node for node in record["nodes"]) == rois
    for node in record["nodes"]:
        (found,) = node["explanations"].values()
        strength = np.asarray(
            found["bins" if "roi" in node else "locations"]["strengths"]
        )
        assert np.isfinite(strength).all() and strength.max() > 0
        assert found["receptive_field"]["area_side"] > 0
    page = (tmp_path / "out" / "viewer1.html").read_text()
    assert "receptive field" in page and ("<b>Bins</b>" in page) == rois
