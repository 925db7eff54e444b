"""The papers' networks by name: functions that compose the stages.

A stage's arguments come as a mapping, `Settings`, of those that its constructor
documents, without what the composition itself wires: channels, strides, types, `rngs`.
What several networks take stands once, in `Stages` and the classes after it.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Required, TypedDict, Unpack

import jax.numpy as jnp
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.mask_head import MaskHead
from dcn_jax.detection.mimic import Mimic
from dcn_jax.detection.one_stage import OneStage
from dcn_jax.detection.psroi_head import PSRoIHead
from dcn_jax.detection.rpn import RPN
from dcn_jax.detection.two_stage import TwoStage
from dcn_jax.modules import DeformRoIPool, DeformRoIPoolByLevel, RoIAlign, RoIPool
from dcn_jax.necks import FPN, DilatedConv5, Neck
from dcn_jax.segmentation.deeplab import DeepLab
from dcn_jax.segmentation.pixel_head import PixelHead
from dcn_jax.trunk import Trunk

Settings = Mapping[str, Any]


class Stages(TypedDict, total=False):
    """What every network takes, by keyword.

    Attributes:
      backbone: Of `ResNet`; required.
      neck: Of the network's neck; required.
      trunk: Of `Trunk`; None takes its defaults.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters; float32.
      rngs: Initialisation; required.
    """

    backbone: Required[Settings]
    neck: Required[Settings]
    trunk: Settings | None
    dtype: Any
    param_dtype: Any
    rngs: Required[nnx.Rngs]


class TwoStages(Stages, total=False):
    """What a network takes that proposes, then classifies: `Stages`, and these.

    Attributes:
      rpn: Of `RPN`; required.
      sampling: Which RoIs the heads are trained on.
      selection: Which boxes are detections.
    """

    rpn: Required[Settings]
    sampling: RoISampling
    selection: DetectionSelection


class BoxStages(TwoStages, total=False):
    """What a network with a box head takes: `TwoStages`, and these.

    Attributes:
      pool: Of `pool_layer`; required.
      box: Of `BoxHead`; required.
      pool_layer: RoI pooling, for all heads: `RoIPool`, `RoIAlign`, `DeformRoIPool`,
        which is the default, or another class called like them; one that learns takes
        `in_features`, types and `rngs` too.
      mimic: Of `Mimic`, for the box head; None does not mimic.
    """

    pool: Required[Settings]
    box: Required[Settings]
    pool_layer: Any
    mimic: Settings | None


def faster_rcnn(num_classes: int, **stages: Unpack[BoxStages]) -> TwoStage:
    """Faster R-CNN of both papers, on one level of stride 16.

    Args:
      num_classes: Foreground classes.
      **stages: See `BoxStages`; `backbone` with `output_stride=16`, `neck` of
        `DilatedConv5`.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """
    return _with_boxes(DilatedConv5, num_classes, **stages)


def faster_rcnn_fpn(num_classes: int, **stages: Unpack[BoxStages]) -> TwoStage:
    """Faster R-CNN on a feature pyramid.

    Args:
      num_classes: Foreground classes.
      **stages: See `BoxStages`; `neck` of `FPN`.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """
    return _with_boxes(FPN, num_classes, **stages)


def mask_rcnn_fpn(
    num_classes: int,
    *,
    mask: Settings,
    mask_pool: Settings,
    **stages: Unpack[BoxStages],
) -> TwoStage:
    """Mask R-CNN on a feature pyramid.

    Args:
      num_classes: Foreground classes.
      mask: Of `MaskHead`.
      mask_pool: Of the pooling layer of the mask head.
      **stages: See `BoxStages`; `neck` of `FPN`.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """
    return _with_boxes(FPN, num_classes, (mask, mask_pool), **stages)


def r_fcn(
    num_classes: int, *, psroi: Settings, **stages: Unpack[TwoStages]
) -> TwoStage:
    """R-FCN of the first paper, on one level of stride 16.

    Args:
      num_classes: Foreground classes.
      psroi: Of `PSRoIHead`.
      **stages: See `TwoStages`; `backbone` with `output_stride=16`, `neck` of
        `DilatedConv5`.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """

    def heads(levels: Neck, types: dict[str, Any]) -> dict[str, Any]:
        return dict(roi=PSRoIHead(**_of_levels(levels, num_classes), **psroi, **types))

    return _two_stages(DilatedConv5, heads, **stages)


def class_aware_rpn(
    num_classes: int,
    *,
    rpn: Settings,
    selection: DetectionSelection = DetectionSelection(),
    **stages: Unpack[Stages],
) -> OneStage:
    """The class-aware RPN of the first paper: a detector of one stage.

    Args:
      num_classes: Foreground classes.
      rpn: Of `RPN`.
      selection: Which boxes are detections.
      **stages: See `Stages`; `backbone` with `output_stride=16`, `neck` of
        `DilatedConv5`, in the paper with `rpn_on_conv5`.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """
    trunk, types = _trunk(DilatedConv5, **stages)
    return OneStage(
        trunk, _rpn(trunk, rpn, types, num_classes=num_classes), selection=selection
    )


def deeplab(num_classes: int, **stages: Unpack[Stages]) -> DeepLab:
    """DeepLab of the first paper.

    Args:
      num_classes: Labels of a pixel, the background among them where there is one.
      **stages: See `Stages`; `backbone` with `output_stride=16`, `neck` of
        `DilatedConv5`.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """
    trunk, types = _trunk(DilatedConv5, **stages)
    return DeepLab(trunk, PixelHead(**_of_levels(trunk.neck, num_classes), **types))


def _with_boxes(
    make_neck: Callable[..., Neck],
    num_classes: int,
    masks: tuple[Settings, Settings] | None = None,
    *,
    pool: Settings,
    box: Settings,
    pool_layer: Any = DeformRoIPool,
    mimic: Settings | None = None,
    **stages: Any,
) -> TwoStage:
    """A network with a box head, and a mask head of `masks`: its own and its pool's."""

    def heads(levels: Neck, types: dict[str, Any]) -> dict[str, Any]:
        of_levels = _of_levels(levels, num_classes)
        pooled = _pool(pool_layer, pool, levels, types)
        made: dict[str, Any] = dict(roi=BoxHead(pooled, **of_levels, **box, **types))
        if masks is not None:
            mask, mask_pool = masks
            pooled = _pool(pool_layer, mask_pool, levels, types)
            made["mask"] = MaskHead(pooled, **of_levels, **mask, **types)
        if mimic is not None:
            made["mimic"] = Mimic(made["roi"], **mimic, **types)
        return made

    return _two_stages(make_neck, heads, **stages)


def _two_stages(
    make_neck: Callable[..., Neck],
    heads: Callable[[Neck, dict[str, Any]], dict[str, Any]],
    *,
    rpn: Settings,
    sampling: RoISampling = RoISampling(),
    selection: DetectionSelection = DetectionSelection(),
    **stages: Any,
) -> TwoStage:
    """A network with the heads that `heads(neck, types)` makes for its neck."""
    trunk, types = _trunk(make_neck, **stages)
    proposals = _rpn(trunk, rpn, types)
    return TwoStage(
        trunk,
        proposals,
        **heads(trunk.neck, types),
        sampling=sampling,
        selection=selection,
    )


def _trunk(
    make_neck: Callable[..., Neck],
    *,
    backbone: Settings,
    neck: Settings,
    trunk: Settings | None = None,
    **types: Any,
) -> tuple[Trunk, dict[str, Any]]:
    """The trunk, and the types and `rngs` of what is put on it."""
    types = _types(**types)
    body = ResNet(**backbone, **types)
    levels = make_neck(body.channels, body.strides, **neck, **types)
    return Trunk(body, levels, **(trunk or {})), types


def _types(
    *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
) -> dict[str, Any]:
    return dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def _rpn(trunk: Trunk, rpn: Settings, types: dict[str, Any], **wired: Any) -> RPN:
    levels = trunk.neck
    return RPN(levels.rpn_features, levels.rpn_strides, **wired, **rpn, **types)


def _of_levels(neck: Neck, num_classes: int) -> dict[str, Any]:
    """Arguments of a head that its neck decides."""
    return dict(
        in_features=neck.roi_features, num_classes=num_classes, strides=neck.roi_strides
    )


def _pool(layer: Any, settings: Settings, neck: Neck, types: dict[str, Any]) -> Any:
    """A RoI pooling layer for the levels of a neck."""
    scales = [1 / stride for stride in neck.roi_strides]
    scale = tuple(scales) if len(scales) > 1 else scales[0]
    wired: dict[str, Any] = dict(spatial_scale=scale)
    if "in_features" in inspect.signature(layer.__init__).parameters:
        wired |= dict(in_features=neck.roi_features, **types)
    return layer(**settings, **wired)


Network = TwoStage | OneStage | DeepLab
# What a configuration may name.
NETWORKS = {
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_fpn": faster_rcnn_fpn,
    "mask_rcnn_fpn": mask_rcnn_fpn,
    "r_fcn": r_fcn,
    "class_aware_rpn": class_aware_rpn,
    "deeplab": deeplab,
}
# Those of them that learn and predict masks.
MASK_NETWORKS = frozenset({"mask_rcnn_fpn"})
# Those that label pixels.
SEGMENTERS = frozenset({"deeplab"})
POOL_LAYERS = {
    "RoIPool": RoIPool,
    "RoIAlign": RoIAlign,
    "DeformRoIPool": DeformRoIPool,
    "DeformRoIPoolByLevel": DeformRoIPoolByLevel,
}
