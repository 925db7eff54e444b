"""The primitive of an operator: a kernel where one is built, else plain jnp."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xla_ops._jax.batching import fold
from xla_ops._jax.libraries import backends, has_cuda_kernels
from xla_ops._jax.lowering import (
    devices_of,
    lower_function,
    lower_to_target,
    platforms_of,
    warn_of_reference,
)
from xla_ops._jax.sharding import in_auto_mode, result_types


class OperatorPrimitive:
    """A jax primitive that runs a kernel where one is built.

    A call is `primitive(*operands, implementation=None, **params) -> [array, ...]`,
    where implementation="reference" runs the reference instead of the primitive.

    Every operand and result leads with the batch size N, so that the partitioner can
    split all of them in the same way. An operand in `shared` (a weight) may lead with 1
    instead: then all images read copy 0. vmap folds the mapped axis into N; a shared
    operand that is not mapped stays one copy. For one device the leading 1 reaches the
    handler; for several the operand is broadcast to N when the program is lowered.

    Args:
      target: FFI target name, the same string as in `XLA_OPS_REGISTER`.
      results: `(*operands, **params) -> [(shape, dtype), ...]`, given anything that
        has `shape` and `dtype`.
      reference: `(*operands, **params) -> (array, ...)`, the same in plain jnp. It is
        differentiated in place of the kernel.
      attributes: `(**params) -> {name: value}` that the handler decodes: np.int64,
        np.float64 or str. Params must be hashable; `implementation` is not among them.
      shared: Positions of operands that lead with 1 or N; all others lead with N.
      cuda: `(*operands, devices, **params) -> (array, ...)`, for an operator that is
        several kernels of the CUDA library (`Kernel`) and plain jnp between them; None
        where it is one kernel, named `target`. The batch is probably split over as many
        as `devices`.
    """

    def __init__(
        self,
        target: str,
        *,
        results: Callable[..., Sequence[tuple[tuple, Any]]],
        reference: Callable[..., tuple],
        attributes: Callable[..., dict[str, Any]],
        shared: Sequence[int] = (),
        cuda: Callable[..., tuple] | None = None,
    ):
        self._target = target
        self._results = results
        self._reference = in_auto_mode(reference, results)
        # Outside jit a plain form would compile its loops anew at every call.
        self._compiled_reference = compiled(self._reference)
        self._attributes = attributes
        self._shared = shared
        self._cuda = cuda
        self._primitive = self._registered()

    def __call__(
        self, *operands: Any, implementation: str | None = None, **params: Any
    ) -> list[jax.Array]:
        """Runs the kernel, or the reference; see the class."""
        if implementation == "reference":
            return list(self._compiled_reference(*operands, **params))
        return self._bind(*operands, implementation=implementation, **params)

    def _registered(self) -> Primitive:
        """The primitive, whose rules are the methods below."""
        primitive = Primitive(self._target)
        primitive.multiple_results = True
        primitive.def_abstract_eval(self._abstract_eval)
        primitive.def_impl(eager_rule(primitive))
        batching.primitive_batchers[primitive] = self._batch
        ad.primitive_jvps[primitive] = self._jvp
        mlir.register_lowering(primitive, self._lower_reference)
        # A missing CPU library is an error, not a slow program.
        for platform in {"cpu", *backends()}:
            lower = functools.partial(self._lower_kernel, platform)
            mlir.register_lowering(primitive, lower, platform=platform)
        return primitive

    def _bind(self, *operands, **params):
        return self._primitive.bind(*operands, **params)

    def _abstract_eval(self, *avals, implementation, **params):
        return result_types(avals[0], self._results(*avals, **params))

    def _batch(self, operands, dims, **params):
        folded, unfold = fold(operands, dims, self._shared)
        return unfold(self._bind(*folded, **params))

    def _jvp(self, primals, tangents, *, implementation, **params):
        outputs = self._bind(*primals, implementation=implementation, **params)
        reference = functools.partial(self._compiled_reference, **params)
        return outputs, push_forward(reference, primals, tangents)[1]

    def _lower_reference(self, ctx, *operands, implementation, **params):
        """On a platform without kernels."""
        if implementation == "ffi":
            raise NotImplementedError(
                f"no {self._target} kernel is built for {platforms_of(ctx)} "
                f"(there are kernels for {backends()}); "
                'implementation="reference" or None runs everywhere'
            )
        warn_of_reference(platforms_of(ctx))
        reference = functools.partial(self._reference, **params)
        return lower_function(reference, ctx, operands)

    def _lower_kernel(self, platform, ctx, *operands, **params):
        again = functools.partial(self._bind, **params)
        params = {k: v for k, v in params.items() if k != "implementation"}
        if self._cuda is not None and has_cuda_kernels(platform):
            cuda = functools.partial(self._cuda, devices=devices_of(ctx))
            cuda = functools.partial(in_auto_mode(cuda, self._results), **params)
            return lower_function(cuda, ctx, operands)
        return lower_to_target(
            ctx,
            operands,
            target=self._target,
            platform=platform,
            attributes=self._attributes(**params),
            shared=self._shared,
            again=again,
        )


def compiled(function: Callable) -> Callable:
    """`function(*operands, **params)`, compiled once for operands and params alike."""

    @functools.cache
    def with_params(params):
        return jax.jit(functools.partial(function, **dict(params)))

    def call(*operands, **params):
        return with_params(tuple(sorted(params.items())))(*operands)

    return call


def eager_rule(primitive: Primitive) -> Callable:
    """Runs a primitive outside of jit: `(*operands, **params) -> [array, ...]`."""
    bind = compiled(primitive.bind)

    def rule(*operands, **params):
        if not jax.config.jax_disable_jit:  # pyright: ignore
            return bind(*operands, **params)
        # What is not compiled comes back to this rule.
        with jax.disable_jit(False):
            return bind(*operands, **params)

    return rule


def push_forward(
    function: Callable, primals: Sequence, tangents: Sequence
) -> tuple[list, list]:
    """Values and tangents of a function, of whose operands some do not move.

    Args:
      function: `(*operands) -> [array, ...]`.
      primals: The operands.
      tangents: Of each operand; a symbolic zero where it does not move.
    """
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def along(*moved):
        operands = list(primals)
        for i, x in zip(moving, moved, strict=True):
            operands[i] = x
        return tuple(function(*operands))

    values, out = jax.jvp(
        along, [primals[i] for i in moving], [tangents[i] for i in moving]
    )
    return list(values), [
        ad.Zero(jax.typeof(y).to_tangent_aval()) if t.dtype == jax.dtypes.float0 else t
        for y, t in zip(values, out, strict=True)
    ]
