"""Forward mode: the tangent of an operator, a primitive that is linear in tangents.

The jvp rule of an operator binds the operator and this primitive. Forward mode runs it.
Reverse mode does not: it keeps the operands and transposes the primitive, and that is
the operator's backward pass.

So both modes have a rule, which `jax.custom_vjp` and `jax.custom_jvp` have not. Nothing
of reverse mode is lost against the former: the operands are all that is kept, the
backward pass is one call under vmap too, and it is split over devices by its batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xla_ops._jax.batching import fold
from xla_ops._jax.eager import compiled, eager_rule
from xla_ops._jax.libraries import backends
from xla_ops._jax.lowering import lower_function
from xla_ops._jax.sharding import in_auto_mode, result_types


class Tangent:
    """How the results of an operator move with its operands.

    A call is `tangent(operands, tangents, **params) -> [array, ...]`, with a symbolic
    zero for each operand that does not move. A tangent has the shape of its operand.

    Args:
      name: Of the primitive.
      results: As in `OperatorPrimitive`, like `reference` and `shared`.
      reference: What is differentiated, once for the tangent and again for
        derivatives of it.
      pull_back: `(*operands, gradient, **params) -> [array or None, ...]`: the gradient
        of each operand, None for one to which none flows.
      shared: Positions of operands that lead with 1 or N.
      kernels: `(operands, tangents, **params) -> (array, ...)`, where kernels are
        built; tangents are None for operands that do not move. None: the derivative of
        `reference` there too.
    """

    def __init__(
        self,
        name: str,
        *,
        results: Callable[..., Sequence[tuple[tuple, Any]]],
        reference: Callable[..., tuple],
        pull_back: Callable[..., Sequence],
        shared: Sequence[int] = (),
        kernels: Callable[..., tuple] | None = None,
    ):
        self._name = name
        self._results = results
        self._reference = reference
        self._plain = in_auto_mode(self._differentiated, self._results_beside)
        self._compiled_plain = compiled(self._plain)
        self._pull_back = pull_back
        self._shared = shared
        self._kernels = kernels
        self._primitive = self._registered()

    def __call__(
        self, operands: Sequence, tangents: Sequence, **params: Any
    ) -> list[jax.Array]:
        """Binds the primitive; see the class."""
        moving = _moving(tangents)
        along = (tangents[place] for place in moving)
        return self._bind(*operands, *along, moving=moving, **params)

    def _registered(self) -> Primitive:
        """The primitive, whose rules are the methods below.

        Its operands are the operator's, then the tangents of those in `moving`.
        """
        primitive = Primitive(self._name)
        primitive.multiple_results = True
        primitive.def_abstract_eval(self._abstract_eval)
        primitive.def_impl(eager_rule(primitive))
        batching.primitive_batchers[primitive] = self._batch
        ad.primitive_jvps[primitive] = self._jvp
        ad.primitive_transposes[primitive] = self._transpose
        mlir.register_lowering(primitive, self._lower_plain)
        if self._kernels is not None:
            lower = functools.partial(self._lower_kernels, self._kernels)
            for platform in {"cpu", *backends()}:
                mlir.register_lowering(primitive, lower, platform=platform)
        return primitive

    def _bind(self, *arrays, **params):
        return self._primitive.bind(*arrays, **params)

    def _results_beside(self, *arrays, moving, **params):
        return self._results(*arrays[: len(arrays) - len(moving)], **params)

    def _abstract_eval(self, *avals, implementation, **params):
        return result_types(avals[0], self._results_beside(*avals, **params))

    def _batch(self, arrays, dims, *, moving, **params):
        count = len(arrays) - len(moving)
        place_of = (*range(count), *moving)
        mapped = {p for p, dim in zip(place_of, dims, strict=True) if dim is not None}
        # An operand and its tangent are of one shape.
        shared = [
            index
            for index, place in enumerate(place_of)
            if place in self._shared and place not in mapped
        ]
        folded, unfold = fold(arrays, dims, shared)
        return unfold(self._bind(*folded, moving=moving, **params))

    def _jvp(self, arrays, changes, *, moving, implementation, **params):
        count = len(arrays) - len(moving)
        bind = functools.partial(self._bind, implementation=implementation, **params)
        outputs = bind(*arrays, moving=moving)
        out = map(_zero, outputs)
        # Linear in the tangents,
        linear = _moving(changes[count:])
        if linear:
            along = (changes[count + i] for i in linear)
            part = bind(
                *arrays[:count], *along, moving=tuple(moving[i] for i in linear)
            )
            out = map(ad.add_tangents, out, part)
        # but not in the operands.
        if _moving(changes[:count]):
            tangents = arrays[count:]

            def plain(*operands):
                return self._compiled_plain(
                    *operands, *tangents, moving=moving, **params
                )

            _, part = push_forward(plain, arrays[:count], changes[:count])
            out = map(ad.add_tangents, out, part)
        return outputs, list(out)

    def _transpose(self, gradients, *arrays, moving, **params):
        (gradient,) = gradients
        count = len(arrays) - len(moving)
        if isinstance(gradient, ad.Zero):
            return [None] * len(arrays)
        back = self._pull_back(*arrays[:count], gradient, **params)
        of_tangents = [
            back[place] if ad.is_undefined_primal(tangent) else None
            for place, tangent in zip(moving, arrays[count:], strict=True)
        ]
        return [None] * count + of_tangents

    def _differentiated(self, *arrays, moving, **params):
        operands, tangents = _by_place(arrays, moving, _zero)
        reference = functools.partial(self._reference, **params)
        _, out = push_forward(reference, operands, tangents)
        return tuple(map(ad.instantiate_zeros, out))

    def _lower_plain(self, ctx, *arrays, implementation, **params):
        return lower_function(functools.partial(self._plain, **params), ctx, arrays)

    def _lower_kernels(self, kernels, ctx, *arrays, implementation, **params):
        def run(*arrays, moving, **params):
            operands, tangents = _by_place(arrays, moving, lambda _: None)
            return kernels(operands, tangents, implementation=implementation, **params)

        run = functools.partial(in_auto_mode(run, self._results_beside), **params)
        return lower_function(run, ctx, arrays)


def _by_place(arrays, moving, still: Callable[[Any], Any]) -> tuple[list, list]:
    """Operands and a tangent of each, `still(operand)` where it does not move."""
    count = len(arrays) - len(moving)
    operands = list(arrays[:count])
    tangents = [still(x) for x in operands]
    for place, tangent in zip(moving, arrays[count:], strict=True):
        tangents[place] = tangent
    return operands, tangents


def _zero(x) -> ad.Zero:
    """The tangent of what does not move."""
    return ad.Zero(jax.typeof(x).to_tangent_aval())


def _moving(tangents) -> tuple[int, ...]:
    """Positions of the tangents that are no symbolic zeros."""
    return tuple(i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero))


def push_forward(
    function: Callable, primals: Sequence, tangents: Sequence
) -> tuple[list, list]:
    """Values and tangents of a function, of whose operands some do not move.

    Args:
      function: `(*operands) -> [array, ...]`.
      primals: The operands.
      tangents: Of each operand; a symbolic zero where it does not move.
    """
    moving = _moving(tangents)

    def along(*moved):
        operands = list(primals)
        for i, x in zip(moving, moved, strict=True):
            operands[i] = x
        return tuple(function(*operands))

    values, out = jax.jvp(
        along, [primals[i] for i in moving], [tangents[i] for i in moving]
    )
    return list(values), [
        _zero(y) if t.dtype == jax.dtypes.float0 else t
        for y, t in zip(values, out, strict=True)
    ]
