"""What the CUDA form of an operator is made of: its kernels, and forms of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xla_ops._jax.eager import compiled, eager_rule
from xla_ops._jax.libraries import backends, has_cuda_kernels, library_modules
from xla_ops._jax.lowering import devices_of, lower_function, lower_to_target
from xla_ops._jax.sharding import in_auto_mode, result_types
from xla_ops._jax.tangents import push_forward


class Kernel:
    """A call of one kernel, for use in `cuda` of `OperatorPrimitive` alone.

    A call is `kernel(*operands, **params) -> [array, ...]`. It has no derivatives and
    is not batched: the operator's primitive has and is.

    Args:
      target: FFI target name.
      results: `(*operands, **params) -> [(shape, dtype), ...]`, given anything that
        has `shape` and `dtype`.
      attributes: `(**params) -> {name: value}` that the handler decodes: np.int64,
        np.float64 or str. Params must be hashable.
    """

    def __init__(
        self,
        target: str,
        *,
        results: Callable[..., Sequence[tuple[tuple, Any]]],
        attributes: Callable[..., dict[str, Any]],
    ):
        self._target = target
        self._results = results
        self._attributes = attributes
        self._primitive = self._registered()

    def __call__(self, *operands: Any, **params: Any) -> list[jax.Array]:
        """Runs the kernel; see the class."""
        return self._primitive.bind(*operands, **params)

    def _registered(self) -> Primitive:
        """The primitive, whose rules are the methods below."""
        primitive = Primitive(self._target)
        primitive.multiple_results = True
        primitive.def_abstract_eval(self._abstract_eval)
        for platform in library_modules():
            lower = functools.partial(self._lower, platform)
            mlir.register_lowering(primitive, lower, platform=platform)
        return primitive

    def _abstract_eval(self, *avals, **params):
        return [
            avals[0].update(shape=tuple(shape), dtype=jnp.dtype(dtype), weak_type=False)
            for shape, dtype in self._results(*avals, **params)
        ]

    def _lower(self, platform, ctx, *operands, **params):
        return lower_to_target(
            ctx,
            operands,
            target=self._target,
            platform=platform,
            attributes=self._attributes(**params),
            shared=(),
            again=functools.partial(self._primitive.bind, **params),
        )


class CudaForm:
    """A function that is `plain`, and on CUDA one that does the same faster.

    It is for what cannot be one `OperatorPrimitive`: results that do not lead with the
    batch. Under vmap and for derivatives it is `plain` on CUDA too. A call is
    `form(*operands, implementation=None, **params) -> [array, ...]`.

    Args:
      name: Of the primitive.
      plain: `(*operands, implementation, **params) -> [array, ...]`.
      results: `(*operands, **params) -> [(shape, dtype), ...]`, given anything that
        has `shape` and `dtype`.
      cuda: `(*operands, devices, **params) -> (array, ...)`, the results of `plain`.
        The batch is probably split over as many as `devices`.
      summed: Positions of results that are sums over the batch.
    """

    def __init__(
        self,
        name: str,
        *,
        plain: Callable[..., Sequence[jax.Array]],
        results: Callable[..., Sequence[tuple[tuple, Any]]],
        cuda: Callable[..., tuple],
        summed: Sequence[int] = (),
    ):
        self._name = name
        self._plain = plain
        # Outside jit a plain form would compile its loops anew at every call.
        self._compiled_plain = compiled(plain)
        self._results = results
        self._cuda = in_auto_mode(cuda, results, summed)
        self._summed = summed
        self._primitive = self._registered()

    def __call__(
        self, *operands: Any, implementation: str | None = None, **params: Any
    ) -> list[jax.Array]:
        """Runs the form of the platform; see the class."""
        params["implementation"] = implementation
        if implementation == "reference":
            return list(self._compiled_plain(*operands, **params))
        return self._primitive.bind(*operands, **params)

    def _registered(self) -> Primitive:
        """The primitive, whose rules are the methods below."""
        primitive = Primitive(self._name)
        primitive.multiple_results = True
        primitive.def_abstract_eval(self._abstract_eval)
        primitive.def_impl(eager_rule(primitive))
        batching.primitive_batchers[primitive] = self._batch
        ad.primitive_jvps[primitive] = self._jvp
        mlir.register_lowering(primitive, self._lower_plain)
        for platform in backends():
            if has_cuda_kernels(platform):
                mlir.register_lowering(primitive, self._lower_cuda, platform=platform)
        return primitive

    def _abstract_eval(self, *avals, implementation, **params):
        return result_types(avals[0], self._results(*avals, **params), self._summed)

    def _batch(self, operands, dims, **params):
        mapped = jax.vmap(functools.partial(self._plain, **params), dims)
        results = mapped(*operands)
        return results, [0] * len(results)

    def _jvp(self, primals, tangents, **params):
        function = functools.partial(self._compiled_plain, **params)
        return push_forward(function, primals, tangents)

    def _lower_plain(self, ctx, *operands, **params):
        return lower_function(functools.partial(self._plain, **params), ctx, operands)

    def _lower_cuda(self, ctx, *operands, implementation, **params):
        cuda = functools.partial(self._cuda, devices=devices_of(ctx), **params)
        return lower_function(cuda, ctx, operands)
