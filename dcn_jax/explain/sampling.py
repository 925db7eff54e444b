"""Sampling locations: the points that stacked convolutions read for one node.

A node's 3x3 layer reads 9 points, for each of which the layer below reads 9, and so on:
9^3 = 729 for three layers. They are followed by these rules.

- A point of a deformable layer lies at a fraction of a pixel. The offsets and masks of
  the layer below, which are computed at whole positions, are read there as the map is,
  by bilinear interpolation; the undeformed taps are those of the fractional position.
- What runs between two layers (a 1x1 convolution, a norm, a ReLU) reads position by
  position. If it has a stride, which the sizes of the maps tell (`map_stride`), the
  position is multiplied with it. What is added by a shortcut is not followed.
- A point outside of the map it lies on is kept, as are those below it, which read the
  offsets of the nearest position. They are marked, and weigh as much as the share of
  the bilinear value that is on the map, nothing from one pixel away on. The border "v1"
  ends the map at its `map_sizes`, and reads the last pixel wholly until one pixel on.
- Each offset group reads places of its own: with G groups a layer reads G * 9 points.
  A regular layer has one.

Shape letters: K nodes, D numbers that name one, L layers, M paths to a layer, T points
of a layer (G * R*S), G offset groups, R S kernel taps, P Q output map, H W input map.

Source: Dai et al. 2017 (arXiv:1703.06211) Figure 5; Zhu et al. 2019 (arXiv:1811.11168)
section 2, "effective sampling locations". Neither says what lies between whole
positions, nor how points of stacked layers share a gradient: these rules are ours.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from dcn_jax.explain.convolutions import (
    Convolution,
    ConvolutionLog,
    as_convolution,
    map_stride,
    stacked,
)
from dcn_jax.explain.layer_calls import LayerCall, record_of, run_with
from dcn_jax.explain.models import Call, Model, check_model, kernel_of
from dcn_jax.explain.nodes import (
    Nodes,
    check_image,
    check_nodes,
    check_result,
    pull_back,
)
from xla_ops import deform_conv2d
from xla_ops.arguments import coordinate_dtype

_MOST_POINTS = 2**20


class SamplingLocations(NamedTuple):
    """The points that nodes read, T_1 * ... * T_L of each node.

    The last tap changes first. Where points coincide, weights and gradients add up.
    """

    position: Float[Array, "K points 2"]  # (y, x) in pixels of the lowest input map
    inside: Bool[Array, "K points"]  # it, and all above it, on [0, H-1] x [0, W-1]
    weight: Float[Array, "K points"]
    gradient: Float[Array, "K points 2"] | None  # (dy, dx), per pixel of that map
    taps: Int[Array, "points L"]  # g * R*S + tap in each layer, from the node down
    map_size: Int[Array, "2"]  # (H, W) of that map

    @property
    def strength(self) -> Float[Array, "K points"]:
        """Norm of the gradient by the location, as in the paper; needs `gradient`."""
        return jnp.linalg.norm(self.gradient, axis=-1)


def sampling_locations(
    model: Any,
    call: Call,
    image: Num[Array | np.ndarray, "H W C"],
    nodes: Nodes,
    *,
    layers: int | Sequence[str] = 3,
    gradient: bool = False,
) -> SamplingLocations:
    """The points that stacked convolutions read for nodes, with their weights.

    `weight` is the product, over the layers, of the point's mask, of its share that is
    on the map, and of the Frobenius norm of the kernel that it is multiplied with.

    `gradient` is that of the node's response by the place of a sample of the lowest
    layer; of a regular layer, by that of an offset which is zero. (What a vector's
    gradient is: `dcn_jax.explain.nodes`.) Paths that reach the same sample share it in
    proportion to their weights, and a path to a fraction of a pixel reaches its whole
    neighbours by their bilinear weights. So the sum over all points is that over all
    samples they come from, and with one layer each point has its own.

    It is a pure function: under `jax.jit` (of a function of model, image and nodes) all
    nodes are one program.

    Args:
      model: An NNX module, or a Linen module bound to its variables. It is not changed.
      call: The pass, given a copy of the model and the image as a batch of one. Returns
        the map [1, P, Q, F] of the nodes.
      image: As the model takes it.
      nodes: [K, 2], (y, x) of positions of that map.
      layers: How many of the last convolutions larger than 1x1 that run in `call`; or
        their names, from the node down, as `convolutions` tells them.
      gradient: Whether to compute it, which takes two passes and one back.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: A shape is wrong; a node is not there; there are no such layers, or
        the size of a map is not that of the one above at a power of two; a layer runs
        several times in a scan or vmap, or where its record is lost.
    """
    model, image = check_model(model), check_image(image)
    log = ConvolutionLog()
    result, records = run_with(log, model, call, image[None])
    places = check_result(result).shape[1:-1]
    if len(places) != 2:
        raise ValueError(
            f"`call` returns an array of shape {result.shape}; expected a map "
            "[1, P, Q, F]"
        )
    nodes = check_nodes(nodes, places)
    chosen = stacked(log.calls, layers)
    points = math.prod(_points_of(layer) for layer in chosen)
    if points > _MOST_POINTS:
        raise ValueError(
            f"`layers` reads {points} points for a node; expected at most "
            f"{_MOST_POINTS}"
        )
    fields = [_field_of(layer, log.calls, records, model) for layer in chosen]
    leaves = jax.tree.leaves(fields)
    real = max((x.dtype for x in leaves), key=lambda dtype: dtype.itemsize)
    fields = jax.tree.map(lambda x: jax.lax.stop_gradient(x.astype(real)), fields)

    place = nodes.astype(real)
    weight = jnp.ones_like(place, shape=(*place.shape[:1], 1))
    inside = jnp.ones_like(weight, dtype=bool)
    place, above, coarse = place[:, None], weight, places
    for layer, field in zip(chosen, fields, strict=True):
        place = place * _stride(layer.name, layer.output_size, coarse)
        reached, above, coarse = place, weight, layer.input_size
        place, factor = _read(place, layer, field)
        inside = inside[..., None] & _on_map(place, field.size)
        weight = above[..., None] * factor
        place, inside, weight = (
            x.reshape(len(nodes), -1, *x.shape[3:]) for x in (place, inside, weight)
        )
    pulled = None
    if gradient:
        of_samples = _gradient_of_samples(model, call, image, nodes, chosen[-1])
        pulled = _shared(of_samples, reached, above, chosen[-1])
    taps = np.indices([_points_of(layer) for layer in chosen]).reshape(len(chosen), -1)
    size = jnp.asarray(chosen[-1].input_size, jnp.int32)
    taps = jnp.asarray(taps.T, jnp.int32)
    return SamplingLocations(place, inside, weight, pulled, taps, size)


class DistinctPoints(NamedTuple):
    """Points of one node, those at the same place as one."""

    position: Float[np.ndarray, "points 2"]
    weight: Float[np.ndarray, " points"]  # the sum
    count: Int[np.ndarray, " points"]


def distinct_points(
    position: Float[Array | np.ndarray, "all 2"],
    weight: Float[Array | np.ndarray, " all"],
    decimals: int = 4,
) -> DistinctPoints:
    """Puts points at the same place together; not for use under jit.

    Args:
      position: Of points of one node.
      weight: Of each.
      decimals: Two places are the same if they are when rounded to so many.
    """
    rounded = np.round(np.asarray(position), decimals) + 0.0  # No -0.
    places, index, count = np.unique(
        rounded, axis=0, return_inverse=True, return_counts=True
    )
    summed = np.zeros(len(places), np.asarray(weight).dtype)
    np.add.at(summed, index.reshape(-1), np.asarray(weight))
    return DistinctPoints(places, summed, count)


class _Field(NamedTuple):
    """What a layer reads by, at each position."""

    offset: Float[Array, "P Q G RS 2"] | None
    mask: Float[Array, "P Q G RS"] | None
    norm: Float[Array, "G RS"]  # of the kernel, for each group of channels
    size: Float[Array, "2"]  # (height, width) of what is read, the border "v1" ends it


def _points_of(layer: Convolution) -> int:
    return layer.offset_groups * math.prod(layer.kernel_size)


def _field_of(layer: Convolution, calls, records, model: Model) -> _Field:
    kernel = kernel_of(model, layer.name)
    if kernel.ndim != 4:
        raise ValueError(_several(layer))
    count = sum(call.name == layer.name for call in calls)
    earlier = sum(call.name == layer.name for call in calls[: layer.place])

    def recorded(field: str) -> Any:
        return record_of(records, (layer.name, field), earlier, count, "layers")

    if recorded("ran").ndim:
        raise ValueError(_several(layer))
    size = jnp.asarray(layer.input_size, coordinate_dtype(kernel.dtype))
    norm = _kernel_norm(kernel, layer)
    if not layer.deformable:
        return _Field(None, None, norm, size)
    record = recorded("samples")
    images = len(record["offset"])
    if images != 1:
        raise ValueError(
            f"`layers`: {layer.name} runs on {images} images; expected one"
        )
    offset, mask, sizes = (record[name] for name in ("offset", "mask", "map_sizes"))
    return _Field(
        offset[0],
        None if mask is None else mask[0],
        norm,
        size if sizes is None else sizes[0].astype(size.dtype),
    )


def _several(layer: Convolution) -> str:
    return (
        f"`layers`: {layer.name} is run several times, or is several layers, in a scan "
        "or vmap; expected one of a loop in Python, which runs once, or other layers"
    )


def _kernel_norm(kernel: Array, layer: Convolution) -> Float[Array, "G RS"]:
    """Frobenius norm of each tap over the channels of each offset group."""
    groups, taps = layer.feature_group_count, math.prod(layer.kernel_size)
    real = coordinate_dtype(kernel.dtype)
    squares = jnp.square(kernel.astype(real))
    squares = squares.reshape(taps, kernel.shape[2], groups, -1).sum(3)
    # Channels in their order: those of the first group of the convolution come first.
    squares = squares.transpose(2, 1, 0).reshape(layer.offset_groups, -1, taps)
    return jnp.sqrt(squares.sum(1))


def _stride(name: str, fine: tuple[int, int], coarse: tuple[int, int]) -> int:
    try:
        return map_stride(fine, coarse)
    except ValueError as error:
        raise ValueError(
            f"`layers`: {name} makes a map of {fine}, and what it is followed from has "
            f"{coarse}; expected that over a power of two, rounded up, or other layers"
        ) from error


def _read(
    place: Float[Array, "K M 2"], layer: Convolution, field: _Field
) -> tuple[Float[Array, "K M T 2"], Float[Array, "K M T"]]:
    """Where a layer reads for places of its output, and the weights of that."""
    window = layer.window
    tap = np.indices(layer.kernel_size).reshape(2, -1).T  # [RS, 2]
    still = tap * np.asarray(window.dilation) - np.asarray(window.padding)
    corner = (place * _beside(window.strides, place))[:, :, None, None]
    position = corner + jnp.asarray(still, place.dtype)[None, None, None]
    position = jnp.broadcast_to(
        position, (*place.shape[:2], layer.offset_groups, *still.shape)
    )
    factor = field.norm[None, None]
    if field.offset is not None:
        index, share = _neighbours(place, layer.output_size)
        position = position + _interpolate(field.offset, index, share)
        if field.mask is not None:
            factor = factor * _interpolate(field.mask, index, share)
    factor = factor * _share_on_map(position, layer.border, field.size)
    flat = (*place.shape[:2], _points_of(layer))
    return position.reshape(*flat, 2), factor.reshape(flat)


def _beside(
    pair: Sequence[int] | Float[Array, "2"], place: Float[Array, "*s 2"]
) -> Array:
    """Two numbers in the type and rank of places."""
    return jnp.asarray(pair, place.dtype).reshape((1,) * (place.ndim - 1) + (2,))


def _neighbours(
    place: Float[Array, "K M 2"], size: tuple[int, int]
) -> tuple[Int[Array, "K M 4"], Float[Array, "K M 4"]]:
    """Positions of a map next to places, as y * width + x, and their bilinear weights.

    A place outside has those of the nearest one on the map.
    """
    last = _beside(size, place) - 1
    place = jnp.clip(jnp.where(jnp.isfinite(place), place, 0), 0, last)
    low = jnp.floor(place)
    high = jnp.minimum(low + 1, last)
    part = place - low
    (y0, x0), (y1, x1) = (
        (end[..., 0].astype(jnp.int32), end[..., 1].astype(jnp.int32))
        for end in (low, high)
    )
    index = jnp.stack([y * size[1] + x for y in (y0, y1) for x in (x0, x1)], -1)
    down, right = part[..., 0], part[..., 1]
    share = jnp.stack([v * h for v in (1 - down, down) for h in (1 - right, right)], -1)
    return index, share


def _interpolate(field: Float[Array, "P Q *s"], index, share) -> Float[Array, "K M *s"]:
    rows = field.reshape(-1, *field.shape[2:])[index]  # [K, M, 4, ...]
    return jnp.einsum("kmc,kmc...->km...", share, rows)


def _share_on_map(
    position: Float[Array, "*s 2"], border: str, size: Float[Array, "2"]
) -> Float[Array, "*s"]:
    """Which part of a bilinear value is read from the map, and not from around it."""
    size = _beside(size, position)
    if border == "v1":
        share = ((position >= 0) & (position < size)).astype(position.dtype)
    else:
        share = jnp.clip(jnp.minimum(position + 1, size - position), 0, 1)
        share = jnp.where(jnp.isnan(share), 0, share)
    return share[..., 0] * share[..., 1]


def _on_map(
    position: Float[Array, "*s 2"], size: Float[Array, "2"]
) -> Bool[Array, "*s"]:
    last = _beside(size, position) - 1
    return jnp.all((position >= 0) & (position <= last), axis=-1)


def _gradient_of_samples(
    model: Model, call: Call, image: Array, nodes: Array, layer: Convolution
) -> Float[Array, "K P Q T 2"]:
    """Gradient of nodes' responses by where each sample of one layer is."""
    real = coordinate_dtype(kernel_of(model, layer.name).dtype)
    shape = (1, *layer.output_size, layer.offset_groups, math.prod(layer.kernel_size))

    def moved(shift):
        log = ConvolutionLog()

        def listen(run: LayerCall):
            here = as_convolution(run, len(log.calls)) == layer
            log(run)
            return _move(run, layer, shift) if here else run.result

        return run_with(listen, model, call, image[None])[0]

    gradient = pull_back(moved, jnp.zeros((*shape, 2), real), nodes).gradient
    return gradient.reshape(len(nodes), *layer.output_size, _points_of(layer), 2)


def _move(run: LayerCall, layer: Convolution, shift: Array) -> Array:
    """The result of a layer, with the derivative by a shift, zero, of its offsets."""
    real = shift.dtype
    record = run.record or {}
    offset, mask = record.get("offset"), record.get("mask")
    if offset is not None:
        shift = shift + jax.lax.stop_gradient(offset).astype(real)
    map_sizes = run.arguments.get("map_sizes") if layer.border == "v1" else None
    y = deform_conv2d(
        jax.lax.stop_gradient(run.x).astype(real),
        shift,
        jax.lax.stop_gradient(run.kernel).astype(real),
        None if mask is None else jax.lax.stop_gradient(mask).astype(real),
        strides=layer.strides,
        padding=layer.padding,
        kernel_dilation=layer.kernel_dilation,
        feature_group_count=layer.feature_group_count,
        border=layer.border,
        map_sizes=map_sizes,
    ).astype(run.result.dtype)
    return run.result + (y - jax.lax.stop_gradient(y))


def _shared(
    gradient: Float[Array, "K P Q T 2"],
    place: Float[Array, "K M 2"],
    weight: Float[Array, "K M"],
    layer: Convolution,
) -> Float[Array, "K points 2"]:
    """Gives the gradient of samples to the paths that reach them."""
    index, share = _neighbours(place, layer.output_size)
    part = share * weight[..., None]  # [K, M, 4]
    size = math.prod(layer.output_size)
    node = jnp.arange(len(place))[:, None, None]
    total = jnp.zeros_like(part, shape=(len(place), size)).at[node, index].add(part)
    total = total[node, index]
    part = jnp.where(total > 0, part / jnp.where(total > 0, total, 1), 0)
    samples = gradient.reshape(len(place), size, *gradient.shape[3:])[node, index]
    shared = jnp.einsum("kmc,kmcti->kmti", part.astype(samples.dtype), samples)
    return shared.reshape(len(place), -1, 2)
