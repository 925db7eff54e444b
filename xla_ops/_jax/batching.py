"""vmap of a primitive: the mapped axis is folded into the batch, and stays one call.

Letters: N batch, M size of the mapped axis.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from xla_ops._jax.sharding import sharding_or_none


def fold(
    operands: Sequence, dims: Sequence[int | None], shared: Sequence[int]
) -> tuple[list, Callable]:
    """Folds the mapped axis into the batch axis of operands.

    The order of the two is free; the one that is split over devices should go first, so
    that nothing moves. An Explicit mesh says which that is. Under an Auto mesh the
    guess is the batch where operand 0 is not mapped (as in a vmap over weights), else
    the mapped axis.

    Args:
      operands: Arrays [N, ...], the mapped axis beside these.
      dims: Where each has its mapped axis; None for an operand that is not mapped.
      shared: Positions of operands that may lead with 1 in place of N. Where they do
        and are not mapped, they stay as they are.

    Returns:
      The operands, [M*N, ...] or [N*M, ...]; and a function that unfolds results and
      says where their mapped axis is: `(results) -> (results, [axis, ...])`.
    """
    size = next(
        x.shape[dim] for x, dim in zip(operands, dims, strict=True) if dim is not None
    )
    expanded = [
        jnp.broadcast_to(x[None], (size, *x.shape))
        if dim is None
        else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(operands, dims, strict=True)
    ]
    images = expanded[0].shape[1]
    spec = jax.typeof(expanded[0]).sharding.spec
    batch_first = spec[0] is None and (spec[1] is not None or dims[0] is None)
    mapped = 1 if batch_first else 0
    folded = []
    for index, (operand, dim, x) in enumerate(
        zip(operands, dims, expanded, strict=True)
    ):
        if index in shared and operand.shape[0] == 1 and dim is None:
            folded.append(operand)
            continue
        x = jnp.broadcast_to(x, (size, images, *x.shape[2:]))
        folded.append(_merge_leading(jnp.moveaxis(x, 0, mapped)))

    def unfold(results):
        sizes = (images, size) if batch_first else (size, images)
        split = [_split_leading(y, sizes) for y in results]
        if spec[0] is not None and spec[1] is not None:
            # Both axes were split. The call splits one; the types have to say both.
            split = [
                jax.sharding.reshard(y, P(*spec[:2], *(None,) * (y.ndim - 2)))
                for y in split
            ]
        return split, [mapped] * len(results)

    return folded, unfold


def _merge_leading(x):
    """[M, N, ...] -> [M*N, ...], split over devices as axis 0 was."""
    sharding = sharding_or_none(x, x.ndim)
    if any(axes is not None for axes in jax.typeof(x).sharding.spec[1:]):
        x = jax.sharding.reshard(x, sharding or P(*(None,) * x.ndim))
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    return jax.lax.reshape(x, shape, out_sharding=sharding_or_none(x, len(shape)))


def _split_leading(x, sizes):
    """[M*N, ...] -> [M, N, ...], split over devices as axis 0 was."""
    shape = (*sizes, *x.shape[1:])
    return jax.lax.reshape(x, shape, out_sharding=sharding_or_none(x, len(shape)))
