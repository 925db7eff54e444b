"""Offsets of deformable convolutions as fields of arrows.

Shape letters: N images, P Q output map, G offset groups.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dcn_jax.explain.capture import Record, capture_samples
from dcn_jax.explain.convolutions import map_stride


class OffsetField(NamedTuple):
    """How a layer's filters move, in pixels of its input map."""

    centre: Float[Array, "P Q 2"]  # (y, x) of the filter before it moves
    offset: Float[Array, "N P Q G 2"]  # (dy, dx), the mean over the taps
    mask: Float[Array, "N P Q G"] | None  # the mean over the taps; DCNv1: None
    map_size: Int[Array, "2"]  # (H, W) of that map


def offset_fields(module: Any, call: Callable[[Any], Any]) -> dict[str, OffsetField]:
    """Mean offset and mask of every filter of every deformable convolution.

    Taps that move apart from one another cancel in the mean; how far apart they lie is
    told by `effective_dilation`.

    Args:
      module: A model with `DeformConv` layers in it: an NNX module, or a Linen module
        bound to its variables, `module.bind(variables)`. It is not changed.
      call: The pass: is given a copy of the model, for example
        `lambda model: model(images)`. Its result is dropped.

    Returns:
      Path of a layer, such as "trunk.backbone.layer4.2.conv2" -> its field; empty when
      no layer ran. Of a layer that ran more than once, it is the last run; layers of
      one module that `nnx.scan` or `nnx.vmap` runs are PATH[0], PATH[1], ...
    """
    fields = {}
    for record in capture_samples(module, call):
        path = ".".join(map(str, record.path))
        for i in range(len(record.samples["offset"])):
            name = f"{path}[{i}]" if record.stacked else path
            fields[name] = _field(record, i)
    return fields


def first_in_pixels(
    field: OffsetField, canvas: Sequence[int], size: Sequence[int]
) -> OffsetField:
    """Of the first image, the field in pixels of the image.

    Args:
      field: From `offset_fields`, on the host.
      canvas: (height, width) of what the network was given.
      size: (height, width) of the image in its upper left corner; filters in the
        padding have nothing to show.

    Returns:
      The same without the axis N.

    Raises:
      ValueError: The map is not as large as the canvas over a power of two.
    """
    stride = map_stride(canvas, np.asarray(field.map_size).tolist())
    centre = np.asarray(field.centre) * stride
    rows, columns = (
        int((line <= side - 1).sum())
        for line, side in zip((centre[:, 0, 0], centre[0, :, 1]), size, strict=True)
    )
    mask = None if field.mask is None else field.mask[0, :rows, :columns]
    return field._replace(
        centre=centre[:rows, :columns],
        offset=field.offset[0, :rows, :columns] * stride,
        mask=mask,
    )


def _field(record: Record, layer: int) -> OffsetField:
    found = jax.tree.map(lambda x: x[layer], record.samples)
    taps = found["undeformed"]
    mask = found.get("mask")
    return OffsetField(
        centre=(taps[:, :, 0] + taps[:, :, -1]) / 2,
        offset=found["offset"].mean(-2),
        mask=None if mask is None else mask.mean(-1),
        map_size=found["map_size"].astype(jnp.int32),
    )
