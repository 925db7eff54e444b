"""The two kinds of models that are explained: Flax NNX, and bound Linen ones."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
from flax import linen, nnx

from dcn_jax.backbones import ResNet

# An NNX module, or a Linen module that is bound: `module.bind(variables)`.
Model = nnx.Module | linen.Module
# The pass that is explained: a model and a batch of one image to what is looked at.
Call = Callable[[Any, jax.Array], jax.Array]


def check_model(model: Any, name: str = "model") -> Model:
    """Returns the model.

    Args:
      model: Should be one.
      name: In messages.

    Raises:
      TypeError: It is neither an NNX module nor a Linen module.
      ValueError: It is a Linen module without variables.
    """
    if not isinstance(model, nnx.Module | linen.Module):
        raise TypeError(
            f"`{name}` is {type(model).__name__}; expected a flax.nnx.Module, or a "
            "flax.linen.Module that is bound to its variables"
        )
    if isinstance(model, linen.Module) and model.scope is None:
        raise ValueError(
            f"`{name}` is a {type(model).__name__} without variables; expected one "
            "that is bound to them, by its method bind(variables)"
        )
    return model


def copy_of(model: Model) -> Model:
    """A model that a pass may change, through which gradients reach the image.

    The stages of a `ResNet` that are frozen pass no gradient; in the copy they do.
    """
    if isinstance(model, linen.Module):
        return model
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, ResNet):
            module.frozen_stages = 0
    return model


def split_model(model: Model) -> tuple[Hashable, Any]:
    """What of a model is hashable, and its arrays, for `merge_model`."""
    if isinstance(model, linen.Module):
        return model.unbind()
    return nnx.split(model)


def merge_model(definition: Any, arrays: Any) -> Model:
    """The model of `split_model`."""
    if isinstance(definition, linen.Module):
        return definition.bind(arrays)
    return nnx.merge(definition, arrays)


def kernel_of(model: Model, name: str) -> jax.Array:
    """The kernel of a layer.

    Args:
      model: Has the layer.
      name: Path of the layer, joined by dots.
    """
    if isinstance(model, linen.Module):
        found = model.variables["params"]
        for part in filter(None, name.split(".")):
            found = found[part]
        return found["kernel"]
    layers: dict[str, Any] = {name_of(p): m for p, m in nnx.iter_modules(model)}
    return layers[name].kernel[...]


def name_of(path: tuple[Any, ...]) -> str:
    """Name of a layer: its path in the model, joined by dots."""
    return ".".join(map(str, path))
