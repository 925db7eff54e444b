"""A task that is no detection runs through the same programs."""

import json

import cv2
import numpy as np
import pytest

from dcn_jax.images.fit import fit_image
from tests.support.label_maps import DenseClassification, get_config
from train import inputs, loop
from train.evaluate import evaluate_run
from train.metrics import read_metrics
from train.predict import predict_files
from train.task import Task

TASK: Task = DenseClassification()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration and the folder of a run of ten steps."""
    folder = tmp_path_factory.mktemp("label_maps")
    config = get_config()
    config.data.data_dir = str(folder / "data")
    loop.train(config, folder / "run", TASK)
    return config, folder / "run"


def test_it_learns_in_ten_steps(trained):
    _, workdir = trained
    *steps, evaluation = read_metrics(workdir / "metrics.jsonl")
    assert [r["step"] for r in steps] == list(range(1, 11))
    assert steps[-1]["loss/pixel"] < 0.9 * steps[0]["loss/pixel"]
    # Of eleven classes.
    assert 0.3 < evaluation["eval/pixels/accuracy"] <= 1
    assert (workdir / "curves.png").exists()
    assert "kernel" in (workdir / "classifier").read_text()


def test_pictures_show_the_truth_beside_the_prediction(trained):
    config, workdir = trained
    source = inputs.open_source(config, TASK, "test")
    names = sorted(path.name for path in (workdir / "pictures").iterdir())
    assert names == [*(f"{i:03}.png" for i in range(8)), "grid.png"]
    for i in range(8):
        picture = cv2.imread(str(workdir / "pictures" / f"{i:03}.png"))[..., ::-1]
        assert picture.shape == (64 + 18, 64 + 4 + 64, 3)
        image, geometry = fit_image(
            source[i].image, canvases=((72, 80),), short_side=64, max_side=64
        )
        image = image[:64, :64]
        truth = TASK.draw_truth(
            image, source[i], geometry, source.categories, config.data
        )
        np.testing.assert_array_equal(picture[18:, :64], truth)
        bright = (picture[18:, 68:] == image).all(-1)
        # What the network takes for a digit.
        assert ((picture[18:, 68:] == image // 2).all(-1) | bright).all()


def test_it_is_evaluated_again(trained, tmp_path):
    config, workdir = trained
    evaluate_run(config, workdir, TASK, tmp_path)
    first, again = (
        json.loads((folder / "evaluation.json").read_text())
        for folder in (workdir, tmp_path)
    )
    assert first == again
    assert first.keys() == {"step", "data", "figures", "pixels"}
    assert first["figures"] == []
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"evaluation.json", "pictures"}


def test_it_predicts(trained, tmp_path):
    config, workdir = trained
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), np.full((50, 90, 3), 200, np.uint8))
    predict_files(config, workdir, TASK, [str(path)], tmp_path / "out", 0.5)
    records = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert all(r.keys() == {"file_name", "label", "pixels"} for r in records)
    assert cv2.imread(str(tmp_path / "out" / "000_wide.png")).shape == (50, 90, 3)


def test_another_network_is_refused(trained):
    config, workdir = trained
    other = config.copy_and_resolve_references()
    other.network.width = 4
    with pytest.raises(ValueError, match=r"`network\.width` was 8, the configuration"):
        evaluate_run(other, workdir, TASK)
    other.network.width = 0
    with pytest.raises(ValueError, match=r"`network\.width` is 0; expected a 32-bit"):
        loop.train(other, workdir, TASK)
