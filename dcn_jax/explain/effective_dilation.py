"""How far apart the samples of a filter lie, by the size of the object under it.

The effective dilation of a filter is the mean distance of its samples that are
neighbours in the kernel, horizontally or vertically (12 pairs of a 3x3 kernel), in
pixels of the layer's input map. Without offsets it is the dilation.

Shape letters: L layers of one module, N images, P Q output map, G offset groups, R S
kernel taps, M ground-truth boxes of an image.

Source: Dai et al. 2017 (arXiv:1703.06211), Table 2.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from dcn_jax.explain.capture import Record, capture_samples
from dcn_jax.explain.convolutions import map_stride
from dcn_jax.explain.moments import Moments, merge, moments_of_groups
from dcn_jax.modules.arguments import check_pair

# Filters are told apart by the object at their centre.
GROUPS = ("small", "medium", "large", "background")
# Below which sides of a square of the same area an object is small, and medium. COCO's;
# no source for those of the paper was found, so this is a guess.
SIZE_BOUNDS = (32.0, 96.0)


def effective_dilation(
    module: Any,
    call: Callable[[Any], Any],
    *,
    canvas: Sequence[int],
    sizes: Int[Array, "N 2"],
    boxes: Float[Array, "N M 4"],
    areas: Float[Array, "N M"],
    valid: Bool[Array, "N M"],
    bounds: Sequence[int | float] = SIZE_BOUNDS,
) -> dict[str, Moments]:
    """Effective dilation in a forward pass, by layer and size of the object.

    A filter belongs to the object whose box holds its undeformed centre, to the
    smallest if there are several, and to the background if there is none. Filters with
    their centre outside of the image, in the padding of its canvas, are not counted.

    Which pixel of the image a centre is on follows from what is recorded, so any
    network will do: the stride of the output map is the one power of two by which the
    canvas gives a map of that size, rounded up. (Of a map of one pixel it may be
    several; its filter is at pixel 0 by each of them.)

    Args:
      module: A model with `DeformConv` layers in it: an NNX module, or a Linen module
        bound to its variables, `module.bind(variables)`. It is not changed.
      call: The pass: is given a copy of the model, for example
        `lambda model: model.features(images, sizes)`. Its result is dropped.
      canvas: (height, width) of the images with their padding, which is at the right
        and bottom.
      sizes: (height, width) of what is image. An image of no pixels counts for nothing.
      boxes: x1 y1 x2 y2 in pixels of the canvas.
      areas: Of the boxes, in pixels of the images that were annotated. They decide
        about sizes, as in COCO.
      valid: Which boxes are objects.
      bounds: An object is small if its area is below the square of the first, medium
        if below that of the second, else large. COCO's by default, which the paper
        may not have.

    Returns:
      Path of a layer, such as "trunk.backbone.layer4.2.conv2" -> moments over its
      filters (all positions of all images), [4] each, in the order of `GROUPS`; empty
      when no layer ran. A filter with several offset groups counts once, with the mean
      over them. A layer that ran more than once has the moments of all runs; layers of
      one module that `nnx.scan` or `nnx.vmap` runs are PATH[0], PATH[1], ... A kernel
      of one tap has no neighbours, and is left out.

    Raises:
      ValueError: A map is not that of the canvas at a stride that is a power of two.
    """
    runs: dict[str, list[Moments]] = {}
    for record in capture_samples(module, call):
        path = ".".join(map(str, record.path))
        kernel_size = check_pair("kernel_size", record.layer.kernel_size)
        if math.prod(kernel_size) == 1:
            continue
        # The same of all layers of a stack.
        centres = _centres(record, path, canvas)
        group = object_groups(centres, sizes, boxes, areas, valid, bounds)
        for i, position in enumerate(record.samples["position"]):
            values = filter_dilation(position, kernel_size)
            name = f"{path}[{i}]" if record.stacked else path
            runs.setdefault(name, []).append(
                moments_of_groups(values, group, len(GROUPS))
            )
    return {
        name: merge(jax.tree.map(lambda *parts: jnp.stack(parts), *moments))
        for name, moments in runs.items()
    }


def filter_dilation(
    position: Float[Array, "N P Q G RS 2"], kernel_size: tuple[int, int]
) -> Float[Array, "N P Q"]:
    """Returns the effective dilation of each filter, the mean over its offset groups.

    Args:
      position: Of the samples, (y, x) in pixels of the layer's input map.
      kernel_size: (R, S), more than one tap.
    """
    taps = position.reshape(*position.shape[:-2], *kernel_size, 2)
    distances = [
        jnp.sqrt(jnp.square(jnp.diff(taps, axis=axis)).sum(-1)) for axis in (-3, -2)
    ]
    pairs = [d.reshape(*position.shape[:-2], -1) for d in distances]
    return jnp.concatenate(pairs, axis=-1).mean((-2, -1))


def object_groups(
    centres: Float[Array, "P Q 2"],
    sizes: Num[Array, "N 2"],
    boxes: Float[Array, "N M 4"],
    areas: Float[Array, "N M"],
    valid: Bool[Array, "N M"],
    bounds: Sequence[int | float] = SIZE_BOUNDS,
) -> Int[Array, "N P Q"]:
    """Returns which of `GROUPS` each filter belongs to; -1: none, it is in the padding.

    A box holds the pixels whose middle lies in it, on its left or upper border too.

    Args:
      centres: Of the filters, (y, x) in whole pixels of the canvas: (0, 0) is the first
        pixel, whose middle is at (0.5, 0.5) of a box.
      sizes: As those of `effective_dilation`, like all that follows.
      boxes: x1 y1 x2 y2 in pixels of the canvas.
      areas: Of the boxes.
      valid: Which boxes are objects.
      bounds: Of small and medium objects.
    """
    middle = centres[None, :, :, None] + 0.5  # [1, P, Q, 1, 2]
    boxes = boxes[:, None, None].astype(middle.dtype)
    first, last = boxes[..., 1::-1], boxes[..., :1:-1]  # (y1, x1) and (y2, x2)
    holds = ((first <= middle) & (middle < last)).all(-1) & valid[:, None, None]
    smallest = jnp.where(holds, areas[:, None, None], jnp.inf).min(-1, initial=jnp.inf)
    group = sum((smallest >= bound**2).astype(jnp.int32) for bound in bounds)
    group = jnp.where(jnp.isinf(smallest), GROUPS.index("background"), group)
    in_image = (middle[..., 0, :] > 0) & (
        middle[..., 0, :] < sizes[:, None, None].astype(middle.dtype)
    )
    return jnp.where(in_image.all(-1), group, -1)


def _centres(record: Record, path: str, canvas: Sequence[int]) -> Float[Array, "P Q 2"]:
    """Where the undeformed filters are centred, (y, x) in pixels of the canvas."""
    taps = record.samples["undeformed"][0]
    strides = check_pair("strides", record.layer.strides)
    pixels = [
        _stride(path, side, count) // step
        for side, count, step in zip(canvas, taps.shape[:2], strides, strict=True)
    ]
    middles = (taps[:, :, 0] + taps[:, :, -1]) / 2
    return middles * jnp.asarray(pixels, taps.dtype)[None, None]


def _stride(path: str, side: int, count: int) -> int:
    """The power of two by which a side of a canvas gives so many pixels of a map."""
    try:
        return map_stride((side,), (count,))
    except ValueError:
        raise ValueError(
            f"The layer {path} has {count} outputs along a side of {side} pixels of "
            "the canvas; expected as many as a stride of 1, 2, 4, 8, ... gives"
        ) from None
