"""The programs of docs/journeys run as they stand, here without a wheel."""

import runpy
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from tests.support.run_files import CATEGORIES, SMALL, write_run

JOURNEYS = Path(__file__).resolve().parent.parent / "docs" / "journeys"


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs a program in an empty folder; returns the names that it leaves."""
    monkeypatch.chdir(tmp_path)

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        # As users have it; optax needs it.
        with jax.numpy_dtype_promotion("standard"):
            return runpy.run_path(str(JOURNEYS / program), run_name="__main__")

    return run


@pytest.fixture
def trained(tmp_path):
    """What a run leaves, and a picture."""
    write_run(tmp_path, "class_aware_rpn", categories=CATEGORIES, preprocessing=SMALL)
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    cv2.imwrite(str(photo), pixels)
    return tmp_path, photo


@pytest.mark.parametrize("program", ["nnx_layer.py", "linen_layer.py"])
def test_a_layer_learns(go, program):
    losses = go(program)["losses"]
    assert len(losses) == 100 and losses[-1] < 0.5 * losses[0]


def test_derivatives(go):
    names = go("derivatives.py")
    assert np.abs(names["product"]).max() > 1 and np.abs(names["forward"]).max() > 0.1


def test_a_coco_folder_gives_boxes(go, trained, capsys):
    found = go("coco_folder.py", *trained)["found"]
    assert len(found) > 0 and found.size == (90, 120)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(found.names)


def test_an_export_is_served(go, trained):
    go("export_detector.py", *trained)
    found = go("serve_detector.py", trained[1])["found"]
    assert len(found) > 0 and found.size == (90, 120)
