"""Mean and deviation of numbers that come in groups and in parts."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Moments(NamedTuple):
    """Of how many numbers, their mean, and how far they lie from it.

    Fields are arrays of one shape, of JAX or of NumPy. No sum of squares is kept: its
    digits would be lost where the mean is large beside the deviation.
    """

    count: Any
    mean: Any  # 0 where there are none
    squares: Any  # sum of the squared distances from the mean

    @property
    def deviation(self) -> Any:
        """Standard deviation of the numbers themselves (divided by their count)."""
        return (self.squares / self.count.clip(1)) ** 0.5


def moments_of_groups(
    values: Float[Array, "*s"], group: Int[Array, "*s"], groups: int
) -> Moments:
    """Returns the moments of the values of each group, [groups], in their dtype.

    Args:
      values: Any numbers.
      group: Which group each belongs to; what is not in [0, groups) belongs to none.
      groups: How many there are.
    """
    values = values.reshape(1, -1)
    member = group.reshape(1, -1) == jnp.arange(groups, dtype=group.dtype)[:, None]
    count = member.sum(1, dtype=values.dtype)
    mean = jnp.where(member, values, 0).sum(1) / count.clip(1)
    squares = jnp.where(member, jnp.square(values - mean[:, None]), 0).sum(1)
    return Moments(count, mean, squares)


def merge(parts: Moments) -> Moments:
    """Returns the moments of all numbers, whose parts stand along the first axis."""
    count = parts.count.sum(0)
    mean = (parts.count * parts.mean).sum(0) / count.clip(1)
    between = parts.count * (parts.mean - mean[None]) ** 2
    return Moments(count, mean, (parts.squares + between).sum(0))
