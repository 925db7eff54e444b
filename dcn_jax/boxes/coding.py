"""The R-CNN code of a box: how an anchor or a proposal is moved onto it.

A box is x1 y1 x2 y2 in pixels, x2 and y2 exclusive, on the last axis. Functions are
elementwise over leading axes.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

# A network may predict any size; beyond 1000 pixels for a stride-16 anchor it is noise
# (Detectron's and torchvision's bound, exp(.) then stays finite).
MAX_LOG_SCALE = math.log(1000.0 / 16)

# Sides below this count as this in `encode_boxes`: a padding box of zeros then has a
# finite code, which a mask can drop.
MIN_SIDE = 1e-6


@dataclass(frozen=True)
class BoxCode:
    """How a box is written as a move of an anchor or a proposal, and how it is read.

    Args:
      weights: Multipliers of dx, dy, dw, dh: the 1/std of the targets.
      clamp_shrinking: Whether dw and dh are also bounded below when they are read, by
        -log(1000/16), as in mmdetection.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clamp_shrinking: bool = False


def encode_boxes(
    boxes: Float[Array, "*b 4"],
    anchors: Float[Array, "*b 4"],
    code: BoxCode = BoxCode(),
) -> Float[Array, "*b 4"]:
    """Regression targets that move each anchor onto its box.

    (dx, dy) is the shift of the centre over the anchor's size, (dw, dh) the log of the
    ratio of sizes; each times its weight.

    Args:
      boxes: Target boxes.
      anchors: Anchors or proposals, one for each box.
      code: The weights of the result.

    Source: Girshick et al. 2014 (R-CNN), appendix C; torchvision's BoxCoder. Sides
    under 1e-6 pixels count as 1e-6, so that the code of a padding box is finite.
    """
    bx, by, bw, bh = _centre_and_size(boxes)
    ax, ay, aw, ah = _centre_and_size(anchors)
    bw, bh, aw, ah = (jnp.maximum(side, MIN_SIDE) for side in (bw, bh, aw, ah))
    wx, wy, ww, wh = code.weights
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
    code: BoxCode = BoxCode(),
) -> Float[Array, "*b 4"]:
    """Boxes that `deltas` make of `anchors`: the inverse of `encode_boxes`.

    dw and dh are bounded above by log(1000/16) after the division by their weights.

    Args:
      deltas: Predicted (dx, dy, dw, dh).
      anchors: Anchors or proposals; an axis of length 1 is broadcast, so class-specific
        deltas [..., n, K, 4] go with anchors [..., n, 1, 4].
      code: As given to `encode_boxes`.
    """
    ax, ay, aw, ah = _centre_and_size(anchors)
    dx, dy, dw, dh = (
        delta / weight
        for delta, weight in zip(_coordinates(deltas), code.weights, strict=True)
    )
    x = ax + dx * aw
    y = ay + dy * ah
    dw, dh = (jnp.minimum(delta, MAX_LOG_SCALE) for delta in (dw, dh))
    if code.clamp_shrinking:
        dw, dh = (jnp.maximum(delta, -MAX_LOG_SCALE) for delta in (dw, dh))
    half_w, half_h = 0.5 * aw * jnp.exp(dw), 0.5 * ah * jnp.exp(dh)
    return jnp.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)


def _coordinates(boxes):
    return tuple(boxes[..., i] for i in range(4))


def _centre_and_size(boxes):
    x1, y1, x2, y2 = _coordinates(boxes)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h
