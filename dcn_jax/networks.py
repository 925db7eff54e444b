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
from dcn_jax.detection.mimic import Mimic
from dcn_jax.detection.rpn import RPN
from dcn_jax.detection.two_stage import TwoStage
from dcn_jax.modules import DeformRoIPool, RoIAlign, RoIPool
from dcn_jax.necks import DilatedConv5
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
    (stride,) = levels.roi_strides
    wired: dict[str, Any] = dict(spatial_scale=1 / stride)
    if "in_features" in inspect.signature(pool_layer.__init__).parameters:
        wired |= dict(in_features=levels.roi_features, **types)
    head = BoxHead(
        pool_layer(**pool, **wired),
        levels.roi_features,
        num_classes,
        strides=levels.roi_strides,
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


# What a configuration may name.
NETWORKS = {"faster_rcnn": faster_rcnn}
# Those that learn and predict masks.
MASK_NETWORKS: frozenset[str] = frozenset()
POOL_LAYERS = {
    "RoIPool": RoIPool,
    "RoIAlign": RoIAlign,
    "DeformRoIPool": DeformRoIPool,
}
