"""How many multiplications a function of arrays takes, from the shapes in its trace."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

# The operator's primitives, whose third operand is the kernel
# [1 or N, kernel height, kernel width, channels of a group, output channels], and which
# of their values has the shape of the result. A gradient takes two products: of the
# columns and of the kernel.
_DEFORM_CONV = "dcn_jax.deform_conv2d.fwd"
_DEFORM_CONV_GRADIENTS = (
    "dcn_jax.deform_conv2d.bwd",
    "dcn_jax.deform_conv2d.summed_bwd",
)


def multiply_adds(function: Callable, *arguments: Any) -> int:
    """Multiply-adds of the products and convolutions of a function.

    A convolution counts kernel height * kernel width * channels of a group for every
    number of its result, also where the kernel lies over padding; a deformable one
    counts the same, without its samples. Sums, activations, norms and poolings count
    nothing. Nothing is computed.

    Args:
      function: Of arrays or of pytrees, modules among them.
      *arguments: For it; shapes and types (`jax.ShapeDtypeStruct`) are enough.

    Raises:
      ValueError: It has a loop whose length is not known, with products in it.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        x = equation.invars[0].aval.shape
        return _size(equation) * math.prod(x[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return _size(equation) * math.prod(kernel) // outputs
    if name == _DEFORM_CONV:
        return _size(equation) * math.prod(equation.invars[2].aval.shape[1:4])
    if name in _DEFORM_CONV_GRADIENTS:
        result = math.prod(equation.invars[-1].aval.shape)
        return 2 * result * math.prod(equation.invars[2].aval.shape[1:4])
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "while" and any(inner):
        raise ValueError(
            "the function has a loop whose length is not known, with products in it"
        )
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _size(equation: Any) -> int:
    return math.prod(equation.outvars[0].aval.shape)


def _jaxprs(value: Any) -> Iterator[Any]:
    """The traces among the parameters of an equation."""
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)
