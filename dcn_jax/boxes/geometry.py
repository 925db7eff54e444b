"""Areas, overlaps and clipping of boxes.

A box is x1 y1 x2 y2 in pixels, x2 and y2 exclusive (no +1 in widths), on the last axis.
All functions are elementwise over leading axes, so a batch axis stays where it is.

Shape letters: n m boxes of a set; `...` batch axes, equal in all arguments.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num


def box_area(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Area of each box in square pixels."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return (x2 - x1) * (y2 - y1)


def box_iou(
    a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"]
) -> Float[Array, "*b n m"]:
    """Intersection over union of each pair.

    A pair of empty boxes has union 0 and gets 0 (torchvision: NaN).
    """
    intersection, union = _intersection_and_union(a, b)
    return _ratio(intersection, union)


def generalized_box_iou(
    a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"]
) -> Float[Array, "*b n m"]:
    """Generalised IoU of each pair: IoU - (hull - union) / hull, in [-1, 1].

    Source: Rezatofighi et al. 2019 (arXiv:1902.09630). A hull of area 0 adds nothing.
    """
    intersection, union = _intersection_and_union(a, b)
    a, b = a[..., :, None, :], b[..., None, :, :]
    side = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    hull = side[..., 0] * side[..., 1]
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def clip_boxes(
    boxes: Float[Array, "*b n 4"], size: Num[Array, "*b 2"]
) -> Float[Array, "*b n 4"]:
    """Boxes cut to the image.

    Args:
      boxes: Boxes of each image.
      size: (height, width) of each image; of rank 1 when all share it.
    """
    height, width = (size[..., i].astype(boxes.dtype) for i in range(2))
    if size.ndim > 1:
        height, width = height[..., None], width[..., None]
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return jnp.stack(
        [
            jnp.clip(x1, 0, width),
            jnp.clip(y1, 0, height),
            jnp.clip(x2, 0, width),
            jnp.clip(y2, 0, height),
        ],
        axis=-1,
    )


def large_enough(boxes: Float[Array, "*b 4"], min_size: float) -> Bool[Array, "*b"]:
    """Whether both sides are at least `min_size` pixels."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return (x2 - x1 >= min_size) & (y2 - y1 >= min_size)


def _intersection_and_union(a, b):
    area_a, area_b = box_area(a), box_area(b)
    a, b = a[..., :, None, :], b[..., None, :, :]
    side = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    side = jnp.maximum(side, 0)
    intersection = side[..., 0] * side[..., 1]
    return intersection, area_a[..., :, None] + area_b[..., None, :] - intersection


def _ratio(numerator, denominator):
    """The quotient, and 0 with gradient 0 where the denominator is not positive."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)
