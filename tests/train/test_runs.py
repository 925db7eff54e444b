"""Whole runs as processes: killed, stopped, shared by two, and started wrongly."""

import json
import re
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support import launch
from train.checkpoint import read_arrays
from train.metrics import read_metrics
from train.workdir import claim

DOUBLE = "tests.support.double"
FOUND = "detections.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    status, errors = launch.run(DOUBLE, data=data, workdir=workdir)
    assert status == 0, errors
    assert "step 24/24  loss " in errors and "images/s" in errors
    assert "compiling 64x64 (1 of 1)\n" in errors and "compiled 64x64 in " in errors
    assert "24 steps of 8 images: 8.0 passes over 24 images\n" in errors
    line = r"^\d\d:\d\d:\d\d (?:step|compil|eval|  ).*"
    said = re.findall(line, errors, re.MULTILINE)
    assert len(said) > 8 and max(map(len, said)) <= 100
    kept = (workdir / "log.txt").read_text()
    assert "step 24/24" in kept and len(kept.splitlines()) < 100
    assert [int(n) for n in re.findall(r"evaluation of step (\d+)", kept)] == [12, 24]
    return workdir


def arrays(workdir, step):
    return read_arrays(workdir / "checkpoints" / str(step))


def assert_same_run(a, b, step=24):
    first, second = arrays(a, step), arrays(b, step)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert log_of(a) == log_of(b)


def log_of(workdir):
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "images/s"} for r in records]


def wait_for(process, condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_a_run_leaves(straight):
    result = json.loads((straight / "evaluation.json").read_text())
    assert result["step"] == 24
    assert set(result["bbox"]) >= {"AP", "AP50", "AP75", "AP_small", "AP_large"}
    assert set(result["bbox_per_class"]) == {str(digit) for digit in range(10)}
    pictures = {p.name for p in (straight / "pictures").iterdir()}
    assert pictures == {"000.png", "001.png", "grid.png"}
    assert result["figures"] == ["precision_recall.png", "confusion.png", "offsets.png"]
    numbers = ("detections.json", "precision_recall.json", "confusion.json")
    for name in ("curves.png", "config.json", *numbers, *result["figures"]):
        assert (straight / name).stat().st_size > 0, name
    assert any((straight / "tensorboard").iterdir())
    records = read_metrics(straight / "metrics.jsonl")
    assert [r["step"] for r in records] == [4, 8, 12, 12, 16, 20, 24, 24]
    measured = [r["step"] for r in records if "offset/mean_abs" in r]
    assert measured == [8, 16, 24]
    evaluated = [r["step"] for r in records if "eval/bbox/AP" in r]
    assert evaluated == [12, 24]
    assert records[0]["loss/class"] > 0 and records[-1]["eval/bbox/AP"] is not None


def test_a_run_that_is_stopped_and_killed_ends_at_the_same_bits(
    data, straight, tmp_path
):
    metrics = tmp_path / "metrics.jsonl"
    checkpoints = tmp_path / "checkpoints"
    process = launch.start(DOUBLE, data=data, workdir=tmp_path)
    wait_for(process, lambda: (checkpoints / "6").exists())
    process.send_signal(signal.SIGTERM)
    status, errors = launch.finish(process)
    assert status == 0, errors
    assert "SIGTERM: saved step" in errors
    saved = max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
    assert 6 <= saved < 24

    process = launch.start(DOUBLE, data=data, workdir=tmp_path)
    # In the middle of the next save.
    wait_for(process, lambda: any(checkpoints.glob("*tmp")))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    with metrics.open("a") as file:
        file.write('{"step": 23, "loss": 0.0}\n{"ste')

    status, errors = launch.run(DOUBLE, data=data, workdir=tmp_path)
    assert status == 0, errors
    assert "going on from the checkpoint of step" in errors
    assert_same_run(straight, tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_with_other_workers_to_the_same_bits(data, straight, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    process = launch.start(
        DOUBLE, "--config.data.workers=2", data=data, workdir=tmp_path
    )
    wait_for(process, lambda: (checkpoints / "6").exists())
    process.send_signal(signal.SIGTERM)
    status, errors = launch.finish(process)
    assert status == 0, errors
    assert "SIGTERM: saved step" in errors

    status, errors = launch.run(
        DOUBLE, "--config.data.workers=1", data=data, workdir=tmp_path
    )
    assert status == 0, errors
    assert "going on from the checkpoint of step" in errors
    # Of the rate, which so short a run does not reach, and of nothing else.
    assert errors.count("WARNING") == errors.count("the learning rate never reaches")
    assert_same_run(straight, tmp_path)


@pytest.fixture
def terminal():
    """Lets processes that are started heed Ctrl-C, wherever the tests run."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_ctrl_c_keeps_what_sigterm_keeps(terminal, data, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    # Too many to be done before the signal comes.
    process = launch.start(DOUBLE, "--config.steps=9999", data=data, workdir=tmp_path)
    wait_for(process, lambda: (checkpoints / "6").exists())
    process.send_signal(signal.SIGINT)
    status, errors = launch.finish(process)
    assert status == -signal.SIGINT, errors
    assert "Traceback" not in errors
    saved = max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
    assert f"SIGINT: saved step {saved}\n" in errors

    process = launch.start(f"{DOUBLE} train.evaluate", data=data, workdir=tmp_path)
    assert process.stderr is not None
    while "using the checkpoint" not in (line := process.stderr.readline()):
        assert line, launch.finish(process)
    process.send_signal(signal.SIGINT)
    status, errors = launch.finish(process)
    assert status == -signal.SIGINT and "Traceback" not in errors, errors


@pytest.mark.parametrize("program", ["main", "evaluate", "predict"])
def test_ctrl_c_while_libraries_load(terminal, data, tmp_path, program):
    process = launch.start(f"train.{program}", data=data, workdir=tmp_path)
    loaded = Path(f"/proc/{process.pid}/maps")
    wait_for(process, lambda: "jaxlib" in loaded.read_text())
    process.send_signal(signal.SIGINT)
    status, errors = launch.finish(process)
    assert status == -signal.SIGINT and "Traceback" not in errors, errors


def start_two(data, workdir):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    cluster = (f"--coordinator=localhost:{port}", "--processes=2")
    return [
        launch.start(
            DOUBLE, *cluster, f"--process={i}", data=data, workdir=workdir, devices=2
        )
        for i in range(2)
    ]


def test_two_processes_train_as_one(data, straight, tmp_path):
    for process in start_two(data, tmp_path):
        status, errors = launch.finish(process)
        assert status == 0, errors
    alone, together = arrays(straight, 24), arrays(tmp_path, 24)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(
            value, together[name], rtol=1e-4, atol=1e-5, err_msg=name
        )
    # The images of both processes were evaluated.
    count = [
        len({d["image_id"] for d in json.loads(folder.joinpath(FOUND).read_text())})
        for folder in (straight, tmp_path)
    ]
    assert count == [8, 8]
    # One of them wrote.
    steps = [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [4, 8, 12, 12, 16, 20, 24, 24]


@pytest.mark.slow
def test_two_processes_are_refused_together(data, tmp_path):
    with claim(tmp_path):
        processes = start_two(data, tmp_path)
        for process in processes:
            status, errors = launch.finish(process)
            assert status == 1, errors
            assert "is in use by another run" in errors.splitlines()[-1]
            assert "Traceback" not in errors


MISTAKES = {
    "--config.optim.lrr=3": 'Did you mean "lr" instead of "lrr"?',
    "--config.steps=many": "--config.steps=many",
    "--config=train/configs/digits.py:wrong": "digits.py:wrong: expected",
    "--config=train/configs/none.py": "none.py",
    "--config=~/nobody/none.py": str(Path.home() / "nobody" / "none.py"),
    "--config train/configs/none.py": "none.py",
    "--config.batch_size=-1": "`batch_size` is -1; expected an integer",
}


def test_a_mistake_gets_one_line(data, tmp_path):
    processes = {
        flag: launch.start("train.main", *flag.split(), data=data, workdir=tmp_path)
        for flag in MISTAKES
    }
    for flag, process in processes.items():
        status, errors = launch.finish(process)
        assert status == 1, errors
        lines = errors.strip().splitlines()
        assert len(lines) == 1, errors
        assert lines[0].startswith("error: ") and MISTAKES[flag] in lines[0]
