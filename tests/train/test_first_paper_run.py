"""R-FCN and the class-aware RPN as the task of detection trains and evaluates them."""

import pytest

from train import loop
from train.configs import digits
from train.metrics import read_metrics
from train.tasks.detection import Detection


@pytest.mark.slow
@pytest.mark.parametrize("network", ["rfcn", "rpn"])
def test_it_trains_and_is_evaluated(network, tmp_path):
    config = digits.get_config(network)
    task = Detection()
    config.update_from_flattened_dict(
        {
            "steps": 6,
            "batch_size": 8,
            "data.data_dir": str(tmp_path / "data"),
            "data.options.train_images": 16,
            "data.options.test_images": 8,
            "data.canvases": ((64, 64),),
            "data.short_sides": (64,),
            "data.eval_short_side": 64,
            "model.backbone.depths": (1, 1, 1, 1),
            "model.backbone.stem_features": 8,
            "model.neck.features": 16,
            "model.rpn.features": 16,
            "model.rpn.anchor_sizes": (16.0, 32.0),
            # optax's Adam mixes types, which the tests forbid.
            "optim.name": "sgd",
            "optim.lr": 0.02,
            "optim.warmup_steps": 0,
            "log.every": 1,
            "log.offset_health_every": 3,
            "eval.batch_size": 8,
            "eval.pictures": 1,
        }
    )
    if network == "rfcn":
        config.model.psroi.bins = 3
    task.check(config)
    loop.train(config, tmp_path / "run", task)
    *steps, evaluation = read_metrics(tmp_path / "run" / "metrics.jsonl")
    names = {name for name in steps[0] if name.startswith("loss/")}
    of_rpn = {"loss/rpn_class", "loss/rpn_box"}
    assert names == of_rpn | (
        {"loss/class", "loss/box"} if network == "rfcn" else set()
    )
    assert [record["step"] for record in steps] == list(range(1, 7))
    # In so few steps from samples that change, only the first stage learns for sure.
    assert steps[-1]["loss/rpn_class"] < steps[0]["loss/rpn_class"]
    assert steps[-1]["skipped"] == 0
    assert "eval/bbox/AP" in evaluation
