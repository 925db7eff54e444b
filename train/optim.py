"""The optimiser of a configuration: schedule, decay, multipliers, frozen parameters.

Parameters are a flat dictionary from dotted path, as "trunk.backbone.conv1.kernel".
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from train.config_dict import ConfigDict

Params = dict[str, jax.Array]
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def learning_rate(optim: ConfigDict, steps: int) -> Schedule:
    """Returns the rate at a step: linear warm-up, drops at fractions of the run."""
    drops = [round(fraction * steps) for fraction in optim.decay_at]

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        value = jnp.asarray(optim.lr, jnp.float32)
        if optim.warmup_steps:
            done = jnp.minimum(step.astype(jnp.float32) / optim.warmup_steps, 1.0)
            value *= optim.warmup_factor + (1.0 - optim.warmup_factor) * done
        for drop in drops:
            value *= jnp.where(step < drop, 1.0, optim.decay_factor)
        return value

    return rate


def highest_rate(optim: ConfigDict, steps: int) -> float:
    """Returns the highest rate of a run of so many steps."""
    rate = learning_rate(optim, steps)
    # It rises, then drops: the highest is the last of the warm-up, or before a drop.
    ends = [optim.warmup_steps, steps - 1]
    ends += [round(fraction * steps) - 1 for fraction in optim.decay_at]
    ends = {min(max(step, 0), steps - 1) for step in ends}
    return max(float(rate(jnp.int32(step))) for step in ends)


def multiplier(path: str, optim: ConfigDict) -> float:
    """Returns the factor on the rate of the parameter at `path`."""
    for pattern, factor in optim.lr_multipliers:
        if re.search(pattern, path):
            return float(factor)
    return 1.0


def trainable(
    parameters: Iterable[str], optim: ConfigDict, frozen: tuple[str, ...] = ()
) -> frozenset[str]:
    """Returns the parameters that an optimiser step changes.

    Args:
      parameters: Dotted paths.
      optim: The section `optim` of a configuration.
      frozen: Beginnings of the paths that are left out, beside those with factor 0.
    """
    return frozenset(
        path
        for path in parameters
        if multiplier(path, optim) > 0 and not path.startswith(frozen)
    )


def make_optimizer(
    optim: ConfigDict, paths: Iterable[str]
) -> optax.GradientTransformation:
    """Returns the transformation of gradients up to, but without, the schedule.

    The training step multiplies by the rate of its own step counter, so that a skipped
    step leaves everything that the optimiser holds as it was.

    Args:
      optim: The section `optim` of a configuration.
      paths: Dotted paths of the trainable parameters.

    Raises:
      ValueError: `optim.name` is neither "sgd" nor "adamw".
    """
    factors = {path: multiplier(path, optim) for path in paths}
    clip = (
        optax.clip_by_global_norm(optim.clip_norm)
        if optim.clip_norm
        else optax.identity()
    )
    decay = optax.add_decayed_weights(optim.weight_decay, _is_weight)
    if optim.name == "sgd":
        # The decay enters the momentum, as in the recipe's own implementation.
        rule = (clip, decay, optax.trace(optim.momentum))
    elif optim.name == "adamw":
        rule = (clip, optax.scale_by_adam(), decay)
    else:
        raise ValueError(f"`optim.name` is {optim.name!r}; expected 'sgd' or 'adamw'.")
    return optax.chain(*rule, _scale_each(factors))


def _is_weight(params: Params) -> dict[str, bool]:
    # Biases and the scales of norms are vectors.
    return {path: value.ndim > 1 for path, value in params.items()}


def _scale_each(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates: Any, params: Any = None) -> Params:
        del params
        return {path: value * factors[path] for path, value in updates.items()}

    return optax.stateless(update)
