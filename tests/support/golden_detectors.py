"""Whole detectors of other frameworks, imported from their golden files."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dcn_jax.boxes import BoxCode
from dcn_jax.detection.box_head import DetectionSelection
from dcn_jax.detection.rpn import Selection
from dcn_jax.weights import DetectorFile, read_detector
from dcn_jax.weights.torch_writer import write_pth
from tests.support.golden import GOLDEN


class GoldenDetector(NamedTuple):
    """A golden file and what the importer made of it."""

    fields: dict[str, np.ndarray]
    detector: DetectorFile  # with the sizes and numbers of the file's configuration


def read_golden_detector(name: str, folder) -> GoldenDetector:
    """Imports the weights of a golden file, by way of a file of torch.

    Args:
      name: Of the file, in tests/golden/detectors.
      folder: For the file of torch.
    """
    with np.load(GOLDEN / "detectors" / f"{name}.npz") as file:
        fields = {k: file[k] for k in file.files if not k.startswith("grad")}
    path = folder / f"{name}.pth"
    write_pth(path, state_dict(fields))
    detector = read_detector(path)
    arguments = _configured(detector.arguments, config(fields))
    return GoldenDetector(fields, detector._replace(arguments=arguments))


def state_dict(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights under their owner's names."""
    prefix = "state_dict/"
    return {k.removeprefix(prefix): fields[k] for k in fields if k.startswith(prefix)}


def config(fields: dict[str, np.ndarray]) -> dict[str, Any]:
    """The numbers of the file's configuration."""
    prefix = "config/"
    return {
        k.removeprefix(prefix): v.tolist()
        for k, v in fields.items()
        if k.startswith(prefix)
    }


def canvas(fields: dict[str, np.ndarray]) -> tuple[jnp.ndarray, jnp.ndarray]:
    """The two images on their common canvas, and their sizes."""
    height, width = fields["batch"].shape[2:]
    images = np.zeros((2, height, width, 3), np.uint8)
    for i in range(2):
        image = fields[f"image_{i}"].transpose(1, 2, 0)
        images[i, : image.shape[0], : image.shape[1]] = image
    return jnp.asarray(images), jnp.asarray(fields["image_sizes"], jnp.int32)


def _configured(arguments: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Arguments with what a tiny detector has of its own, and no tensor tells."""
    if "anchor_sizes" in config:
        sizes = tuple(map(tuple, config["anchor_sizes"]))
        ratios = config["aspect_ratios"]
        ratios = ratios[0] if isinstance(ratios[0], list) else ratios
    else:
        sizes = tuple((config["anchor_scale"] * s,) for s in config["anchor_strides"])
        ratios = config["aspect_ratios"]
    selections = {
        mode: Selection(
            config[f"rpn_pre_nms_top_n_{mode}"],
            config[f"rpn_post_nms_top_n_{mode}"],
            config["rpn_nms_thresh"],
            config.get("rpn_score_thresh", 0.0),
        )
        for mode in ("train", "test")
        if f"rpn_pre_nms_top_n_{mode}" in config
    }
    code = dataclasses.replace(
        arguments["box"].get("code", BoxCode()),
        weights=tuple(config["bbox_reg_weights"]),
    )
    # mmdetection's is the side from which on a RoI reads the second level.
    canonical = config.get("canonical_scale") or 4 * config["finest_scale"]
    changes: dict[str, Any] = dict(
        rpn=dict(anchor_sizes=sizes, aspect_ratios=tuple(ratios), **selections),
        box=dict(code=code, canonical_size=float(canonical)),
        mask=dict(canonical_size=float(canonical)),
    )
    changed = {
        stage: value | changes.get(stage, {}) if isinstance(value, dict) else value
        for stage, value in arguments.items()
    }
    return changed | dict(
        selection=DetectionSelection(
            config["box_score_thresh"],
            config["box_nms_thresh"],
            config["box_detections_per_img"],
        )
    )
