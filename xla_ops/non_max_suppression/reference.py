"""Non-maximum suppression in plain jnp, written to be read.

It is the oracle of the tests and the path for platforms that have no kernel.

Letters: B boxes of an image, D outputs.
"""

import jax
import jax.numpy as jnp


def nms(boxes, scores, class_ids, valid, *, threshold, max_outputs):
    """Greedy non-maximum suppression of one image.

    Args:
      boxes: [B, 4] as x1 y1 x2 y2.
      scores: [B], in the dtype of `boxes`.
      class_ids: [B] int32; boxes of different classes never suppress one another.
      valid: [B] bool; other boxes take no part.
      threshold: Largest IoU with a selected box that a box survives, exact in the
        dtype of `boxes`.
      max_outputs: D.

    Returns:
      indices [D] int32 by falling score, the lower index first among equals, 0 where
      there is none left; and valid [D] bool.
    """
    num_boxes = scores.shape[0]
    if num_boxes == 0:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    threshold = jnp.asarray(threshold, boxes.dtype)
    candidate = valid & ~jnp.isnan(scores) & ~jnp.isnan(boxes).any(-1)
    order = jnp.argsort(-scores, stable=True).astype(jnp.int32)
    boxes, class_ids, candidate = boxes[order], class_ids[order], candidate[order]
    area = _product(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])

    def select(state):
        count, left, indices = state
        best = jnp.argmax(left)
        box = boxes[best]
        low = jnp.maximum(box[:2][None], boxes[:, :2])
        high = jnp.minimum(box[2:][None], boxes[:, 2:])
        side = jnp.maximum(high - low, 0)
        overlap = _product(side[:, 0], side[:, 1])
        # 0/0, two boxes without area, is NaN and suppresses nothing.
        iou = overlap / (area[best] + area - overlap)
        suppressed = (iou > threshold) & (class_ids == class_ids[best])
        left &= ~suppressed & (jnp.arange(num_boxes) != best)
        return count + 1, left, indices.at[count].set(order[best])

    def unfinished(state):
        count, left, _ = state
        return (count < max_outputs) & left.any()

    state = jnp.int32(0), candidate, jnp.zeros(max_outputs, jnp.int32)
    count, _, indices = jax.lax.while_loop(unfinished, select, state)
    return indices, jnp.arange(max_outputs, dtype=jnp.int32) < count


def _product(a, b):
    """The product, rounded before it enters a sum.

    Compilers contract a product and a sum into one rounding, which changes the IoU's
    last bit; none can reach across a maximum.
    """
    return jnp.maximum(a * b, jnp.finfo(a.dtype).min)
