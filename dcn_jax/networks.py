"""The papers' networks by name: functions that compose the stages.

A stage's arguments come as a mapping, `Settings`, of those that its constructor
documents, without what the composition itself wires: channels, strides, types, `rngs`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.mask_head import MaskHead
from dcn_jax.detection.mimic import Mimic
from dcn_jax.detection.rpn import RPN
from dcn_jax.detection.two_stage import TwoStage
from dcn_jax.modules import DeformRoIPool, DeformRoIPoolByLevel, RoIAlign, RoIPool
from dcn_jax.necks import FPN, DilatedConv5, Neck
from dcn_jax.trunk import Trunk

Settings = Mapping[str, Any]


def faster_rcnn(
    num_classes: int,
    *,
    backbone: Settings,
    neck: Settings,
    rpn: Settings,
    pool: Settings,
    box: Settings,
    pool_layer: Any = DeformRoIPool,
    trunk: Settings | None = None,
    mimic: Settings | None = None,
    sampling: RoISampling = RoISampling(),
    selection: DetectionSelection = DetectionSelection(),
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> TwoStage:
    """Faster R-CNN of both papers, on one level of stride 16.

    Args:
      num_classes: Foreground classes.
      backbone: Of `ResNet`, with `output_stride=16`.
      neck: Of `DilatedConv5`.
      rpn: Of `RPN`.
      pool: Of `pool_layer`.
      box: Of `BoxHead`.
      pool_layer: RoI pooling: `RoIPool`, `RoIAlign`, `DeformRoIPool`, or another class
        called like them; one that learns takes `in_features`, types and `rngs` too.
      trunk: Of `Trunk`; None takes its defaults.
      mimic: Of `Mimic`; None does not mimic.
      sampling: Which RoIs the head is trained on.
      selection: Which boxes are detections.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """
    types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    body = ResNet(**backbone, **types)
    levels = DilatedConv5(body.channels, body.strides, **neck, **types)
    proposals = RPN(levels.rpn_features, levels.rpn_strides, **rpn, **types)
    head = BoxHead(
        _pool(pool_layer, pool, levels, types),
        **_of_levels(levels, num_classes),
        **box,
        **types,
    )
    return TwoStage(
        Trunk(body, levels, **(trunk or {})),
        proposals,
        head,
        mimic=None if mimic is None else Mimic(head, **mimic, **types),
        sampling=sampling,
        selection=selection,
    )


def faster_rcnn_fpn(
    num_classes: int,
    *,
    backbone: Settings,
    neck: Settings,
    rpn: Settings,
    pool: Settings,
    box: Settings,
    pool_layer: Any = DeformRoIPool,
    mask: Settings | None = None,
    mask_pool: Settings | None = None,
    trunk: Settings | None = None,
    mimic: Settings | None = None,
    sampling: RoISampling = RoISampling(),
    selection: DetectionSelection = DetectionSelection(),
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> TwoStage:
    """Faster R-CNN on a feature pyramid; with a mask head it is `mask_rcnn_fpn`.

    Args:
      num_classes: Foreground classes.
      backbone: Of `ResNet`.
      neck: Of `FPN`.
      rpn: Of `RPN`.
      pool: Of `pool_layer`.
      box: Of `BoxHead`.
      pool_layer: As in `faster_rcnn`, for both heads.
      mask: Of `MaskHead`; None is without masks.
      mask_pool: Of `pool_layer`, for the mask head.
      trunk: Of `Trunk`; None takes its defaults.
      mimic: Of `Mimic`, for the box head; None does not mimic.
      sampling: Which RoIs the heads are trained on.
      selection: Which boxes are detections.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """
    types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    body = ResNet(**backbone, **types)
    levels = FPN(body.channels, body.strides, **neck, **types)
    proposals = RPN(levels.rpn_features, levels.rpn_strides, **rpn, **types)
    of_levels = _of_levels(levels, num_classes)
    head = BoxHead(_pool(pool_layer, pool, levels, types), **of_levels, **box, **types)
    masks = None
    if mask is not None:
        masks_of = _pool(pool_layer, mask_pool or {}, levels, types)
        masks = MaskHead(masks_of, **of_levels, **mask, **types)
    return TwoStage(
        Trunk(body, levels, **(trunk or {})),
        proposals,
        head,
        mask=masks,
        mimic=None if mimic is None else Mimic(head, **mimic, **types),
        sampling=sampling,
        selection=selection,
    )


def mask_rcnn_fpn(
    num_classes: int, *, mask: Settings, mask_pool: Settings, **stages: Any
) -> TwoStage:
    """Mask R-CNN on a feature pyramid.

    Args:
      num_classes: Foreground classes.
      mask: Of `MaskHead`.
      mask_pool: Of the pooling layer of the mask head.
      **stages: As in `faster_rcnn_fpn`.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
    """
    return faster_rcnn_fpn(num_classes, mask=mask, mask_pool=mask_pool, **stages)


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


# What a configuration may name.
NETWORKS = {
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_fpn": faster_rcnn_fpn,
    "mask_rcnn_fpn": mask_rcnn_fpn,
}
# Those of them that learn and predict masks.
MASK_NETWORKS = frozenset({"mask_rcnn_fpn"})
POOL_LAYERS = {
    "RoIPool": RoIPool,
    "RoIAlign": RoIAlign,
    "DeformRoIPool": DeformRoIPool,
    "DeformRoIPoolByLevel": DeformRoIPoolByLevel,
}
