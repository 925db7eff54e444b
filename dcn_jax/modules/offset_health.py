"""How healthy the learned offsets are: statistics of every deformable convolution.

Shape letters: N batch, H W input map, P Q output map, G offset groups, R S kernel taps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# A sample with less weight than this neither says nor learns much.
DEAD_MASK = 0.01


class OffsetStatistics(nnx.Intermediate):
    """What a `DeformConv` records under `nnx.capture(..., OffsetStatistics)`."""


def offset_statistics(
    offset: Float[Array, "N P Q G RS 2"],
    mask: Float[Array, "N P Q G RS"] | None,
    *,
    map_size: tuple[int, int],
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    padding: Any,
    kernel_dilation: tuple[int, int],
) -> dict[str, Float[Array, ""]]:
    """Statistics of one layer's offsets, over all samples of the batch.

    Args:
      offset: (dy, dx) in pixels of the input map.
      mask: Factors of the samples, or None.
      map_size: (H, W).
      kernel_size: (R, S).
      strides: (vertical, horizontal).
      padding: "SAME", "VALID", or ((top, bottom), (left, right)).
      kernel_dilation: (vertical, horizontal).

    Returns:
      mean_abs: mean of |dy| and |dx|, in pixels.
      outside: share of the samples whose position is not in [0, H-1] x [0, W-1]: all or
        part of their value is padding.
      dead: share of the samples that neither contribute nor learn: the position is
        below -1 or at or above H (W), so that no pixel is next to it, or the mask is
        below 0.01.
    """
    offset = jax.lax.stop_gradient(offset)
    _, rows, columns, _, _, _ = offset.shape
    top, left = _padding_before(
        padding, map_size, kernel_size, strides, kernel_dilation
    )
    taps_y, taps_x = jnp.meshgrid(
        jnp.arange(kernel_size[0]) * kernel_dilation[0] - top,
        jnp.arange(kernel_size[1]) * kernel_dilation[1] - left,
        indexing="ij",
    )
    outside = dead = False
    for axis, (size, taps, start) in enumerate(
        zip(
            map_size,
            (taps_y, taps_x),
            (
                (jnp.arange(rows) * strides[0])[None, :, None, None, None],
                (jnp.arange(columns) * strides[1])[None, None, :, None, None],
            ),
            strict=True,
        )
    ):
        grid = start + taps.reshape(1, 1, 1, 1, -1)
        position = grid.astype(offset.dtype) + offset[..., axis]
        outside |= ~((position >= 0) & (position <= size - 1))
        dead |= ~((position >= -1) & (position < size))
    if mask is not None:
        dead |= jax.lax.stop_gradient(mask) < DEAD_MASK
    return {
        "mean_abs": jnp.mean(jnp.abs(offset)),
        "outside": jnp.mean(outside, dtype=offset.dtype),
        "dead": jnp.mean(dead, dtype=offset.dtype),
    }


def offset_health(
    module: nnx.Module, call: Callable[[Any], Any]
) -> dict[str, Float[Array, ""]]:
    """Offset statistics of a forward pass, averaged over the deformable layers.

    Args:
      module: A model with `DeformConv` layers in it. It is not changed.
      call: The pass: is given a copy of the model, for example
        `lambda model: model(images)`. Its result is dropped.

    Returns:
      "offset/mean_abs", "offset/outside", "offset/dead" (see `offset_statistics`), each
      a scalar, the mean over the layers that ran; empty when none did. Layers of one
      module that `nnx.scan` or `nnx.vmap` runs count one by one.
    """
    # A copy, since `nnx.capture` leaves its records on the modules.
    _, records = nnx.capture(call, OffsetStatistics)(nnx.clone(module))
    layers = [
        statistics
        for _, record in nnx.to_flat_state(records)
        for statistics in record.get_value()
    ]
    if not layers:
        return {}
    # Modules under nnx.scan have an entry for each layer.
    mean = jax.tree.map(
        lambda *values: jnp.mean(jnp.concatenate([jnp.ravel(v) for v in values])),
        *layers,
    )
    return {f"offset/{name}": value for name, value in mean.items()}


def _padding_before(padding, map_size, kernel_size, strides, kernel_dilation):
    """Rows and columns of padding before the map."""
    if isinstance(padding, str):
        extent = [
            (taps - 1) * step + 1
            for taps, step in zip(kernel_size, kernel_dilation, strict=True)
        ]
        pads = jax.lax.padtype_to_pads(map_size, extent, strides, padding)
        return tuple(before for before, _ in pads)
    return tuple(before for before, _ in padding)
