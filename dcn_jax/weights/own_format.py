"""Our own form of a detector: .safetensors whose header describes the network.

The header's texts are "format" ("dcn_jax"), "network", and in JSON "arguments" and, of
a network that was trained on a data set, "categories" and "preprocessing"; tensors bear
the dotted paths of the variables.
"""

import dataclasses
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dcn_jax.backbones import ResNet
from dcn_jax.categories import Category, from_text, to_text
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.mask_head import MaskHead
from dcn_jax.detection.mimic import Mimic
from dcn_jax.detection.psroi_head import PSRoIHead
from dcn_jax.detection.rpn import RPN
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.networks import NETWORKS, POOL_LAYERS
from dcn_jax.quoting import one_line, quoted
from dcn_jax.trunk import Trunk
from dcn_jax.weights.safetensors_file import write_safetensors

_FORMAT = "dcn_jax"
# Integers of a description are smaller, and its sequences shorter.
_MAX_NUMBER = 1 << 20
_MAX_LENGTH = 64

# Whose signatures say which arguments are dataclasses.
_CONSTRUCTORS: Mapping[str, Any] = {
    "backbone": ResNet,
    "trunk": Trunk,
    "rpn": RPN,
    "box": BoxHead,
    "psroi": PSRoIHead,
    "mask": MaskHead,
    "mimic": Mimic,
}
# Arguments of a network that are dataclasses themselves.
_RECORDS: Mapping[str, Any] = {
    "sampling": RoISampling,
    "selection": DetectionSelection,
}


class Description(NamedTuple):
    """What a header says; None of what it leaves out."""

    network: str  # of `NETWORKS`
    arguments: dict[str, Any]  # of that function, without types and `rngs`
    categories: tuple[Category, ...] | None = None
    preprocessing: Preprocessing | None = None


def is_own(texts: Mapping[str, str]) -> bool:
    """Whether a header with these texts is of this form."""
    return texts.get("format") == _FORMAT


def write_own(
    path: str | os.PathLike,
    network: str,
    arguments: Mapping[str, Any],
    variables: Mapping[str, np.ndarray],
    *,
    categories: Sequence[Category] | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Writes a network.

    Args:
      path: .safetensors file.
      network: Of `NETWORKS`.
      arguments: Of that function, without types and `rngs`.
      variables: By dotted path.
      categories: What its labels mean.
      preprocessing: How images come onto its canvases.

    Raises:
      OSError: The file cannot be written.
      ValueError: An argument cannot be written as text.
    """
    layers = {layer: name for name, layer in POOL_LAYERS.items()}

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if value in layers:
            return layers[value]
        raise ValueError(f"{quoted(value)} cannot be written as text")

    text = json.dumps(dict(arguments), default=plain)
    metadata = {"format": _FORMAT, "network": network, "arguments": text}
    if categories is not None:
        metadata["categories"] = to_text(categories)
    if preprocessing is not None:
        metadata["preprocessing"] = preprocessing.to_text()
    write_safetensors(path, variables, metadata)


def description(texts: Mapping[str, str]) -> Description:
    """What the texts of a header say.

    Raises:
      ValueError: The texts describe none.
    """
    network = texts.get("network", "")
    if network not in NETWORKS:
        raise ValueError(
            f"its network is {quoted(network)}; expected one of {tuple(NETWORKS)}"
        )
    try:
        arguments = json.loads(texts.get("arguments", ""), parse_int=_small)
    except (ValueError, RecursionError) as error:
        reason = one_line(str(error), 200)
        raise ValueError(f"its arguments are no JSON ({reason})") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"its arguments are {quoted(arguments)}; expected names")
    arguments = {
        name: _revived(name, _tupled(value)) for name, value in arguments.items()
    }
    layer = arguments.get("pool_layer")
    if layer is not None:
        if not isinstance(layer, str) or layer not in POOL_LAYERS:
            raise ValueError(
                f"its pool_layer is {quoted(layer)}; expected one of "
                f"{tuple(POOL_LAYERS)}"
            )
        arguments["pool_layer"] = POOL_LAYERS[layer]
    categories = preprocessing = None
    if "categories" in texts:
        categories = from_text(texts["categories"])
        if len(categories) != (count := arguments.get("num_classes")):
            raise ValueError(
                f"it has {len(categories)} categories, and its network "
                f"{quoted(count)} classes"
            )
    if "preprocessing" in texts:
        preprocessing = Preprocessing.from_text(texts["preprocessing"])
    return Description(network, arguments, categories, preprocessing)


def _small(text: str) -> int:
    value = int(text) if len(text) < 20 else _MAX_NUMBER + 1
    if abs(value) > _MAX_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return value


def _tupled(value: Any) -> Any:
    if isinstance(value, list):
        if len(value) > _MAX_LENGTH:
            raise ValueError(
                f"its arguments have a sequence of {len(value)}; expected at most "
                f"{_MAX_LENGTH}"
            )
        return tuple(map(_tupled, value))
    if isinstance(value, dict):
        return {name: _tupled(item) for name, item in value.items()}
    return value


def _revived(name: str, value: Any) -> Any:
    """An argument, or those of a stage, with the dataclasses that they were."""
    if name in _CONSTRUCTORS and isinstance(value, dict):
        parameters = inspect.signature(_CONSTRUCTORS[name].__init__).parameters
        defaults = {key: parameter.default for key, parameter in parameters.items()}
        return {
            key: _dataclass_of(type(defaults.get(key)), key, item)
            for key, item in value.items()
        }
    return _dataclass_of(_RECORDS.get(name), name, value)


def _dataclass_of(type_: Any, name: str, value: Any) -> Any:
    record = isinstance(type_, type) and dataclasses.is_dataclass(type_)
    if not record or not isinstance(value, dict):
        return value
    try:
        return type_(**value)
    except TypeError as error:
        raise ValueError(f"its {name}: {one_line(str(error), 200)}") from None
