"""Initialisation of a ResNet from torchvision's weights.

timm's ResNets of the same kind ("resnet50" and so on) have the same names.
"""

import os
import re
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from dcn_jax.backbones.resnet import ResNet
from dcn_jax.weights.state_dict import read_state_dict

_MODULES = {
    "norm1": "bn1",
    "norm2": "bn2",
    "norm3": "bn3",
    "downsample_conv": "downsample.0",
    "downsample_norm": "downsample.1",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Tensors of the part that `ResNet` builds; one that finds no place there is a sign of
# another network. (fc.* is the classifier.)
_BACKBONE = re.compile(r"(conv1|bn1|layer\d+)\.(?!.*num_batches_tracked$)")


class InitReport(NamedTuple):
    """What `init_from` did, by name."""

    loaded: tuple[str, ...]  # tensors of the file that were copied into the module
    kept: tuple[str, ...]  # variables of the module that the file says nothing about
    unused: tuple[str, ...]  # tensors of the file that were not used


def init_from(module: nnx.Module, path: str | os.PathLike) -> InitReport:
    """Copy a torchvision ResNet's weights into a backbone, in place.

    Offset branches are not in such a file and keep their initial values. The classifier
    (fc) and the batch counters are not used. Values are cast to the module's types and
    placed as its variables are. If anything is refused, nothing is changed.

    Args:
      module: A `ResNet` with norm "frozen_bn", or a model that has one as `backbone`.
      path: .pth, .pt or .safetensors file.

    Returns:
      The names that were loaded, kept and not used.

    Raises:
      OSError: The file cannot be opened.
      TypeError: `module` is not such a model.
      ValueError: The file cannot be read (see `read_state_dict`), lacks a tensor, has
        one of another shape or type, or belongs to another network; the message names
        the tensor and the file.
    """
    backbone = getattr(module, "backbone", module)
    if not isinstance(backbone, ResNet):
        raise TypeError(
            f"`module` is {type(module).__name__}; expected a ResNet, or a model with "
            "a ResNet as `backbone`"
        )
    if backbone.norm != "frozen_bn":
        raise ValueError(
            f"`module` has norm {backbone.norm!r}; torchvision's weights belong to "
            "'frozen_bn'"
        )
    tensors = read_state_dict(path)
    file = os.path.basename(path)
    variables = dict(nnx.to_flat_state(nnx.state(backbone)))
    names = {p: _torchvision_name(p) for p in variables if "offset_conv" not in p}

    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise ValueError(
            f"{file!r} has no {_listed(missing)}; is it of a ResNet of other depths?"
        )
    unused = [name for name in tensors if name not in names.values()]
    foreign = [name for name in unused if _BACKBONE.match(name)]
    if foreign:
        raise ValueError(
            f"{file!r} has {_listed(foreign)}, for which the module has no place; is "
            "it of another network?"
        )
    values = {}
    for variable_path, name in names.items():
        values[variable_path] = _fitted(
            tensors[name], variables[variable_path].get_value(), name, file
        )
    for variable_path, value in values.items():
        variables[variable_path].set_value(value)
    nnx.update(backbone, nnx.from_flat_state(list(variables.items())))
    return InitReport(
        loaded=tuple(names.values()),
        kept=tuple(".".join(map(str, p)) for p in variables if p not in names),
        unused=tuple(unused),
    )


def _torchvision_name(path) -> str:
    *modules, leaf = (str(part) for part in path)
    return ".".join([*(_MODULES.get(part, part) for part in modules), _LEAVES[leaf]])


def _fitted(tensor: np.ndarray, old: jax.Array, name: str, file: str) -> jax.Array:
    """The tensor in the layout, type and place of the variable `old`."""
    axes = (2, 3, 1, 0) if tensor.ndim == 4 else range(tensor.ndim)  # OIHW to HWIO
    if tuple(tensor.shape[i] for i in axes) != old.shape:
        expected = (
            tuple(old.shape[i] for i in (3, 2, 0, 1)) if old.ndim == 4 else old.shape
        )
        raise ValueError(
            f"{name!r} has shape {tensor.shape} in {file!r}; expected {expected}"
        )
    if not jax.numpy.issubdtype(tensor.dtype, np.floating):
        raise ValueError(
            f"{name!r} has dtype {tensor.dtype.name} in {file!r}; expected a float type"
        )
    return jax.device_put(tensor.transpose(axes).astype(old.dtype), old.sharding)


def _listed(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"
