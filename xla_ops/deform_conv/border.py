"""What a deformable convolution reads at the border of its input.

Letters: N batch, H W input map, P Q output map, R S kernel taps, G offset groups.
"""

from typing import Any

import jax
import jax.numpy as jnp

from xla_ops.arguments import check_map_sizes, whole_size
from xla_ops.deform_conv.positions import positions_in_window
from xla_ops.deform_conv.window import Window

BORDERS = ("zeros", "v1")


def check_border(border: Any, map_sizes: Any, x: jax.Array) -> jax.Array | None:
    """Returns the sizes of the maps, [N, 2], where a border needs them.

    Raises:
      TypeError, ValueError: An argument does not fit; the message names it.
    """
    if not isinstance(border, str) or border not in BORDERS:
        raise ValueError(f"`border` is {border!r}; expected one of {BORDERS}")
    if border == "zeros":
        if map_sizes is not None:
            raise ValueError(
                "`map_sizes` is given with `border` 'zeros', which has no use for it; "
                "expected None"
            )
        return None
    if map_sizes is None:
        return jnp.broadcast_to(whole_size(x), (x.shape[0], 2))
    return check_map_sizes("map_sizes", map_sizes, x)


def replicating_offset(
    offset: jax.Array,
    map_sizes: jax.Array,
    kernel_size: tuple[int, int],
    window: Window,
) -> jax.Array:
    """Offsets with which zeros around the map act as the first release's border.

    A sample behind the last pixel of an axis, but less than a pixel, is moved onto it,
    and every other one that is outside goes where nothing is read. Neither has a
    derivative.

    Args:
      offset: [N, P, Q, G, R*S, 2] in the type of coordinates.
      map_sizes: [N, 2].
      kernel_size: (R, S).
      window: How the kernel moves.

    Returns:
      [N, P, Q, G, R*S, 2].
    """
    still = positions_in_window(
        jnp.zeros_like(offset, shape=(1, *offset.shape[1:3], 1, *offset.shape[4:])),
        kernel_size,
        **window._asdict(),
    )
    size = jnp.expand_dims(map_sizes.astype(offset.dtype), (1, 2, 3, 4))
    position = still + offset
    outside = (position < 0) | (position >= size)
    # `still` is whole: a sample that is moved lies on its pixel exactly.
    moved = jnp.where(position >= size - 1, size - 1 - still, offset)
    return jnp.where(outside, jnp.inf, moved)
