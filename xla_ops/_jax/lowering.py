"""From a primitive to a custom call, which the partitioner may split over devices.

Letters: N batch.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.interpreters import mlir

from xla_ops._jax.libraries import check_target
from xla_ops._jax.sharding import sharding_or_none


def platforms_of(ctx: Any) -> str:
    """The platforms for which a call is lowered, as a text for messages."""
    return ", ".join(ctx.platforms or ctx.module_context.platforms)


@functools.cache
def warn_of_reference(platform: str) -> None:
    """Warns, once a platform, that it runs the plain forms."""
    warnings.warn(
        f"xla_ops has no kernels for {platform}: its operators run in plain jnp there, "
        'which is slower; implementation="reference" asks for that without a warning',
        stacklevel=2,
    )


def devices_of(ctx: Any) -> int:
    """For how many devices a call is lowered that the compiler may split."""
    if not _is_partitioned(ctx):
        return 1
    axes = ctx.module_context.axis_context
    sharding = isinstance(axes, mlir.ShardingContext)
    return axes.num_devices if sharding else axes.mesh.size


def _is_partitioned(ctx) -> bool:
    """Whether the compiler may split the call over devices."""
    avals = (*ctx.avals_in, *ctx.avals_out)
    if not all(isinstance(size, int) for aval in avals for size in aval.shape):
        # A sharding rule needs numbers; with symbolic sizes the call is not split.
        return False
    axes = ctx.module_context.axis_context
    if isinstance(axes, mlir.ShardingContext):
        return axes.num_devices > 1
    if isinstance(axes, mlir.SPMDAxisContext):
        return axes.mesh.size > 1 and axes.manual_axes != frozenset(
            axes.mesh.axis_names
        )
    return False


def lower_function(
    function: Callable[..., Sequence[jax.Array]],
    ctx: Any,
    operands: Sequence,
) -> Sequence:
    """Lowers what a function does with the operands: `(*operands) -> (array, ...)`."""
    return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)


def lower_to_target(
    ctx: Any,
    operands: Sequence,
    *,
    target: str,
    platform: str,
    attributes: dict[str, Any],
    shared: Sequence[int],
    again: Callable[..., Sequence[jax.Array]],
) -> Sequence:
    """Lowers to a custom call.

    Args:
      ctx: Of the lowering rule, like operands.
      operands: Values of MLIR.
      target: FFI target name.
      platform: Whose kernel is called.
      attributes: `{name: value}` that the handler decodes.
      shared: Positions of operands that lead with 1 or N.
      again: Binds the same primitive, `(*operands) -> [array, ...]`; where the call may
        be split it is given operands that all lead with N.

    Raises:
      RuntimeError: The platform's library has no such target.
    """
    check_target(target, platform)
    extra_attributes = None
    if _is_partitioned(ctx):
        images = ctx.avals_in[0].shape[0]
        if any(ctx.avals_in[i].shape[0] != images for i in shared):

            def expanded(*operands):
                return again(*_expand_shared(operands, shared))

            return lower_function(expanded, ctx, operands)
        extra_attributes = _partitioning_attributes(ctx)
    rule = jax.ffi.ffi_lowering(target, extra_attributes=extra_attributes)
    return rule(ctx, *operands, **attributes)


def _expand_shared(operands, shared):
    """Copies shared operands that lead with 1 to each image."""
    images = operands[0].shape[0]
    expanded = list(operands)
    for index in shared:
        x = operands[index]
        shape = (images, *x.shape[1:])
        if x.shape != shape:
            expanded[index] = jax.lax.broadcast_in_dim(
                x,
                shape,
                range(x.ndim),
                out_sharding=sharding_or_none(operands[0], x.ndim),
            )
    return expanded


def _partitioning_attributes(ctx) -> dict[str, Any]:
    """Tells the partitioner that axis 0 of all operands and results is one batch."""
    names = itertools.chain("jklmnopqrstuvwxyz", (f"z_{k}" for k in itertools.count(1)))
    sizes = {"i": ctx.avals_in[0].shape[0]}

    def factors(avals):
        lists = []
        for aval in avals:
            own = ["i"]
            for size in aval.shape[1:]:
                own.append(next(names))
                sizes[own[-1]] = size
            lists.append(f"[{', '.join(own)}]")
        return ", ".join(lists)

    mapping = f"({factors(ctx.avals_in)})->({factors(ctx.avals_out)})"
    numbers = ", ".join(f"{name}={size}" for name, size in sizes.items())
    rule = f"#sdy.op_sharding_rule<{mapping} {{{numbers}}}>"
    return {
        "mhlo.frontend_attributes": mlir.ir_attribute({"num_batch_dims": "1"}),
        "sdy.sharding_rule": mlir.ir.Attribute.parse(rule),
    }
