"""Initialisation of a ResNet from torchvision's weights.

timm's ResNets of the same kind ("resnet50" and so on) have the same names.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from dcn_jax.backbones.resnet import ResNet
from dcn_jax.quoting import quoted
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

    Where the ResNet is a part of the model that was saved, its names have a prefix
    ("backbone.", "backbone.body.", "module.encoder."): whatever it is, it is found. The
    other parts of that model are not used.

    Args:
      module: A `ResNet` with norm "frozen_bn", or a model that has one as `backbone` or
        as `trunk.backbone`.
      path: .pth, .pt or .safetensors file.

    Returns:
      The names that were loaded, kept and not used.

    Raises:
      OSError: The file cannot be opened.
      TypeError: `module` is not such a model.
      ValueError: The file cannot be read (see `read_state_dict`), lacks a tensor, has
        one of another shape or type, has two ResNets, or belongs to another network;
        the message names the tensor and the file.
    """
    owner = getattr(module, "trunk", module)
    backbone = getattr(owner, "backbone", owner)
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
    file = quoted(os.path.basename(path), 260)
    variables = dict(nnx.to_flat_state(nnx.state(backbone)))
    names = {p: _torchvision_name(p) for p in variables if "offset_conv" not in p}

    prefix = _prefix(tensors, set(names.values()), file)
    names = {p: prefix + name for p, name in names.items()}
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise ValueError(
            f"{file} has no {_listed(missing)}; is it of a ResNet of other depths?"
            f"{_beginning(tensors, prefix)}"
        )
    used = set(names.values())
    unused = [name for name in tensors if name not in used]
    foreign = [
        name
        for name in unused
        if name.startswith(prefix) and _BACKBONE.match(name, len(prefix))
    ]
    if foreign:
        raise ValueError(
            f"{file} has {_listed(foreign)}, for which the module has no place; is "
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


def _prefix(names: Iterable[str], expected: set[str], file: str) -> str:
    """What stands in the file before the expected names; "" if they are not there."""
    depth = max(name.count(".") for name in expected) + 1
    found: Counter[str] = Counter()
    for name in names:
        # A name of the file may have any number of parts; the last ones matter.
        parts = name.rsplit(".", depth)
        for i in range(len(parts)):
            tail = ".".join(parts[i:])
            if tail in expected:
                found[name.removesuffix(tail)] += 1
    complete = [p for p, count in found.items() if count == len(expected)]
    if "" in complete or not found:
        return ""
    if len(complete) > 1:
        raise ValueError(
            f"{file} has a ResNet under {quoted(complete[0])} and another under "
            f"{quoted(complete[1])}; expected one: save its weights alone"
        )
    prefix, count = found.most_common(1)[0]
    # Fewer are of some other network that has a conv1 here and there.
    return prefix if 4 * count >= len(expected) else ""


def _beginning(names: Iterable[str], prefix: str) -> str:
    """Says how the names begin, if all do so alike."""
    if not prefix:
        shared = os.path.commonprefix(list(names))  # noqa: RUF071, of characters
        prefix = shared[: shared.rfind(".") + 1]
    return f" (Its names begin with {quoted(prefix)}.)" if prefix else ""


def _fitted(tensor: np.ndarray, old: jax.Array, name: str, file: str) -> jax.Array:
    """The tensor in the layout, type and place of the variable `old`."""
    axes = (2, 3, 1, 0) if tensor.ndim == 4 else range(tensor.ndim)  # OIHW to HWIO
    if tuple(tensor.shape[i] for i in axes) != old.shape:
        expected = (
            tuple(old.shape[i] for i in (3, 2, 0, 1)) if old.ndim == 4 else old.shape
        )
        raise ValueError(
            f"{quoted(name)} has shape {tensor.shape} in {file}; expected {expected}"
        )
    if not jax.numpy.issubdtype(tensor.dtype, np.floating):
        raise ValueError(
            f"{quoted(name)} has dtype {tensor.dtype.name} in {file}; expected a float "
            "type"
        )
    return jax.device_put(tensor.transpose(axes).astype(old.dtype), old.sharding)


def _listed(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{quoted(names[0])}{more}"
