"""What network a set of tensors belongs to, from their names and shapes alone.

Shape letters: R S kernel taps, C in channels, K out channels.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcn_jax.modules import DeformRoIPoolByLevel, RoIAlign

Variables = Mapping[str, np.ndarray]

_TAPS = 9  # of a deformable convolution
# Bins of the mask head's pooling, which no tensor tells.
_MASK_BINS = 14


def backbone_arguments(variables: Variables, prefix: str = "") -> dict[str, Any]:
    """Arguments of `ResNet`.

    Args:
      variables: By our paths.
      prefix: Of the backbone's paths, "" or with a dot at its end.

    Raises:
      ValueError: They are not a ResNet's; the message names what is wrong.
    """
    stem = _shape(variables, f"{prefix}conv1.kernel", 4)[3]
    blocks = _blocks(variables, prefix)
    first = _shape(variables, f"{prefix}layer1.0.conv2.kernel", 4)
    groups = max(1, first[3] // first[2]) if first[2] else 1
    arguments: dict[str, Any] = dict(
        depths=tuple(len(stage) for stage in blocks),
        stem_features=stem,
        groups=groups,
        width_per_group=64 * first[2] // stem,
    )
    branches = [
        variables[f"{path}.conv2.offset_conv.kernel"].shape[-1]
        for stage in blocks
        for path, deforms in stage
        if deforms
    ]
    if branches:
        width = _shape(variables, f"{_first_deformable(blocks)}.conv2.kernel", 4)[3]
        modulated, offset_groups = _offset_groups(branches, width)
        arguments |= dict(
            deform_blocks=tuple(_deform_blocks(stage, prefix) for stage in blocks),
            modulated=modulated,
            offset_groups=offset_groups,
        )
    return arguments


def detector_arguments(variables: Variables) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a network of `dcn_jax.networks`.

    Raises:
      ValueError: They are not of a detector with a pyramid; the message names what is
        wrong.
    """
    for part, path in (
        ("FPN", "trunk.neck.lateral.0.kernel"),
        ("region proposal network", "rpn.conv.kernel"),
        ("box head of two layers", "roi.fc7.kernel"),
    ):
        if path not in variables:
            raise ValueError(f"it has no {part} as that of Faster R-CNN with FPN")
    channels = _shape(variables, "trunk.neck.lateral.0.kernel", 4)[3]
    inputs, features = _shape(variables, "roi.fc6.kernel", 2)
    classes = _shape(variables, "roi.classifier.kernel", 2)[1] - 1
    boxes = _shape(variables, "roi.regressor.kernel", 2)[1] // 4
    bins = math.isqrt(inputs // channels) if channels else 0
    if classes < 1 or bins < 1:
        raise ValueError(
            f"its classifier has {classes + 1} classes, its first layer {inputs} inputs"
        )
    arguments: dict[str, Any] = dict(
        num_classes=classes,
        backbone=backbone_arguments(variables, "trunk.backbone."),
        neck=dict(features=channels),
        rpn=dict(features=_shape(variables, "rpn.conv.kernel", 4)[3]),
        pool_layer=RoIAlign,
        pool=dict(output_size=bins),
        box=dict(features=features, class_agnostic=boxes == 1 and classes > 1),
    )
    branch = "roi.pool.branches.0"
    if f"{branch}.offset_fc1.kernel" in variables:
        arguments["pool_layer"] = DeformRoIPoolByLevel
        arguments["pool"] |= dict(
            hidden_features=_shape(variables, f"{branch}.offset_fc1.kernel", 2)[1],
            modulated=f"{branch}.mask_fc1.kernel" in variables,
        )
    if "mask.predictor.kernel" not in variables:
        return "faster_rcnn_fpn", arguments
    if arguments["pool_layer"] is not RoIAlign:
        raise ValueError(
            "it has masks and deformable RoI pooling; expected one of them"
        )
    arguments["mask"] = dict(
        features=_shape(variables, "mask.deconv.kernel", 4)[3],
        num_convs=_count(variables, r"mask\.convs\.(\d+)\.kernel"),
    )
    arguments["mask_pool"] = dict(output_size=_MASK_BINS)
    return "mask_rcnn_fpn", arguments


def _blocks(variables: Variables, prefix: str) -> list[list[tuple[str, bool]]]:
    """Path of each block of each stage, and whether it deforms."""
    stages = []
    for i in range(1, 5):
        stage: list[tuple[str, bool]] = []
        while f"{prefix}layer{i}.{len(stage)}.conv2.kernel" in variables:
            path = f"{prefix}layer{i}.{len(stage)}"
            stage.append((path, f"{path}.conv2.offset_conv.kernel" in variables))
        if not stage:
            raise ValueError(f"its backbone has no blocks in stage {i}")
        stages.append(stage)
    return stages


def _first_deformable(blocks) -> str:
    return next(path for stage in blocks for path, deforms in stage if deforms)


def _deform_blocks(stage, prefix: str) -> int:
    """How many of a stage deform, counted from the last; -1 is all."""
    deforms = [deforms for _, deforms in stage]
    count = sum(deforms)
    if not all(deforms[len(deforms) - count :]):
        name = stage[0][0].removeprefix(prefix).partition(".")[0]
        raise ValueError(
            f"of its {name} some blocks deform, but not the last ones; expected the "
            "last ones, all or none"
        )
    return -1 if count == len(deforms) else count


def _offset_groups(branches: list[int], width: int) -> tuple[bool, int]:
    """Whether the convolutions are modulated, and their offset groups."""
    outputs = branches[0]
    if len(set(branches)) == 1:
        # 54 outputs could be 2 groups or 3: the number must divide the channels.
        for modulated, per_group in ((True, 3 * _TAPS), (False, 2 * _TAPS)):
            groups, rest = divmod(outputs, per_group)
            if rest == 0 and groups > 0 and width % groups == 0:
                return modulated, groups
    raise ValueError(
        f"its offset branches have {sorted(set(branches))[:4]} outputs; expected the "
        f"same number in all, a multiple of {2 * _TAPS} or {3 * _TAPS}"
    )


def _count(variables: Variables, pattern: str) -> int:
    numbers = {
        int(match[1]) for path in variables if (match := re.fullmatch(pattern, path))
    }
    if numbers != set(range(len(numbers))):
        raise ValueError(f"its layers are numbered {sorted(numbers)[:8]}")
    return len(numbers)


def _shape(variables: Variables, path: str, rank: int) -> tuple[int, ...]:
    if path not in variables:
        raise ValueError(f"it has nothing for `{path}`")
    shape = variables[path].shape
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"its `{path}` has shape {shape}; expected {rank} sizes")
    return shape
