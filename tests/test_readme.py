"""The examples of the README and of docs/ run as they stand."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcn_jax.explain import distinct_points
from tests.support import launch
from tests.support.coco_folder import write_coco_folder
from tests.support.run_files import CATEGORIES, SMALL, write_run

ROOT = Path(__file__).resolve().parent.parent
README, EXPLAIN = "README.md", "docs/explain.md"
FROM_TORCH = "docs/from_torch.md"

# The double, which trains in seconds, stands in for the demo's detector.
TINY = (
    "--config.data.options.train_images=8",
    "--config.data.options.test_images=8",
    "--config.data.canvases=((64,64),)",
    "--config.data.short_sides=(64,)",
    "--config.data.eval_short_side=64",
    "--config.data.max_side=64",
    "--config.batch_size=2",
    "--config.eval.batch_size=8",
    "--config.steps=1",
)


def examples(language: str, document: str = README) -> list[str]:
    """Code blocks of a document that are marked to be tested."""
    text = (ROOT / document).read_text()
    return re.findall(rf"<!-- test -->\n```{language}\n(.*?)```", text, re.S)


def run_example(
    number: int, document: str = README, replaced: Mapping[str, str] = {}
) -> dict:
    """The names that an example leaves, with texts of it replaced."""
    code = examples("python", document)[number]
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    names: dict = {}
    exec(compile(code, document, "exec"), names)
    return names


def test_deform_conv_in_a_nnx_model():
    names = run_example(0)
    gradients = jax.tree.leaves(names["grads"])
    assert len(gradients) == len(jax.tree.leaves(names["net"])) == 6
    assert all(np.isfinite(g).all() for g in gradients)
    assert names["net"](names["images"]).shape == (2, 32)


def test_deform_conv_in_a_linen_model():
    names = run_example(1)
    assert names["output"].shape == (2, 32, 32, 32)
    assert "params" in names["variables"]


def test_hessian_vector_product():
    names = run_example(2)
    offset, product = names["offset"], names["product"]
    step = 1e-3
    ones = jnp.ones_like(offset)
    gradient = jax.grad(names["energy"])
    # Sampling is linear within a pixel: compare where no step crosses a boundary.
    inside = jnp.abs(offset - jnp.round(offset)).min(-1, keepdims=True) > 2 * step
    vector = jnp.where(inside, ones, jnp.zeros_like(ones))
    product = names["hessian_vector_product"](offset, vector)
    difference = gradient(offset + step * vector) - gradient(offset - step * vector)
    scale = float(jnp.abs(product).max())
    np.testing.assert_allclose(product, difference / (2 * step), atol=2e-2 * scale)


def test_a_detector_is_asked_about_a_picture(tmp_path):
    write_run(tmp_path, "class_aware_rpn", categories=CATEGORIES, preprocessing=SMALL)
    photo = tmp_path / "photo.jpg"
    cv2.imwrite(str(photo), np.full((90, 120, 3), 128, np.uint8))
    names = run_example(
        3, replaced={"runs/demo": str(tmp_path), "photo.jpg": str(photo)}
    )
    assert names["found"].size == (90, 120)
    assert names["picture"].shape == (512, 683, 3)


def test_a_nnx_model_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_example(0, EXPLAIN)
    points, field = names["points"], names["field"]
    # Without offsets: 7 x 7 pixels round the node.
    found = distinct_points(points.position[0], points.weight[0])
    grid = np.mgrid[13:20, 21:28].reshape(2, -1).T
    np.testing.assert_allclose(found.position, grid, atol=1e-5)
    assert np.abs(points.gradient).max() > 0
    seen = np.argwhere(np.asarray(field.strength[0]) > 0)
    assert (seen.min(0) >= (13, 21)).all() and (seen.max(0) <= (19, 27)).all()
    picture = cv2.imread(str(tmp_path / "node.png"))
    assert picture.shape[:2] == (600, 1600) and picture.std() > 10


def test_a_linen_model_is_explained():
    names = run_example(1, EXPLAIN)
    assert names["points"].position.shape == (1, 81, 2)
    assert names["field"].strength.shape == (1, 32, 48)
    assert names["field"].strength.max() > 0


def test_coming_from_torch():
    """Its blocks go on from one another."""
    names: dict = {}
    for block in examples("python", FROM_TORCH):
        exec(compile(block, FROM_TORCH, "exec"), names)
    # A sum of so many ones as taps lie on the map; half of it at the mask's start.
    assert names["y"].shape == (1, 8, 8, 5)
    assert names["y"][0, 4, 4].tolist() == [36] * 5
    assert names["output"].shape == (1, 4, 4, 5)
    np.testing.assert_array_equal(names["same"], names["output"])
    assert names["aligned"].shape == (1, 8, 8, 4)
    assert names["aligned"][0, 4, 4].tolist() == [36] * 4
    # The second frame is read one pixel further: its taps leave the map there.
    assert names["aligned"][0, 6, 6].tolist() == [26] * 4


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    run(
        "--config=train/configs/digits.py",
        f"--workdir={folder}/demo",
        f"--config.data.data_dir={folder}",
        *TINY,
    )
    return folder


def run(*arguments: str) -> None:
    command = [sys.executable, "-m", "tests.support.double", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=launch.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def command_of(number: int) -> list[str]:
    """Words of a command for the shell."""
    words = shlex.split(examples("bash")[number].replace("\\\n", " "))
    assert words[:2] == ["python", "-m"]
    return words


def test_training_on_ones_own_images(tmp_path):
    for split in ("train", "val"):
        write_coco_folder(tmp_path / "own", split)
    words = command_of(0)
    weights = words.pop()
    assert weights.startswith("--config.init_from=")
    replaced = {
        "--workdir=runs/own": f"--workdir={tmp_path}/run",
        "--config.data.options.folder=FOLDER": (
            f"--config.data.options.folder={tmp_path}/own"
        ),
    }
    assert replaced.keys() <= set(words)
    arguments = [replaced.get(word, word) for word in words[3:]]
    # The double takes no weights, and so no norms that are frozen.
    run(
        words[2],
        *arguments,
        "--config.model.backbone.norm=group_norm",
        f"--config.data.data_dir={tmp_path}/data",
        *(argument for argument in TINY if "options" not in argument),
    )
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "eval/bbox/AP" in json.loads(records[-1])


def test_prediction_on_a_picture(workdir):
    photo = workdir / "photo.jpg"
    cv2.imwrite(str(photo), np.full((90, 120, 3), 128, np.uint8))
    words = command_of(1)
    replaced = {
        "--workdir=runs/demo": f"--workdir={workdir}/demo",
        "--output=predictions": f"--output={workdir}/predictions",
        "photo.jpg": str(photo),
    }
    assert replaced.keys() <= set(words)
    arguments = [replaced.get(word, word) for word in words[3:]]
    run(words[2], *arguments, f"--config.data.data_dir={workdir}", *TINY)
    found = json.loads((workdir / "predictions" / "predictions.json").read_text())
    assert isinstance(found, list)
    # Small pictures are drawn enlarged, so that the labels can be read.
    drawn = cv2.imread(str(workdir / "predictions" / "000_photo.png"))
    assert drawn.shape == (512, 683, 3)
