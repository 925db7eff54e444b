"""Nodes of a network, and the gradient of what they say.

A node is a place of what a pass returns for one image, [1, ..., F]: a position (y, x)
of a map [1, P, Q, F], or a RoI (b,) of features [1, B, F]. Its response is the vector
[F] there.

The gradient of a response is that of its Euclidean norm: the projection of every change
of the vector on the direction that it has. The papers do not say how they make a scalar
of a vector. The norm needs no choice of channels, is the same for any rotation of them,
and lets no channels of opposite signs cancel, as their sum does. A response of zero has
the gradient zero. With one channel it is the gradient itself, up to its sign.

Shape letters: K nodes, D numbers that name one, F channels of a response.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from xla_ops.arguments import coordinate_dtype

Nodes = Int[Array | np.ndarray, "K D"] | Sequence[Sequence[int]]

_NAMES = {1: "the RoI", 2: "(y, x)"}


class Responses(NamedTuple):
    """What nodes say, and its gradient by an array."""

    response: Float[Array, "K F"]
    gradient: Float[Array, "K *s"]


def check_image(image: Any) -> Num[Array, "H W C"]:
    """Returns an image as a jax array.

    Raises:
      TypeError: It is not an array.
      ValueError: It has not three axes, or no pixel.
    """
    if not isinstance(image, jax.Array | np.ndarray):
        raise TypeError(f"`image` is {type(image).__name__}; expected an array")
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(
            f"`image` has shape {image.shape}; expected (H, W, C), one image"
        )
    return jnp.asarray(image)


def check_result(result: Any) -> Any:
    """Returns what a pass returned, or its shape and type.

    Raises:
      TypeError: It is not an array of floats.
      ValueError: It is neither a map nor features of RoIs, of one image.
    """
    dtype = getattr(result, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        what = type(result).__name__ if dtype is None else f"an array of {dtype}"
        raise TypeError(
            f"`call` returns {what}; expected an array of floats, a map [1, P, Q, F] "
            "or features of RoIs [1, B, F]"
        )
    if result.ndim not in (3, 4) or result.shape[0] != 1:
        raise ValueError(
            f"`call` returns an array of shape {result.shape}; expected a map "
            "[1, P, Q, F] or features of RoIs [1, B, F], as it is given one image"
        )
    return result


def check_nodes(
    nodes: Any, places: tuple[int, ...], name: str = "nodes"
) -> Int[Array, "K D"]:
    """Returns nodes as an array.

    Numbers that have no value yet, inside of a transformation, are not compared with
    the size.

    Args:
      nodes: [K, D], or a sequence of tuples.
      places: Size of what the pass returns, without its first and last axis.
      name: Of the argument.

    Raises:
      TypeError: They are not integers.
      ValueError: Their shape is not [K, D], or one is not there.
    """
    expected = f"(K, {len(places)}), {_NAMES[len(places)]} of each node"
    if not isinstance(nodes, jax.Array):
        try:
            nodes = np.asarray(nodes)
        except ValueError as error:
            raise ValueError(f"`{name}` is ragged; expected {expected}") from error
    if nodes.ndim != 2 or nodes.shape[1] != len(places):
        raise ValueError(f"`{name}` has shape {nodes.shape}; expected {expected}")
    if not jnp.issubdtype(nodes.dtype, jnp.integer):
        raise TypeError(f"`{name}` has dtype {nodes.dtype}; expected integers")
    try:
        known = np.asarray(nodes).tolist()
    except jax.errors.TracerArrayConversionError:
        known = []
    for node in known:
        if not all(0 <= i < size for i, size in zip(node, places, strict=True)):
            raise ValueError(
                f"`{name}` has {tuple(node)}; expected numbers from 0 to below "
                f"{places}, the size of what `call` returns"
            )
    return jnp.asarray(nodes, jnp.int32)


def responses(
    result: Float[Array, "1 *places F"], nodes: Int[Array, "K D"]
) -> Float[Array, "K F"]:
    """What is at the nodes."""
    return result[0][tuple(nodes[:, axis] for axis in range(nodes.shape[1]))]


def pull_back(
    function: Callable[[Any], Float[Array, "1 *places F"]],
    argument: Float[Array, "*s"],
    nodes: Any,
) -> Responses:
    """Responses of nodes to an array, and the gradient of each one's norm by it.

    The pass runs once, and back once for all nodes together.

    Args:
      function: The pass.
      argument: The array.
      nodes: Of what it returns.
    """

    def at_nodes(argument):
        result = check_result(function(argument))
        return responses(result, check_nodes(nodes, result.shape[1:-1]))

    response, back = jax.vjp(at_nodes, argument)
    direction = unit(response).astype(response.dtype)
    each = jnp.eye(len(response), dtype=response.dtype)[:, :, None] * direction[None]
    (gradient,) = jax.vmap(back)(each)
    return Responses(response, gradient)


def unit(vectors: Float[Array, "*s F"]) -> Float[Array, "*s F"]:
    """Vectors of length 1 and the same directions, in float32 (float64); of 0, 0."""
    vectors = vectors.astype(coordinate_dtype(vectors.dtype))
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return jnp.where(norm > 0, vectors / jnp.where(norm > 0, norm, 1), 0)
