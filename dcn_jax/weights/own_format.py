"""Our own form of a detector: .safetensors whose header describes the network.

The header's texts are "format" ("dcn_jax"), "network", and "arguments" in JSON; tensors
bear the dotted paths of the variables.
"""

import dataclasses
import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcn_jax.backbones import ResNet
from dcn_jax.detection.box_head import BoxHead, DetectionSelection, RoISampling
from dcn_jax.detection.mask_head import MaskHead
from dcn_jax.detection.mimic import Mimic
from dcn_jax.detection.psroi_head import PSRoIHead
from dcn_jax.detection.rpn import RPN
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


def is_own(texts: Mapping[str, str]) -> bool:
    """Whether a header with these texts is of this form."""
    return texts.get("format") == _FORMAT


def write_own(
    path: str | os.PathLike,
    network: str,
    arguments: Mapping[str, Any],
    variables: Mapping[str, np.ndarray],
) -> None:
    """Writes a detector.

    Args:
      path: .safetensors file.
      network: Of `NETWORKS`.
      arguments: Of that function, without types and `rngs`.
      variables: By dotted path.

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
    write_safetensors(path, variables, metadata)


def description(texts: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The network and its arguments.

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
    return network, arguments


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
