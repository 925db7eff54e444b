"""What a run says of itself."""

import logging

import jax
import numpy as np
import pytest

from train.announcements import Compilations, log_file, say_run
from train.configs import digits
from train.metrics import log_line
from train.sharding import make_mesh


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("train"), "propagate", True)
    caplog.set_level("INFO", logger="train")
    return lambda: caplog.messages


def test_it_says_what_is_trained(said):
    shapes = {"a": jax.ShapeDtypeStruct((1000, 3), np.float32)}
    shapes["b"] = jax.ShapeDtypeStruct((7,), np.float32)
    mesh = make_mesh(devices=jax.devices()[:2])
    say_run(digits.get_config(), mesh, shapes, ["a"], steps=30, images=120)
    devices, network, length = said()
    assert devices.startswith("2 devices (cpu), split by data 2 x model 1; 1 process")
    assert network == "3,007 parameters, of which 3,000 are trained; float32"
    assert length == "30 steps of 8 images: 2.0 passes over 120 images"


def test_it_says_what_it_compiles(said):
    compilations = Compilations([(64, 96), (96, 64)])
    for canvas in ((96, 64), (64, 96), (5, 5)):
        assert canvas not in compilations
        with compilations.of(canvas):
            pass
        assert canvas in compilations
    assert [line for line in said() if line.startswith("compiling")] == [
        *("compiling 96x64 (1 of 2)", "compiling 64x96 (2 of 2)"),
        "compiling 5x5 (3 of 3)",
    ]
    assert said()[1] == "compiled 96x64 in 0 s"


def test_a_file_keeps_what_is_said(said, tmp_path):
    log = logging.getLogger("train")
    for text in ("first run", "second run"):
        with log_file(tmp_path, active=True):
            log.info(text)
        log.info("afterwards")
    kept = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in kept] == ["first run", "second run"]
    with pytest.raises(ValueError, match="no room"), log_file(tmp_path, active=True):
        raise ValueError("no room")
    assert "ended: no room" not in said()
    assert (tmp_path / "log.txt").read_text().endswith(" ended: no room\n")
    with log_file(tmp_path / "none", active=False):
        log.info("of another process")


def test_a_full_disk_is_not_told_for_each_line(said, tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with log_file(tmp_path, active=True):
        logging.getLogger("train").info("lost")
    assert said() == ["lost"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_line_is_short(said):
    scalars = {"loss": 2.459, "loss/box": 1.0, "lr": 1e-3, "grad_norm": 123.456}
    scalars |= {"skipped": 0.0, "images/s": 1234.5}
    log_line(100_000, 180_000, scalars, 100_000)
    log_line(100_000, 180_000, scalars | {"skipped": 3.0}, 100_000)
    line, skipped = said()
    assert line == (
        "step 100000/180000  loss 2.459  lr 0.001  grad 123.46  1234.5 images/s  "
        "27:46:40 left"
    )
    assert skipped == f"{line}  3 skipped"
    # Behind the time.
    assert len(line) <= 91
