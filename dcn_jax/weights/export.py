"""Weights written under other people's names, for them to load."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.modules import DeformConv
from dcn_jax.quoting import quoted
from dcn_jax.weights.detector import variables_of
from dcn_jax.weights.layouts import Axes
from dcn_jax.weights.names import RESNET
from dcn_jax.weights.owners import OWNERS
from dcn_jax.weights.safetensors_file import write_safetensors
from dcn_jax.weights.torch_writer import write_pth

# Those whose names can be written.
TARGETS = ("torchvision", "mmdetection")


def export_weights(
    model: nnx.Module, path: str | os.PathLike, *, to: str = "torchvision"
) -> tuple[str, ...]:
    """Writes the weights of a backbone or a detector with a pyramid.

    Rows for the background that torchvision's box and mask layers have, and nobody
    reads, are written as zeros. Mimicking is left out.

    Args:
      model: A `ResNet`, or a detector.
      path: .safetensors, or any other suffix for a file that `torch.load` reads.
      to: Whose names: "torchvision", or "mmdetection" (deformable detectors).

    Returns:
      The names.

    Raises:
      OSError: The file cannot be written.
      ValueError: They have no name for a part of the model, or compute something else
        with it.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, ResNet) and module.norm != "frozen_bn":
            raise ValueError(
                f"`model` has norm {module.norm!r}; {to} has batch norms, our "
                "'frozen_bn'"
            )
        if isinstance(module, DeformConv):
            for name, only in (
                *(("mask_scale", 1), ("max_offset", 0), ("border", "zeros")),
            ):
                if getattr(module, name) != only:
                    raise ValueError(
                        f"`model` has deformable layers with {name} "
                        f"{getattr(module, name)}; {to} has {only} alone"
                    )
    backbone = isinstance(model, ResNet)
    tensors = state_dict_of(variables_of(model), to, backbone=backbone)
    write_state_dict(path, tensors)
    return tuple(tensors)


def state_dict_of(
    variables: Mapping[str, np.ndarray], to: str, *, backbone: bool = False
) -> dict[str, np.ndarray]:
    """Tensors under somebody's names and in their layouts.

    Args:
      variables: By our dotted paths.
      to: One of `TARGETS`.
      backbone: Whether they are of a `ResNet` alone.

    Raises:
      ValueError: There is no name for a variable.
    """
    if to not in TARGETS:
        raise ValueError(f"`to` is {quoted(to)}; expected one of {TARGETS}")
    deforms = any(".offset_conv." in path for path in variables)
    if deforms and to == "torchvision" and not backbone:
        raise ValueError(
            "there are deformable layers, which no detector of torchvision has; "
            "expected mmdetection's names"
        )
    table = RESNET if backbone else OWNERS[to].table
    lateral = variables.get("trunk.neck.lateral.0.bias")
    axes = Axes(
        channels=1 if lateral is None else lateral.size,
        background_first=OWNERS[to].background_first,
        bgr=False,
    )
    tensors = {}
    for path, value in variables.items():
        if path.startswith("mimic."):
            continue
        place = table.theirs(path)
        if place is None:
            raise ValueError(f"{to} has no name for {quoted(path)}")
        tensors[place.name] = place.layout.write(value, axes)
    return tensors


def write_state_dict(path: str | os.PathLike, tensors: Mapping[str, Any]) -> None:
    """Writes tensors in the format that the suffix names.

    Raises:
      OSError: The file cannot be written.
      ValueError: The format has no such element type.
    """
    if os.fspath(path).endswith(".safetensors"):
        write_safetensors(path, tensors, {"format": "pt"})
    else:
        write_pth(path, tensors)
