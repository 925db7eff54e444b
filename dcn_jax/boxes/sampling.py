"""Choice of a fixed number of candidates: at random for a loss, or by score.

Shape letters: n candidates, S the number chosen. `sample_balanced` is for one image;
`jax.vmap` gives the batch.

Partitioning: use `top_k` of this file, not `jax.lax.top_k`, where the batch axis may be
sharded. XLA partitions a sort along the last axis, but `jax.lax.top_k` is an opaque
custom call on CPU, for which every device first gathers the whole batch.
`jnp.take_along_axis` along the last axis, and indexing under `jax.vmap`, stay local. On
an Explicit mesh the indexed array must itself have the batch axis (the anchors, which
all images share, do not).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32, Key, Num, Shaped


class Samples(NamedTuple):
    """Candidates chosen for a loss: positives first, then negatives, then filler."""

    index: Int32[Array, " S"]  # into the n candidates; 0 in filler rows
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]  # False in filler rows: there were not enough candidates


def top_k(
    values: Num[Array, "*b n"], k: int
) -> tuple[Num[Array, "*b k"], Int32[Array, "*b k"]]:
    """The k largest along the last axis, falling, and their indices.

    Of equal values the lower index comes first; NaN comes last. Computed by a sort,
    which XLA partitions over the leading axes (see the top of this file).

    Raises:
      ValueError: `k` exceeds the length of the axis.
    """
    n = values.shape[-1]
    if not 0 <= k <= n:
        raise ValueError(f"`k` is {k}; expected 0 to {n}, the length of the last axis")
    iota = lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    negated, index = lax.sort((-values, iota), num_keys=1, is_stable=True)
    return -negated[..., :k], index[..., :k]


def gather_rows(
    values: Shaped[Array, "N n *s"], index: Int32[Array, "N k"]
) -> Shaped[Array, "N k *s"]:
    """Rows of each image, `values[i, index[i, j]]`; indices must be in range.

    Where an image has no rows at all, they are zeros. Batch-leading on both sides:
    local on every device of a mesh (see the top).
    """
    if values.shape[1] == 0:
        return jnp.zeros((*index.shape, *values.shape[2:]), values.dtype)
    return jax.vmap(lambda rows, i: rows[i])(values, index)


def sample_balanced(
    key: Key[Array, ""],
    label: Int32[Array, " n"],
    *,
    count: int,
    positive_fraction: float,
) -> Samples:
    """Choose `count` candidates at random, without replacement.

    At most `floor(count * positive_fraction)` are positives; negatives fill the rest.

    Args:
      key: Key for this image.
      label: 1 positive, 0 negative, -1 not to be chosen (as `match_boxes` gives).
      count: Number of rows of the result.
      positive_fraction: Largest share of positives, in [0, 1].

    Raises:
      ValueError: `count` or `positive_fraction` is out of range.

    Source: Fast R-CNN (arXiv:1504.08083) section 2.3, as torchvision's
    BalancedPositiveNegativeSampler.
    """
    if count < 1:
        raise ValueError(f"`count` is {count}; expected at least 1")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(
            f"`positive_fraction` is {positive_fraction}; expected a number in [0, 1]"
        )
    priority = jax.random.uniform(key, label.shape)
    max_positives = int(count * positive_fraction)
    positives, num_positives = _choose(priority, label == 1, max_positives)
    negatives, num_negatives = _choose(priority, label == 0, count)
    num_negatives = jnp.minimum(num_negatives, count - num_positives)
    row = jnp.arange(count, dtype=jnp.int32)
    positive = row < num_positives
    valid = row < num_positives + num_negatives
    shifted = jnp.take_along_axis(
        negatives, jnp.where(positive, 0, row - num_positives), axis=0
    )
    filled = jnp.zeros(count, jnp.int32).at[:max_positives].set(positives)
    index = jnp.where(positive, filled, shifted)
    return Samples(jnp.where(valid, index, 0), positive, valid)


def _choose(priority, eligible, count):
    """Rows [count] of highest priority among the eligible, and how many are such."""
    k = min(count, priority.shape[0])
    _, index = top_k(jnp.where(eligible, priority, -1), k)
    number = jnp.minimum(jnp.sum(eligible, dtype=jnp.int32), k)
    return jnp.pad(index, (0, count - k)), number
