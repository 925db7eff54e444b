"""Detection on a VOCdevkit folder, from data to VOC's mAP."""

import json

import pytest

from tests.support import double, voc_folder
from train import loop
from train.config_dict import ConfigDict
from train.configs import digits
from train.evaluate import evaluate_run
from train.metrics import read_metrics

TASK = double.DetectionDouble()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration and the folder of a run of a few steps."""
    folder = tmp_path_factory.mktemp("voc_run")
    voc_folder.write_voc_folder(folder / "VOCdevkit")
    config = digits.get_config()
    config.data.options = ConfigDict({"folder": str(folder / "VOCdevkit")})
    config.update_from_flattened_dict(
        {
            "steps": 3,
            # optax's Adam does not run under the tests' strict promotion of types.
            "optim.name": "sgd",
            "data.name": "voc",
            "data.data_dir": str(folder / "data"),
            "data.train_split": "2007_trainval+2012_trainval",
            "data.eval_split": "2007_test",
            "data.crop": (48, 64),
            "data.canvases": ((64, 96), (96, 64)),
            "data.max_side": 96,
            "data.short_sides": (48, 80),
            "data.eval_short_side": 48,
            "log.every": 1,
            "log.offset_health_every": 0,
            "eval.batch_size": 8,
            "eval.every": 0,
            "eval.pictures": 1,
        }
    )
    TASK.check(config)
    loop.train(config, folder / "run", TASK)
    return config, folder / "run"


def test_it_trains_and_is_judged_as_voc(trained):
    _, workdir = trained
    *steps, evaluation = read_metrics(workdir / "metrics.jsonl")
    assert [r["step"] for r in steps] == [1, 2, 3]
    written = json.loads((workdir / "evaluation.json").read_text())
    assert list(written["voc"]) == [
        *("mAP50_11point", "mAP70_11point", "mAP50_area", "mAP70_area"),
    ]
    assert written["data"]["split"] == "2007_test"
    assert evaluation["eval/voc/mAP50_11point"] == written["voc"]["mAP50_11point"]


def test_years_of_the_area_come_second_to_none(trained, tmp_path):
    config, workdir = trained
    later = config.copy_and_resolve_references()
    later.data.eval_split = "2012_val+2007_test"
    evaluate_run(later, workdir, TASK, tmp_path)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(written["voc"])[:2] == ["mAP50_area", "mAP70_area"]
    assert (tmp_path / "detections.json").exists()
