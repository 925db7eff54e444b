"""What an evaluation gathers and writes; runs with a checkpoint: test_runs.py."""

import json
import logging

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from dcn_jax.detection.records import Detections
from train import draw, sharding
from train.evaluator import Evaluation, figures_of, local_rows, write_evaluation

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
    assert found.scalars_by_class() == {"eval/bbox_per_class/a/b": 0.25}
    assert found.shown() == {"eval/confusion": b"png"}


def test_all_pictures_are_shown_as_one():
    pictures = [np.full((600, 900, 3), value, np.uint8) for value in (10, 200)]
    found = Evaluation(SCORES, {}, {}, pictures, DATA)
    (name,) = shown = found.shown()
    assert name == "eval/pictures"
    sheet = cv2.imdecode(np.frombuffer(shown[name], np.uint8), cv2.IMREAD_COLOR)
    # Two of 900 pixels, with four behind each, and no more than 2048.
    assert sheet.shape == (604, 1808, 3)
    small = draw.at_most(sheet, 904)
    assert small.shape == (302, 904, 3) and small[150, 200].tolist() == [10] * 3


def test_figures_of_an_earlier_evaluation_are_removed(tmp_path):
    for figures in ({"confusion.png": b"1", "offsets.png": b"2"}, {"new.png": b"3"}):
        found = Evaluation(SCORES, {}, figures, [], DATA)
        write_evaluation(tmp_path, 1, found)
        (tmp_path / "curves.png").touch()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"evaluation.json", "new.png", "curves.png"}
    # What the file says is not believed.
    record = {"figures": ["../own.png", 3, "sub/own.png", "own.txt"]}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    assert figures_of(record) == figures_of([]) == []
    for damaged in (json.dumps(record), "{", "[]"):
        (tmp_path / "evaluation.json").write_text(damaged)
        write_evaluation(tmp_path, 1, found)
    assert json.loads((tmp_path / "evaluation.json").read_text())["step"] == 1


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
