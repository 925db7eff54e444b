"""The real detector on a COCO folder, from the command line to COCO AP."""

import json
import subprocess
import sys

import pytest
from coco_folder import write_coco_folder

from tests.train import launch
from train.metrics import read_metrics

TINY = {
    "steps": 3,
    "batch_size": 2,
    "backbone.norm": "group_norm",
    "data.train_split": "train",
    "data.eval_split": "val",
    "data.canvases": ((64, 64),),
    "data.short_sides": (48,),
    "data.eval_short_side": 48,
    "data.max_side": 64,
    "data.max_boxes": 8,
    "backbone.depths": (1, 1, 1, 1),
    "backbone.stem_features": 8,
    "backbone.deform_stages": (False, False, False, True),
    "detector.anchor_sizes": (16.0, 32.0),
    "detector.rpn_features": 8,
    "detector.rpn_pre_nms_top_n": (32, 32),
    "detector.rpn_post_nms_top_n": (8, 8),
    "detector.reduction_features": 8,
    "detector.head_features": 16,
    "detector.roi_branch_features": 8,
    "detector.roi_samples": 8,
    "detector.roi_output_size": 3,
    "detector.mimic_count": 2,
    "detector.mimic_crop_size": 32,
    "detector.max_detections": 10,
    "optim.lr": 0.002,
    "log.every": 1,
    "log.offset_health_every": 0,
    "eval.batch_size": 8,
    "eval.pictures": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains; returns (folder, exit status, stderr)."""
    folder = tmp_path_factory.mktemp("coco_run")
    for split in ("train", "val"):
        write_coco_folder(folder / "coco", split)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "train.main"),
            "--config=train/configs/coco_faster_rcnn.py",
            f"--config.data.options.folder={folder / 'coco'}",
            f"--config.data.data_dir={folder / 'data'}",
            f"--workdir={folder / 'run'}",
            *(f"--config.{field}={value}" for field, value in TINY.items()),
        ],
        cwd=launch.ROOT,
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    return folder / "run", done.returncode, done.stderr


def test_it_trains_and_evaluates(run):
    workdir, status, errors = run
    assert status == 0, errors
    records = read_metrics(workdir / "metrics.jsonl")
    losses = {name for name in records[0] if name.startswith("loss/")}
    assert losses == {
        *("loss/rpn_class", "loss/rpn_box", "loss/class", "loss/box"),
        *("loss/mimic_class", "loss/mimic_cos"),
    }
    assert [r["skipped"] for r in records[:3]] == [0, 0, 0]
    result = json.loads((workdir / "evaluation.json").read_text())
    assert set(result["bbox_per_class"]) == {"disc", "square", "triangle"}
    assert result["bbox"]["AP"] is not None
    assert (workdir / "pictures" / "grid.png").exists()
