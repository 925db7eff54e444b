"""What a network's owner does and no tensor tells: the arguments that go with weights.

Sources: torchvision 0.24 models/detection; mmdetection 3.3 configs/_base_ and
models/task_modules; detectron2 config/defaults.py and modeling.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dcn_jax.boxes import BoxCode
from dcn_jax.detection.rpn import Selection
from dcn_jax.modules import RoIAlign
from dcn_jax.weights.layouts import COCO_SLOTS

Arguments = dict[str, Any]

_RGB_MEAN = (123.675, 116.28, 103.53)
_RGB_STD = (58.395, 57.12, 57.375)
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# detectron2 and mmdetection cut logarithms of sides alike but for this.
_BOTH_SIDES = BoxCode(clamp_shrinking=True)


class Pixels(NamedTuple):
    """How a network wants its images.

    Args:
      mean: Of R, G and B.
      std: Of R, G and B.
      bgr: Whether it reads the channels the other way round.
    """

    mean: tuple[float, ...] = _RGB_MEAN
    std: tuple[float, ...] = _RGB_STD
    bgr: bool = False


def detectron2_pixels(tensors: Mapping[str, np.ndarray]) -> Pixels:
    """BGR; the means and deviations may stand among the tensors."""
    std = _RGB_STD if _is_resnext(tensors) else (1.0, 1.0, 1.0)
    values: dict[str, tuple[float, ...]] = {"pixel_mean": _RGB_MEAN, "pixel_std": std}
    for name in values:
        tensor = tensors.get(name)
        if tensor is not None and tensor.size == 3:
            values[name] = tuple(float(v) for v in tensor.reshape(-1)[::-1])
    return Pixels(values["pixel_mean"], values["pixel_std"], bgr=True)


def mmdetection_pixels(texts: Mapping[str, str]) -> Pixels:
    """RGB, unless the configuration in the file says otherwise."""
    config = _config(texts)
    numbers: dict[str, tuple[float, ...]] = {"mean": _RGB_MEAN, "std": _RGB_STD}
    bgr = re.search(r"\b(to_rgb|bgr_to_rgb)\W{1,4}False\b", config) is not None
    for name in numbers:
        match = re.search(rf"\b{name}\W{{1,4}}\[([-\d., \n]{{5,80}})\]", config)
        values = re.findall(r"\d+\.?\d*", match[1]) if match else ()
        if len(values) == 3:
            found = tuple(map(float, values))
            numbers[name] = found[::-1] if bgr else found
    return Pixels(numbers["mean"], numbers["std"], bgr)


def torchvision_arguments(
    tensors: Mapping[str, np.ndarray], pixels: Pixels
) -> Arguments:
    """Of Faster and Mask R-CNN of torchvision, first versions.

    The published weights want the statistics as they are, without an epsilon. They can
    be told by their old names, or by a slot for each COCO id and batch norms that were
    never trained.
    """
    scores = tensors.get("roi_heads.box_predictor.cls_score.bias")
    published = "rpn.head.conv.weight" in tensors or (
        scores is not None
        and scores.size == COCO_SLOTS
        and "backbone.body.bn1.num_batches_tracked" not in tensors
    )
    return _merged(
        _common(pixels),
        dict(
            backbone=dict(norm_epsilon=0.0 if published else 1e-5),
            rpn=dict(
                round_anchors=True,
                strides_of_canvas=True,
                loss_beta=1 / 9,
                train=Selection(2000, 2000),
            ),
            pool=dict(sampling_ratio=2, aligned=False),
            box=dict(loss_beta=1 / 9),
            mask=dict(aligned_targets=False, binary_targets=False),
            mask_pool=dict(sampling_ratio=2, aligned=False),
        ),
    )


def detectron2_arguments(
    tensors: Mapping[str, np.ndarray], pixels: Pixels
) -> Arguments:
    """Of Faster and Mask R-CNN of detectron2."""
    strided = not _is_resnext(tensors)
    return _merged(_common(pixels), dict(backbone=dict(stride_in_1x1=strided)))


def _is_resnext(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether detectron2's backbone is: those were trained elsewhere, on Caffe2."""
    kernel = tensors.get("backbone.bottom_up.res2.0.conv2.weight")
    return kernel is not None and kernel.ndim == 4 and kernel.shape[1] < len(kernel)


def mmdetection_arguments(texts: Mapping[str, str], pixels: Pixels) -> Arguments:
    """Of Faster and Mask R-CNN of mmdetection 2 and 3."""
    caffe = re.search(r"\bstyle\W{1,6}caffe\b", _config(texts)) is not None
    return _merged(
        _common(pixels),
        dict(
            backbone=dict(stride_in_1x1=caffe),
            rpn=dict(code=_BOTH_SIDES),
            box=dict(code=BoxCode(_BOX_WEIGHTS, clamp_shrinking=True)),
        ),
    )


def _common(pixels: Pixels) -> Arguments:
    """Arguments that are detectron2's; the others' differ in some."""
    return dict(
        backbone=dict(norm_epsilon=1e-5, frozen_stages=2),
        trunk=dict(pixel_mean=pixels.mean, pixel_std=pixels.std, clear_padding=False),
        rpn=dict(
            anchor_sizes=(32.0,),
            aspect_ratios=(0.5, 1.0, 2.0),
            round_anchors=False,
            loss_beta=0.0,
            train=Selection(2000, 1000),
            test=Selection(1000, 1000),
        ),
        pool=dict(sampling_ratio=0, aligned=True),
        box=dict(code=BoxCode(_BOX_WEIGHTS), loss_beta=0.0),
        mask=dict(aligned_targets=True, binary_targets=True),
        mask_pool=dict(sampling_ratio=0, aligned=True),
    )


def with_conventions(arguments: Arguments, conventions: Arguments) -> Arguments:
    """A network's arguments with its owner's, of the stages that it has."""
    merged = _merged(arguments, conventions)
    for stage in set(merged) - set(arguments) - {"trunk"}:
        del merged[stage]
    if arguments["pool_layer"] is not RoIAlign:
        # Deformable pooling has no other way to count pixels.
        del merged["pool"]["aligned"]
    return merged


def _merged(first: Arguments, second: Arguments) -> Arguments:
    both = first | second
    for name in first.keys() & second.keys():
        both[name] = first[name] | second[name]
    return both


def _config(texts: Mapping[str, str]) -> str:
    """The text of mmdetection's configuration, by the names of 2.x and 3.x."""
    return texts.get("config") or texts.get("cfg") or ""
