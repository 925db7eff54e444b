"""Anchor boxes of a region proposal network.

Shape letters: A anchors of one position, n anchors of a whole map.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32


def cell_anchors(
    sizes: Sequence[float | int],
    aspect_ratios: Sequence[float | int],
    *,
    rounded: bool = True,
) -> Float32[np.ndarray, "A 4"]:
    """Anchors of one position, centred on (0, 0).

    Args:
      sizes: Side in pixels of the square anchor with the same area, ascending.
      aspect_ratios: Height over width.
      rounded: Whether to whole pixels, half to even, as in torchvision; detectron2 and
        mmdetection leave them as they are.

    Returns:
      x1 y1 x2 y2, ratio-major: all sizes of the first ratio, then of the second.

    Raises:
      ValueError: A size or a ratio is not positive, or there is none.

    Source: Faster R-CNN (arXiv:1506.01497) section 3.1.1; computed in float32, as
    torchvision's AnchorGenerator.
    """
    for name, values in (("sizes", sizes), ("aspect_ratios", aspect_ratios)):
        if len(values) == 0 or min(values) <= 0:
            raise ValueError(f"`{name}` is {tuple(values)}; expected positive numbers")
    side = np.asarray(sizes, np.float32)
    h_ratio = np.sqrt(np.asarray(aspect_ratios, np.float32))
    w = ((1 / h_ratio)[:, None] * side[None, :]).reshape(-1)
    h = (h_ratio[:, None] * side[None, :]).reshape(-1)
    cell = np.stack([-w, -h, w, h], axis=1) / 2
    return np.round(cell) if rounded else cell


def grid_anchors(
    cell_anchors: Float32[np.ndarray | Array, "A 4"],
    grid_hw: tuple[int, int],
    stride_hw: tuple[int, int],
) -> Float[Array, "n 4"]:
    """Anchors of all positions of a feature map, in order row, column, cell anchor.

    The first position is centred on pixel (0, 0), the next one a stride further.

    Args:
      cell_anchors: From `cell_anchors`.
      grid_hw: Rows and columns of the map.
      stride_hw: Pixels of the image to one step of the map.
    """
    y = jnp.arange(grid_hw[0], dtype=jnp.float32) * stride_hw[0]
    x = jnp.arange(grid_hw[1], dtype=jnp.float32) * stride_hw[1]
    y, x = jnp.meshgrid(y, x, indexing="ij")
    shift = jnp.stack([x, y, x, y], axis=-1)[:, :, None, :]
    anchors = shift + jnp.asarray(cell_anchors, jnp.float32)[None, None]
    return anchors.reshape(-1, 4)
