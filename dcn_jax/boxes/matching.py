"""Assignment of anchors or proposals to ground-truth boxes.

Shape letters: M ground-truth boxes of one image (padded), n candidates. Functions are
for one image; `jax.vmap` gives the batch.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32


class Matches(NamedTuple):
    """Ground truth of each candidate."""

    index: Int32[Array, " n"]  # row of the best ground-truth box; 0 if there is none
    label: Int32[Array, " n"]  # 1 positive, 0 negative, -1 neither


def match_boxes(
    iou: Float[Array, "M n"],
    valid: Bool[Array, " M"],
    *,
    low: float,
    high: float,
    allow_low_quality: bool,
) -> Matches:
    """Match each candidate to the ground-truth box that it overlaps most.

    Positive from IoU `high` on, negative below `low`, neither in between. With
    `allow_low_quality` also the candidates that are the best (or tied for it) of some
    ground-truth box are positive, and keep their own best box, as in torchvision's
    Matcher; unlike there, a box that no candidate touches makes none positive.

    Args:
      iou: From `box_iou(ground_truth, candidates)`. A candidate out of play (an anchor
        on padding) is given a column of -1: no box is then matched with it by
        `allow_low_quality`, and its label, 0, is the caller's to overwrite.
      valid: Which ground-truth rows are not padding.
      low: Upper bound of negatives.
      high: Lower bound of positives.
      allow_low_quality: The rule (i) of Faster R-CNN (arXiv:1506.01497) section 3.1.2.

    Raises:
      ValueError: `low` exceeds `high`.
    """
    if low > high:
        raise ValueError(f"`low` is {low}; expected at most `high`, which is {high}")
    iou = jnp.where(valid[:, None], iou, -1)
    best = jnp.max(iou, axis=0)
    label = jnp.where(best >= high, 1, jnp.where(best < low, 0, -1))
    if allow_low_quality:
        best_of_box = jnp.max(iou, axis=1, keepdims=True)
        is_best = jnp.any((iou == best_of_box) & (best_of_box > 0), axis=0)
        label = jnp.where(is_best, 1, label)
    return Matches(lax.argmax(iou, 0, jnp.int32), label.astype(jnp.int32))
