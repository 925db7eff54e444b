"""The primitive of an operator: a kernel where one is built, else plain jnp."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xla_ops._jax.batching import fold
from xla_ops._jax.eager import compiled, eager_rule
from xla_ops._jax.libraries import backends, has_cuda_kernels
from xla_ops._jax.lowering import (
    devices_of,
    lower_function,
    lower_to_target,
    platforms_of,
    warn_of_reference,
)
from xla_ops._jax.sharding import in_auto_mode, result_types
from xla_ops._jax.tangents import Tangent, push_forward


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
      pull_back: As in `Tangent`: the backward pass, which reverse mode runs. None for
        what is such a pass itself, or a choice: it is differentiated as `reference`.
      tangent: `kernels` of `Tangent`, where there is a `pull_back`.
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
        pull_back: Callable[..., Sequence] | None = None,
        tangent: Callable[..., tuple] | None = None,
    ):
        self._target = target
        self._results = results
        self._reference = in_auto_mode(reference, results)
        # Outside jit a plain form would compile its loops anew at every call.
        self._compiled_reference = compiled(self._reference)
        self._attributes = attributes
        self._shared = shared
        self._cuda = cuda
        self._tangent = None
        if pull_back is not None:
            self._tangent = Tangent(
                f"{target}.tangent",
                results=results,
                reference=reference,
                pull_back=pull_back,
                shared=shared,
                kernels=tangent,
            )
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
        if self._tangent is not None:
            return outputs, self._tangent(
                primals, tangents, implementation=implementation, **params
            )
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
