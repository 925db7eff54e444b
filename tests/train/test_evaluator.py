"""What an evaluation gathers and writes; runs with a checkpoint: test_runs.py."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np

from dcn_jax.detection.records import Detections
from train import sharding
from train.evaluator import Evaluation, local_rows, write_evaluation

SCORES = {"bbox/AP": 0.5, "bbox/AP_small": None, "bbox_per_class/a/b": 0.25}
DATA = {"split": "val"}


def test_what_is_written_and_said(tmp_path, caplog):
    found = Evaluation(
        SCORES, {"detections.json": [1]}, {"confusion.png": b"png"}, [], DATA
    )
    with caplog.at_level(logging.INFO, logger="train"):
        write_evaluation(tmp_path, 7, found)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {
        "step": 7,
        "data": DATA,
        "figures": ["confusion.png"],
        "bbox": {"AP": 0.5, "AP_small": None},
        "bbox_per_class": {"a/b": 0.25},
    }
    assert json.loads((tmp_path / "detections.json").read_text()) == [1]
    assert (tmp_path / "confusion.png").read_bytes() == b"png"
    assert caplog.messages == [
        "evaluation of step 7 on val:",
        "  bbox: AP 0.500  AP_small -",
    ]
    assert found.scalars() == {"eval/bbox/AP": 0.5}


def test_pictures_of_an_earlier_evaluation_are_removed(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    own = tmp_path / "pictures" / "2024-holiday.png"
    for count in (3, 1):
        pictures = [picture] * count
        found = Evaluation(SCORES, {}, {}, pictures, DATA)
        write_evaluation(tmp_path, count, found)
        own.touch()
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {"000.png", "grid.png", own.name}


def test_pictures_of_somebody_else_stay(tmp_path):
    own = tmp_path / "pictures" / "001.png"
    own.parent.mkdir()
    own.touch()
    found = Evaluation(SCORES, {}, {}, [], DATA)
    write_evaluation(tmp_path, 1, found)
    assert own.exists()


def test_local_rows_come_in_order():
    mesh = sharding.make_mesh(2)
    rows = jnp.arange(8.0)
    placed = jax.device_put(Detections(rows, rows, rows, rows), sharding.divided(mesh))
    found = local_rows(placed)
    np.testing.assert_array_equal(found.boxes, np.arange(8.0))
    # A field that a network does not predict.
    assert isinstance(found, Detections) and found.masks is None
