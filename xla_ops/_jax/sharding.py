"""Types of operands and results under a mesh: every array is split along its batch.

Letters: N batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def align(*operands: jax.Array | None, shared: Sequence[int] = ()) -> tuple:
    """Gives operands the types that a primitive needs under a mesh.

    Under `shard_map` every operand varies over the union of the manual mesh axes that
    any of them varies over; the transpose of this cast sums a weight's gradient over
    the devices. Under an Explicit mesh the batch is split as it is in operand 0, other
    axes are not split. None passes through.

    Args:
      *operands: Arrays that lead with the batch size, or None.
      shared: Positions of operands that have no batch size, such as weights.

    Returns:
      The operands, in the same order.
    """
    types = {i: jax.typeof(x) for i, x in enumerate(operands) if x is not None}
    varying = frozenset().union(*(t.mat.varying for t in types.values()))
    batch = types[0].sharding.spec[0]
    aligned = list(operands)
    for index, t in types.items():
        x = operands[index]
        missing = varying - t.mat.varying
        if missing:
            x = jax.lax.pcast(x, tuple(missing), to="varying")
        leading = None if index in shared else batch
        spec = P(leading, *(None,) * (t.ndim - 1))
        if t.sharding.spec != spec:
            x = jax.sharding.reshard(x, spec)
        aligned[index] = x
    return tuple(aligned)


def reshape_images(x: jax.Array, shape: Sequence) -> jax.Array:
    """`x` [N, ...] with other axes after the first; the batch is split as before.

    What jax says of the split of a reshaped array is lost beside axes of size 1.
    """
    shape = (x.shape[0], *shape)
    return jax.lax.reshape(x, shape, out_sharding=sharding_or_none(x, len(shape)))


def in_auto_mode(
    form: Callable[..., Sequence[jax.Array]],
    results: Callable[..., Sequence[tuple[tuple, Any]]],
    summed: Sequence[int] = (),
) -> Callable[..., tuple[jax.Array, ...]]:
    """Lets the compiler, not the types, split a function under an Explicit mesh.

    Args:
      form: `(*operands, **params) -> (array, ...)`.
      results: `(*operands, **params) -> [(shape, dtype), ...]` of the same.
      summed: Positions of results that are sums over the batch.
    """

    def function(*operands, **params):
        first = jax.typeof(operands[0])
        run: Any = functools.partial(form, **params)
        if first.sharding.spec[0] is not None:
            shapes = results(*operands, **params)
            shardings = tuple(t.sharding for t in result_types(first, shapes, summed))
            run = jax.sharding.auto_axes(run, out_sharding=shardings)
        return tuple(run(*operands))

    return function


def result_types(like, results, summed: Sequence[int] = ()) -> list:
    """Types of results beside the batch-leading operand `like`.

    Args:
      like: Type of the operand.
      results: Shape and dtype of each.
      summed: Positions of results that are sums over the batch.
    """
    return [
        like.update(
            shape=tuple(shape),
            dtype=jnp.dtype(dtype),
            weak_type=False,
            sharding=batch_sharding(like, len(shape), index in summed),
        )
        for index, (shape, dtype) in enumerate(results)
    ]


def batch_sharding(like, ndim: int, summed: bool = False) -> NamedSharding:
    """Sharding of an array of rank `ndim` whose batch is split as that of `like`."""
    leading = None if summed else like.sharding.spec[0]
    return NamedSharding(like.sharding.mesh, P(leading, *(None,) * (ndim - 1)))


def sharding_or_none(x: jax.Array, ndim: int) -> NamedSharding | None:
    """`batch_sharding` beside the batch of `x`, or None where that is not split."""
    aval = jax.typeof(x)
    if aval.sharding.spec[0] is None:
        return None
    return batch_sharding(aval, ndim)
