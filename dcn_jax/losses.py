"""Losses that optax does not have in the form that detectors use."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float


def smooth_l1(
    pred: Float[Array, "*s"], target: Float[Array, "*s"], beta: float = 1.0
) -> Float[Array, "*s"]:
    """Smooth L1 loss: d^2 / (2 beta) where |d| < beta, else |d| - beta / 2.

    Args:
      pred: Predictions.
      target: Targets.
      beta: Where the parabola meets the line; 0 gives |d|. Caffe's sigma is
        1/sqrt(beta).

    Raises:
      ValueError: `beta` is negative.

    Source: Fast R-CNN (arXiv:1504.08083) eq. 3.
    """
    if beta < 0:
        raise ValueError(f"`beta` is {beta}; expected a number >= 0")
    if beta == 0:
        return jnp.abs(pred - target)
    return optax.losses.huber_loss(pred, target, delta=beta) / beta


def masked_mean(
    values: Float[Array, "*s"],
    mask: Bool[Array, "*s"],
    count: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Sum of the values under the mask, over `count`.

    What the mask drops has no influence, also when it is infinite or NaN, and gets
    gradient 0. (Its own derivative must be finite: mask the operands where it is not.)

    Args:
      values: Any shape.
      mask: Which values count.
      count: Divisor; by default how many values count. 0 is taken as 1.
    """
    if count is None:
        count = jnp.sum(mask, dtype=values.dtype)
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(count, 1)
