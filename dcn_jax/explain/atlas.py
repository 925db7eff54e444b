"""What all nodes of a map see of one image: the data of a viewer.

It holds what `sampling_locations` and `effective_receptive_field` say of a grid of
nodes: the points of the last layer, of the last two stacked, and so on, those of each
deformable layer alone, and the receptive fields at a lower resolution.

Shape letters: K nodes, P Q map, H W image, h w cells of it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from dcn_jax.explain.convolutions import (
    Convolution,
    convolutions,
    map_stride,
    stacked,
)
from dcn_jax.explain.models import Call, check_model, copy_of, merge_model, split_model
from dcn_jax.explain.nodes import check_image, check_result
from dcn_jax.explain.receptive_field import (
    area_side,
    effective_receptive_field,
    square_side,
)
from dcn_jax.explain.sampling import sampling_locations
from dcn_jax.modules.arguments import check_integer, check_pair

# Cells along the longer side of an image.
_CELLS = 64
# Points of a node that are kept: three layers of 3x3 read 729, with four offset groups
# 46 656.
_KEPT = 1024


class PointSet(NamedTuple):
    """The points that some layers read for each node."""

    layers: tuple[str, ...]  # from the node down
    position: Float[np.ndarray, "K points 2"]  # (y, x) in pixels of the image
    strength: Float[np.ndarray, "K points"]
    inside: Bool[np.ndarray, "K points"]  # as in `SamplingLocations`
    count: int  # of a node; the strongest 1024 are kept
    outside: Int[np.ndarray, " K"]  # how many of all of them are not inside


class Atlas(NamedTuple):
    """What a grid of nodes sees."""

    nodes: Int[np.ndarray, "K 2"]  # (y, x) of the map, row by row
    map_size: tuple[int, int]  # (P, Q)
    stride: int  # pixels to a step of the map; node (y, x) is at stride * (y, x)
    size: tuple[int, int]  # (height, width) of the image, without padding
    points: tuple[PointSet, ...]
    gradient: bool  # whether points' strengths are norms of gradients, or weights
    field: Float[np.ndarray, "K h w"]  # mean strength of the pixels of a cell
    cell: int  # its side in pixels
    area_side: Float[np.ndarray, " K"]  # of the field at full resolution
    square_side: Float[np.ndarray, " K"]


def node_atlas(
    model: Any,
    call: Call,
    image: Num[Array | np.ndarray, "H W C"],
    *,
    size: tuple[int, int] | None = None,
    layers: int | Sequence[str] = 3,
    gradient: bool = False,
    most_nodes: int = 256,
    batch_size: int = 16,
    report: Callable[[int, int], None] | None = None,
) -> Atlas:
    """Explains a grid of nodes of a map.

    Nodes are all positions of the map, or so many rows and columns apart, the same for
    both, that they are not more than `most_nodes`. They are explained in batches by two
    programs, one for points and one for fields, which are compiled once for each `call`
    (the same function, not an equal one), model structure and shapes. So this function
    is not for use under jit.

    Args:
      model: An NNX module, or a Linen module bound to its variables. It is not changed.
      call: The pass, given a copy of the model and the image as a batch of one. Returns
        the map [1, P, Q, F] of the nodes.
      image: As the model takes it.
      size: (height, width) of what of the image is no padding; nodes and fields are of
        that, and points beyond it are outside. None: the whole image.
      layers: The layers that are stacked, see `sampling_locations`. Beside them each
        deformable layer is explained alone, if its map is not coarser than the nodes',
        at the position where a node is.
      gradient: Whether points are as strong as the gradient by their place, as in the
        paper, or as their weights. It takes a pass back for each node and stack.
      most_nodes: How many nodes there are at most.
      batch_size: How many nodes are explained at once.
      report: Told after each batch how many nodes are done, and how many there are.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: A shape or a number is wrong; there are no such layers, or the size of
        a map is not that of the image over a power of two.
    """
    model, image = check_model(model), check_image(image)
    whole = (image.shape[0], image.shape[1])
    size = whole if size is None else check_pair("size", size)
    if any(part > side for part, side in zip(size, whole, strict=True)):
        raise ValueError(
            f"`size` is {size}; expected at most {whole}, the size of the image"
        )
    most_nodes = check_integer("most_nodes", most_nodes)
    batch_size = check_integer("batch_size", batch_size)
    result = jax.eval_shape(lambda x: call(copy_of(model), x[None]), image)
    places = check_result(result).shape[1:-1]
    if len(places) != 2:
        raise ValueError(
            f"`call` returns an array of shape {result.shape}; expected a map "
            "[1, P, Q, F]"
        )
    stride = map_stride(whole, places)
    nodes = _grid([-(-side // stride) for side in size], most_nodes)
    stacks = _stacks(convolutions(model, call, image), layers, places)
    strides = [map_stride(whole, lowest.input_size) for lowest in stacks.values()]
    definition, arrays = split_model(model)
    points, fields, done = [], [], 0
    for batch, full in _batches(nodes, batch_size):
        given = (arrays, image, jnp.asarray(full, jnp.int32))
        program: dict[str, Any] = dict(call=call, definition=definition)
        of_points = _points_of(
            *given,
            **program,
            stacks=tuple(zip(stacks, strides, strict=True)),
            size=size,
            gradient=gradient,
        )
        points.append(_first(of_points, len(batch)))
        of_fields = _fields_of(*given, **program, size=size, stride=stride)
        fields.append(_first(of_fields, len(batch)))
        done += len(batch)
        if report is not None:
            report(done, len(nodes))
    field = {name: np.concatenate([f[name] for f in fields]) for name in fields[0]}
    return Atlas(
        nodes=nodes,
        map_size=places,
        stride=stride,
        size=size,
        points=tuple(
            _point_set(layers, parts)
            for layers, parts in zip(stacks, zip(*points, strict=True), strict=True)
        ),
        gradient=gradient,
        cell=_cell(size),
        **field,
    )


def _grid(size: Sequence[int], most: int) -> Int[np.ndarray, "K 2"]:
    """Positions as many rows as columns apart, the outer ones half as far from 0."""
    for step in itertools.count(1):
        rows, columns = (
            np.arange(min(step // 2, (side - 1) // 2), side, step) for side in size
        )
        if len(rows) * len(columns) <= most:
            break
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


def _stacks(
    calls: Sequence[Convolution], layers: int | Sequence[str], places: tuple[int, int]
) -> dict[tuple[str, ...], Convolution]:
    """Names of the layers that are explained together -> the lowest of them."""
    chosen = stacked(calls, layers)
    found = {
        tuple(layer.name for layer in chosen[:depth]): chosen[depth - 1]
        for depth in range(1, len(chosen) + 1)
    }
    for layer in reversed(calls):
        if layer.deformable and _is_finer(layer.output_size, places):
            found.setdefault((layer.name,), layer)
    return found


def _is_finer(size: tuple[int, int], places: tuple[int, int]) -> bool:
    try:
        map_stride(size, places)
    except ValueError:
        return False
    return True


def _batches(nodes: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Nodes a batch at a time, and the same filled up: one program serves all."""
    for start in range(0, len(nodes), count):
        batch = nodes[start : start + count]
        yield batch, np.pad(batch, ((0, count - len(batch)), (0, 0)), mode="edge")


def _first(arrays: Any, count: int) -> Any:
    """The nodes that a batch began with."""
    return jax.tree.map(lambda x: np.asarray(x)[:count], arrays)


@functools.partial(
    jax.jit, static_argnames=("call", "definition", "stacks", "size", "gradient")
)
def _points_of(arrays, image, nodes, *, call, definition, stacks, size, gradient):
    """Position in pixels, strength, inside, count and number outside of each stack.

    `stacks` are layers, and the stride of the map that the lowest reads.
    """
    model, found = merge_model(definition, arrays), []
    for layers, stride in stacks:
        points = sampling_locations(
            model, call, image, nodes, layers=layers, gradient=gradient
        )
        strength = points.strength if gradient else points.weight
        position = stride * points.position
        last = jnp.asarray(size, position.dtype)[None, None] - 1
        inside = points.inside & jnp.all((position >= 0) & (position <= last), axis=-1)
        count = jnp.full(len(nodes), strength.shape[1], jnp.int32)
        outside = jnp.sum(~inside, axis=1)
        if strength.shape[1] > _KEPT:
            strength, kept = jax.lax.top_k(strength, _KEPT)
            position = jnp.take_along_axis(position, kept[..., None], axis=1)
            inside = jnp.take_along_axis(inside, kept, axis=1)
        found.append((position, strength, inside, count, outside))
    return found


@functools.partial(jax.jit, static_argnames=("call", "definition", "size", "stride"))
def _fields_of(arrays, image, nodes, *, call, definition, size, stride):
    model = merge_model(definition, arrays)
    found = effective_receptive_field(model, call, image, nodes)
    strength = found.strength[:, : size[0], : size[1]]
    return {
        "field": _cell_means(strength, _cell(size)),
        "area_side": area_side(strength),
        "square_side": jax.vmap(square_side)(strength, tuple((stride * nodes).T)),
    }


def _cell(size: tuple[int, int]) -> int:
    return math.ceil(max(size) / _CELLS)


def _cell_means(strength: Float[Array, "K H W"], cell: int) -> Float[Array, "K h w"]:
    """Means over squares; those at the right and bottom may be smaller."""
    height, width = strength.shape[1:]
    padding = ((0, 0), (0, -height % cell), (0, -width % cell))
    padded = jnp.pad(strength, padding)
    rows, columns = padded.shape[1] // cell, padded.shape[2] // cell
    sums = padded.reshape(-1, rows, cell, columns, cell).sum((2, 4))
    pixels = np.multiply.outer(
        *(
            np.minimum(cell, side - cell * np.arange(count))
            for side, count in ((height, rows), (width, columns))
        )
    )
    return sums / jnp.asarray(pixels[None], sums.dtype)


def _point_set(
    layers: tuple[str, ...], parts: Sequence[tuple[np.ndarray, ...]]
) -> PointSet:
    position, strength, inside, count, outside = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    return PointSet(layers, position, strength, inside, int(count[0]), outside)
