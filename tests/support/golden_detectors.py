"""Whole detectors of other frameworks, imported from their golden files."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.boxes import BoxCode
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.rpn import RPN, AnchorSampling, Selection
from dcn_jax.detection.two_stage import TwoStage
from dcn_jax.modules import RoIAlign
from dcn_jax.necks import Levels
from dcn_jax.trunk import Trunk
from dcn_jax.weights import build_detector, read_detector
from dcn_jax.weights.architecture import backbone_arguments
from dcn_jax.weights.detector import with_variables
from dcn_jax.weights.detector_file import translate
from dcn_jax.weights.layouts import Axes
from dcn_jax.weights.names import TORCHVISION
from dcn_jax.weights.torch_writer import write_pth
from tests.support.golden import GOLDEN


def golden_detector(
    name: str, folder: Any, *, training: bool = False, param_dtype: Any = jnp.float32
) -> tuple[dict[str, np.ndarray], TwoStage]:
    """The fields of a golden file, and its detector with the numbers that it has.

    Args:
      name: Of the file, in tests/golden/detectors.
      folder: For a file of torch.
      training: Whether it is to be trained: its samplers then take every candidate.
      param_dtype: Of its parameters.
    """
    with np.load(GOLDEN / "detectors" / f"{name}.npz") as file:
        fields = {k: file[k] for k in file.files if not k.startswith("grad")}
    if name.endswith("dc5"):
        return fields, _on_one_level(fields)
    path = folder / f"{name}.pth"
    write_pth(path, state_dict(fields))
    detector = read_detector(path)
    arguments = _configured(detector.arguments, config(fields))
    if training:
        arguments = _taking_all(arguments, config(fields))
    detector = detector._replace(arguments=arguments)
    return fields, build_detector(detector, param_dtype=param_dtype)


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
    code = dataclasses.replace(
        arguments["box"].get("code", BoxCode()),
        weights=tuple(config["bbox_reg_weights"]),
    )
    # mmdetection's is the side from which on a RoI reads the second level.
    canonical = config.get("canonical_scale") or 4 * config["finest_scale"]
    changes: dict[str, Any] = dict(
        rpn=dict(anchor_sizes=sizes, aspect_ratios=tuple(ratios)) | _selections(config),
        box=dict(code=code, canonical_size=float(canonical)),
        mask=dict(canonical_size=float(canonical)),
    )
    changed = {
        stage: value | changes.get(stage, {}) if isinstance(value, dict) else value
        for stage, value in arguments.items()
    }
    return changed | dict(selection=_detections(config))


def _taking_all(arguments: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    # More than there are, also when only a share may be positive.
    sampling = AnchorSampling(
        20_000,
        config["rpn_positive_fraction"],
        config["rpn_fg_iou_thresh"],
        config["rpn_bg_iou_thresh"],
    )
    rois = RoISampling(
        400,
        config["box_positive_fraction"],
        config["box_fg_iou_thresh"],
        config["box_bg_iou_thresh"],
    )
    rpn = arguments["rpn"] | dict(sampling=sampling)
    # Nothing is frozen but the norms.
    backbone = arguments["backbone"] | dict(frozen_stages=0)
    return arguments | dict(backbone=backbone, rpn=rpn, sampling=rois)


def _selections(config: dict[str, Any]) -> dict[str, Selection]:
    return {
        mode: Selection(
            config[f"rpn_pre_nms_top_n_{mode}"],
            config[f"rpn_post_nms_top_n_{mode}"],
            config["rpn_nms_thresh"],
            config.get("rpn_score_thresh", 0.0),
        )
        for mode in ("train", "test")
        if f"rpn_pre_nms_top_n_{mode}" in config
    }


def _detections(config: dict[str, Any]) -> DetectionSelection:
    return DetectionSelection(
        config["box_score_thresh"],
        config["box_nms_thresh"],
        config["box_detections_per_img"],
    )


class _Reduced(nnx.Module):
    """One level of stride 16, a 1x1 convolution of conv5, for proposals and RoIs.

    The convolution stands where the first one of a pyramid would.
    """

    rpn_strides = roi_strides = (16,)

    def __init__(self, in_features: int, features: int, rngs: nnx.Rngs):
        self.rpn_features = self.roi_features = features
        self.lateral = nnx.List([nnx.Conv(in_features, features, (1, 1), rngs=rngs)])

    def __call__(self, maps, sizes=None):
        level = (self.lateral[0](maps["c5"]),)
        return Levels(level, level)


def _on_one_level(fields: dict[str, np.ndarray]) -> TwoStage:
    """The detector of faster_rcnn_dc5, composed by hand: no network here is so."""
    numbers = config(fields)
    features = numbers["channels"]
    tensors = {
        name.replace("backbone.reduce", "backbone.fpn.inner_blocks.0.0"): tensor
        for name, tensor in state_dict(fields).items()
    }
    variables, _, rest = translate(tensors, TORCHVISION, Axes(features, True, False))
    assert rest == []
    arguments = backbone_arguments(variables, "trunk.backbone.")
    code = BoxCode(tuple(numbers["bbox_reg_weights"]))

    def make() -> TwoStage:
        rngs = nnx.Rngs(0)
        body = ResNet(**arguments, output_stride=16, first_dilation=1, rngs=rngs)
        neck = _Reduced(body.channels["c5"], features, rngs)
        return TwoStage(
            Trunk(body, neck, clear_padding=False),
            RPN(
                features,
                neck.rpn_strides,
                features=features,
                anchor_sizes=numbers["anchor_sizes"][0],
                aspect_ratios=numbers["aspect_ratios"][0],
                strides_of_canvas=True,
                **_selections(numbers),
                rngs=rngs,
            ),
            BoxHead(
                RoIAlign(7, spatial_scale=1 / 16, aligned=False),
                features,
                numbers["num_classes"] - 1,
                strides=neck.roi_strides,
                features=numbers["representation"],
                code=code,
                rngs=rngs,
            ),
            selection=_detections(numbers),
        )

    return with_variables(nnx.eval_shape(make), variables)
