"""Box arithmetic: areas, overlaps, the R-CNN coding, clipping.

A box is x1 y1 x2 y2 in pixels, x2 and y2 exclusive (no +1 in widths), on the last axis.
All functions are elementwise over leading axes, so a batch axis stays where it is.

Shape letters: n m boxes of a set; `...` batch axes, equal in all arguments.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

# A network may predict any size; beyond 1000 pixels for a stride-16 anchor it is noise
# (Detectron's and torchvision's bound, exp(.) then stays finite).
MAX_LOG_SCALE = math.log(1000.0 / 16)

# Sides below this count as this in `encode_boxes`: a padding box of zeros then has a
# finite code, which a mask can drop.
MIN_SIDE = 1e-6


def box_area(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Area of each box in square pixels."""
    x1, y1, x2, y2 = _coordinates(boxes)
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


def encode_boxes(
    boxes: Float[Array, "*b 4"],
    anchors: Float[Array, "*b 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*b 4"]:
    """Regression targets that move each anchor onto its box.

    (dx, dy) is the shift of the centre over the anchor's size, (dw, dh) the log of the
    ratio of sizes; each times its weight.

    Args:
      boxes: Target boxes.
      anchors: Anchors or proposals, one for each box.
      weights: Multipliers of dx, dy, dw, dh: the 1/std of the targets.

    Source: Girshick et al. 2014 (R-CNN), appendix C; torchvision's BoxCoder. Sides
    under 1e-6 pixels count as 1e-6, so that the code of a padding box is finite.
    """
    bx, by, bw, bh = _centre_and_size(boxes)
    ax, ay, aw, ah = _centre_and_size(anchors)
    bw, bh, aw, ah = (jnp.maximum(side, MIN_SIDE) for side in (bw, bh, aw, ah))
    wx, wy, ww, wh = weights
    return jnp.stack(
        [
            wx * (bx - ax) / aw,
            wy * (by - ay) / ah,
            ww * jnp.log(bw / aw),
            wh * jnp.log(bh / ah),
        ],
        axis=-1,
    )


def decode_boxes(
    deltas: Float[Array, "*b 4"],
    anchors: Float[Array, "*#b 4"],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*b 4"]:
    """Boxes that `deltas` make of `anchors`: the inverse of `encode_boxes`.

    dw and dh are bounded above by log(1000/16) after the division by their weights.

    Args:
      deltas: Predicted (dx, dy, dw, dh).
      anchors: Anchors or proposals; an axis of length 1 is broadcast, so class-specific
        deltas [..., n, K, 4] go with anchors [..., n, 1, 4].
      weights: As given to `encode_boxes`.
    """
    ax, ay, aw, ah = _centre_and_size(anchors)
    dx, dy, dw, dh = (
        delta / weight
        for delta, weight in zip(_coordinates(deltas), weights, strict=True)
    )
    x = ax + dx * aw
    y = ay + dy * ah
    half_w = 0.5 * aw * jnp.exp(jnp.minimum(dw, MAX_LOG_SCALE))
    half_h = 0.5 * ah * jnp.exp(jnp.minimum(dh, MAX_LOG_SCALE))
    return jnp.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)


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
    x1, y1, x2, y2 = _coordinates(boxes)
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
    x1, y1, x2, y2 = _coordinates(boxes)
    return (x2 - x1 >= min_size) & (y2 - y1 >= min_size)


def _coordinates(boxes):
    return tuple(boxes[..., i] for i in range(4))


def _centre_and_size(boxes):
    x1, y1, x2, y2 = _coordinates(boxes)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h


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
