"""What the ablation studies read of their runs, and the tables they make."""

import json

import pytest

from scripts.ablation.results import Result, read_result, table


def write_run(folder, section, test, val, *, step=6):
    """What a finished run of 6 steps of 4 images leaves, with some of its fields."""
    (folder / "test").mkdir(parents=True)
    for path, scores in ((folder / "test", test), (folder, val)):
        text = json.dumps({"step": step, section: scores})
        (path / "evaluation.json").write_text(text)
    (folder / "config.json").write_text(json.dumps({"steps": 6, "batch_size": 4}))
    records = [
        {"step": 2, "images/s": 8.0, "offset/mean_abs": 0.25},
        {"step": 4, "images/s": 2.0},
        {"step": 6, "images/s": 4.0, "offset/mean_abs": 0.5},
        {"step": 6, "eval/score": 0.1},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)


def test_a_run_of_detection_is_read(tmp_path):
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")
    scores = dict(zip(names, (0.5, 0.7, 0.6, 0.3, 0.4, 0.8, 0.9), strict=True))
    write_run(tmp_path, "bbox", scores | {"AR1": 0.1}, {"AP": 0.45})
    assert read_result(tmp_path) == Result(scores, 0.45, 0.5, 1.0)


def test_a_run_of_segmentation_is_read(tmp_path):
    scores = {"mIoU": 0.5, "mIoU_resized": 0.4}
    write_run(tmp_path, "pixels", scores, {"mIoU": 0.6})
    assert read_result(tmp_path) == Result({"mIoU": 0.5}, 0.6, 0.5, 1.0)


@pytest.mark.parametrize("missing", ["evaluation.json", "test/evaluation.json"])
def test_a_run_without_an_evaluation_is_not_finished(tmp_path, missing):
    write_run(tmp_path, "pixels", {"mIoU": 0.5}, {"mIoU": 0.6})
    (tmp_path / missing).unlink()
    assert read_result(tmp_path) is None


def test_a_run_that_was_stopped_is_not_finished(tmp_path):
    write_run(tmp_path, "pixels", {"mIoU": 0.5}, {"mIoU": 0.6}, step=4)
    assert read_result(tmp_path) is None


def test_a_table_has_means_and_how_far_seeds_lie_from_them():
    runs = {
        "0": [Result({"mIoU": 0.5}, 0.4, None, 1.0)],
        "3": [
            Result({"mIoU": score}, 0.5, offset, seconds)
            for score, offset, seconds in ((0.5, 1.0, 3.0), (0.7, 2.0, 1.0))
        ],
    }
    *_, plain, deformable = table(runs, {"0": 1000, "3": 2000})
    assert plain == "| 0 | 1 | 0.400 | 0.500 | - | 1,000 | 1.00 |"
    spread = "0.500 (-0.000, +0.000) | 0.600 (-0.100, +0.100)"
    assert deformable == f"| 3 | 2 | {spread} | 1.50 | 2,000 | 2.00 |"
