"""From a configuration to a detector, and between a module and its named arrays."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.detection.two_stage import FasterRCNN
from train.config_dict import ConfigDict

Variables = dict[str, jax.Array]

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# The detector's arguments that weights depend on, though shapes may not tell.
_ARCHITECTURE = (
    "anchor_sizes", "aspect_ratios", "rpn_features", "reduction_features",
    "roi_pooling", "roi_output_size", "roi_sampling_ratio", "roi_branch_features",
    "head_features", "class_agnostic_boxes",
)  # fmt: skip


def build_detector(config: ConfigDict, num_classes: int, rngs: nnx.Rngs) -> FasterRCNN:
    """Returns the configured detector with fresh parameters.

    Raises:
      ValueError: An argument is out of its range.
    """
    if config.dtype not in _DTYPES:
        raise ValueError(
            f"`dtype` is {config.dtype!r}; expected one of {tuple(_DTYPES)}."
        )
    dtype = _DTYPES[config.dtype]
    backbone = ResNet(**config.backbone, dtype=dtype, rngs=rngs)
    return FasterRCNN(backbone, num_classes, **config.detector, dtype=dtype, rngs=rngs)


def build_skeleton(config: ConfigDict, num_classes: int) -> "Skeleton":
    """Returns the configured detector without its arrays."""
    return Skeleton(lambda rngs: build_detector(config, num_classes, rngs))


def read_weights(config: ConfigDict, skeleton: "Skeleton") -> dict[str, np.ndarray]:
    """Reads the weights that a run starts from.

    Args:
      config: Its `init_from` names the file; "" is for none.
      skeleton: The configured detector, with any number of classes.

    Returns:
      Dotted path -> array, for the variables that the file has.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It is of another network, or missing where it is needed.
    """
    if not config.init_from:
        if config.backbone.norm == "frozen_bn":
            raise ValueError(
                "`backbone.norm` is 'frozen_bn', whose statistics come with pretrained "
                "weights; expected `init_from` to name their file, or 'group_norm'."
            )
        return {}
    from dcn_jax.weights import init_from

    model = skeleton.model(skeleton.variables)
    init_from(model.backbone, Path(os.path.expanduser(config.init_from)))
    return {
        f"backbone.{name}": np.asarray(value)
        for name, value in variables_of(model.backbone).items()
        # The others are shapes still.
        if isinstance(value, jax.Array)
    }


def describe(config: ConfigDict, categories: Sequence[Mapping[str, Any]]) -> dict:
    """Returns what a checkpoint says of its model: `model`, `categories`, `config`."""
    model = {f"backbone.{k}": v for k, v in config.backbone.items()}
    model |= {f"detector.{k}": config.detector[k] for k in _ARCHITECTURE}
    # Which weights were kept fixed is no property of the result.
    del model["backbone.frozen_stages"]
    return {
        "model": model,
        "categories": [dict(category) for category in categories],
        "config": config.to_dict(),
    }


class Skeleton:
    """A module's structure without its arrays, which live under dotted paths.

    A flat dictionary, such as {"backbone.conv1.kernel": ...}, is what the optimiser
    masks, checkpoints name and jit sees; `model` puts it back together.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        self._build = build
        # The module with shapes in place of arrays.
        self.abstract: Any = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        self._graph, state = nnx.split(self.abstract)
        flat = nnx.to_flat_state(state)
        self._paths = {_dotted(path): path for path, _ in flat}
        # Dotted path -> shape and type.
        self.variables = {_dotted(path): v.get_value() for path, v in flat}
        # The paths that hold parameters.
        self.parameters = {_dotted(p) for p, v in flat if isinstance(v, nnx.Param)}

    def init(self, seed: int) -> Variables:
        """Returns fresh variables; meant to be called under `jax.jit`."""
        return variables_of(self._build(nnx.Rngs(seed)))

    def model(self, variables: Variables) -> Any:
        """Returns the module with these variables in it."""
        flat = {path: variables[name] for name, path in self._paths.items()}
        return nnx.merge(self._graph, nnx.from_flat_state(flat))


def variables_of(model: nnx.Module) -> Variables:
    """Returns the arrays of a module under their dotted paths."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {_dotted(path): variable.get_value() for path, variable in flat}


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
