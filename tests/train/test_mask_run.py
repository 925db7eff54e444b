"""Masks from the data set to AP, pictures and predictions, with a fast network."""

import json
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dcn_jax.images.geometry import Geometry
from tests.support import double
from train import inputs, loop
from train.configs import digits
from train.metrics import read_metrics
from train.predict import predict_files

SIDE = 16


class MaskDetector(double.TinyDetector):
    """The double, whose boxes hold discs, and that looks at the masks it is given."""

    def losses(self, batch, key):
        assert batch.masks.shape == (*batch.labels.shape, SIDE, SIDE)
        windows = batch.mask_windows
        known = ((windows[..., 2:] - windows[..., :2]).prod(-1) > 0) & batch.valid
        inside = batch.masks.astype(jnp.float32).mean((2, 3))
        covered = jnp.mean(inside, where=known)
        return super().losses(batch, key) | {"mask": covered}

    def predict(self, images, sizes):
        found = super().predict(images, sizes)
        place = (jnp.arange(28, dtype=jnp.float32) + 0.5) / 14 - 1
        disc = jnp.square(place)[:, None] + jnp.square(place)[None] < 0.8
        masks = jnp.broadcast_to(
            disc.astype(jnp.float32), (*found.scores.shape, 28, 28)
        )
        return found._replace(masks=masks)


class MaskDetection(double.DetectionDouble):
    """Detection with masks, though its network has the name of one without."""

    def __init__(self):
        super().__init__(MaskDetector)

    def check(self, config):
        del config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The configuration and the folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("masks")
    config = digits.get_config()
    config.update_from_flattened_dict(
        {
            "steps": 4,
            # optax's Adam mixes types, which the tests forbid.
            "optim.name": "sgd",
            "data.data_dir": str(folder / "data"),
            "data.options.train_images": 8,
            "data.options.test_images": 8,
            "data.mask_size": SIDE,
            "data.flip": True,
            "log.every": 2,
            "log.offset_health_every": 0,
            "eval.batch_size": 8,
            "eval.every": 0,
            "eval.pictures": 1,
        }
    )
    loop.train(config, folder / "run", MaskDetection())
    return config, folder / "run"


def test_batches_hold_masks(trained):
    *steps, _ = read_metrics(trained[1] / "metrics.jsonl")
    # Digits cover about a third of their boxes.
    assert all(0.15 < record["loss/mask"] < 0.6 for record in steps)


def test_boxes_and_masks_are_evaluated(trained):
    _, workdir = trained
    result = json.loads((workdir / "evaluation.json").read_text())
    groups = {f"{k}{by}" for k in ("bbox", "segm") for by in ("", "_per_class")}
    groups |= {f"{k}_AP50_per_class" for k in ("bbox", "segm")}
    assert result.keys() == {"step", "data", "figures", *groups}
    assert result["bbox"].keys() == result["segm"].keys()
    assert result["segm_per_class"].keys() == set("0123456789")
    *_, evaluation = read_metrics(workdir / "metrics.jsonl")
    assert {"eval/bbox/AP", "eval/segm/AP", "eval/segm/AP50"} <= evaluation.keys()
    found = json.loads((workdir / "detections.json").read_text())
    assert len(found) == 16
    assert all(f["segmentation"]["size"] == [256, 256] for f in found)


def test_masks_are_drawn(trained):
    config, workdir = trained
    picture = cv2.imread(str(workdir / "pictures" / "000.png"))[..., ::-1]
    # Beside the ground truth, whose masks were learned.
    assert picture.shape == (512 + 21, 512 + 4 + 512, 3)
    source = inputs.open_source(config, MaskDetection(), "test")
    example = source[0]
    geometry = Geometry.of((256, 256), (256, 256), (256, 256))
    arguments = (example.image, example, geometry, source.categories)
    truth = MaskDetection().draw_truth(*arguments, config.data)
    np.testing.assert_array_equal(picture[21:, :512], truth)
    config = config.copy_and_resolve_references()
    config.data.mask_size = 0
    boxes = MaskDetection().draw_truth(*arguments, config.data)
    inside = sum(coco_mask.decode(mask) for mask in example.segmentations)
    changed = (truth != boxes).any(-1)[::2, ::2]
    assert changed[inside > 0].mean() > 0.7 and changed[inside == 0].mean() < 0.1


def test_predictions_have_masks_in_pixels_of_the_file(trained, tmp_path):
    config, workdir = trained
    path, output = tmp_path / "wide.png", tmp_path / "out"
    cv2.imwrite(str(path), np.full((90, 300, 3), 255, np.uint8))
    predict_files(config, workdir, MaskDetection(), [str(path)], output, 0.0)
    found = json.loads((output / "predictions.json").read_text())
    assert len(found) == 2
    for record in found:
        runs: Any = record["segmentation"]
        pixels = coco_mask.decode(runs)
        assert pixels.shape == (90, 300)
        assert pixels[45, 150] == 1 and pixels[3, 3] == 0
        # The disc in a box that is the image.
        assert pixels.mean() == pytest.approx(np.pi / 4 * 0.8, abs=0.03)
    picture = cv2.imread(str(output / "000_wide.png"))
    middle, corner = picture[256, 853], picture[100, 100]
    assert (middle < 255).any() and (corner == 255).all()
