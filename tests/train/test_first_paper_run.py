"""R-FCN and the class-aware RPN as the task of detection trains and evaluates them."""

import json

import numpy as np
import pytest

from train import effective_dilation, inputs, loop
from train.configs import digits
from train.metrics import read_metrics
from train.tasks.detection import Detection


@pytest.mark.slow
@pytest.mark.parametrize("network", ["rfcn", "rpn"])
def test_it_trains_and_is_evaluated(network, tmp_path, capsys):
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
            "eval.every": 0,
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
    effective_dilation.measure_run(config, tmp_path / "run", task, bounds=(32, 96))
    truth = inputs.open_source(config, task, "test").ground_truth()
    check_effective_dilation(tmp_path / "run", truth, capsys.readouterr().out)


def filters_by_object(truth, side):
    """Counts the filters of each image, which lie 16 pixels apart on a square.

    Args:
      truth: As COCO's.
      side: That images are resized to.

    Returns:
      Size of the object under a filter -> how many.
    """
    counts = {"small": 0, "medium": 0, "large": 0, "background": 0}
    for image in truth["images"]:
        boxes = [
            a["bbox"] for a in truth["annotations"] if a["image_id"] == image["id"]
        ]
        for p, q in np.ndindex(side // 16, side // 16):
            y = (16 * p + 0.5) * image["height"] / side
            x = (16 * q + 0.5) * image["width"] / side
            areas = [
                width * height
                for left, top, width, height in boxes
                if 0 <= x - left < width and 0 <= y - top < height
            ]
            if not areas:
                counts["background"] += 1
            elif min(areas) < 32**2:
                counts["small"] += 1
            else:
                counts["medium" if min(areas) < 96**2 else "large"] += 1
    return counts


def check_effective_dilation(workdir, truth, printed):
    """The one block of conv5 was measured at all filters of the 8 test images."""
    record = json.loads((workdir / "effective_dilation.json").read_text())
    assert record["step"] == 6 and record["size_bounds"] == [32, 96]
    assert record["data"]["split"] == "test" and record["data"]["images"] == 8
    path = "trunk.backbone.layer4.0.conv2"
    layer = record["layers"].pop(path)
    assert not record["layers"] and layer.pop("name") == "res5a"
    assert list(layer) == ["small", "medium", "large", "background"]
    counts = {group: numbers["count"] for group, numbers in layer.items()}
    assert counts == filters_by_object(truth, side=64)
    for numbers in layer.values():
        if numbers["count"]:
            # In six steps offsets hardly move from 0, and the dilation of conv5 is 2.
            assert numbers["mean"] == pytest.approx(2, abs=0.2)
            assert numbers["deviation"] < 0.2
        else:
            assert numbers["mean"] is numbers["deviation"] is None
    assert layer["background"]["count"] and layer["medium"]["count"]
    (line,) = (line for line in printed.splitlines() if path in line)
    assert line.startswith(f"res5a {path}  ")
    assert "{mean:.2f} ± {deviation:.2f} ({count})".format(**layer["medium"]) in line
