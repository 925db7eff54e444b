"""Region proposal network: anchors in, class-agnostic proposals out.

Source: Ren et al. 2015 (arXiv:1506.01497); targets, losses and the order of the steps
as in torchvision's RegionProposalNetwork.

Shape letters: N images, H W canvas, C channels, Hg Wg rows and columns of the map that
the head reads, A anchors of one position, n = Hg*Wg*A anchors of an image in the order
row, column, anchor, M ground-truth boxes, S sampled anchors, B proposals.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from dcn_jax.anchors import cell_anchors, grid_anchors
from dcn_jax.boxes import (
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    large_enough,
)
from dcn_jax.fast_forms import pointwise_conv
from dcn_jax.losses import masked_mean, smooth_l1
from dcn_jax.matching import match_boxes
from dcn_jax.modules.arguments import check_integer, check_rngs
from dcn_jax.padding import map_sizes, valid_mask
from dcn_jax.sampling import gather_rows, sample_balanced, top_k
from xla_ops import nms

# Proposals with a side below this, in pixels, are dropped (torchvision).
_MIN_SIDE = 1e-3

# Bend of the smooth L1 loss: sigma = 3 in the papers' code (torchvision, Detectron).
_BETA = 1 / 9

_gaussian = nnx.initializers.normal(0.01)


class Proposals(NamedTuple):
    """Proposals of each image, by falling score."""

    boxes: Float[Array, "N B 4"]
    logits: Float[Array, "N B"]
    valid: Bool[Array, "N B"]


class RPNTargets(NamedTuple):
    """The anchors that the loss reads, and what they should say."""

    index: Int32[Array, "N S"]  # into the n anchors
    positive: Bool[Array, "N S"]
    valid: Bool[Array, "N S"]
    deltas: Float[Array, "N S 4"]  # code of the matched box; of use where positive


class RPNHead(nnx.Module):
    """3x3 convolution and ReLU, then one logit and four deltas for every anchor."""

    def __init__(
        self,
        in_features: int,
        num_anchors: int,
        *,
        features: int = 512,
        dtype=None,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        num_anchors = check_integer("num_anchors", num_anchors)
        features = check_integer("features", features)
        self.num_anchors = num_anchors
        types = dict(
            kernel_init=_gaussian, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.conv = nnx.Conv(in_features, features, (3, 3), padding=1, **types)
        pointwise = dict(
            kernel_size=(1, 1), conv_general_dilated=pointwise_conv, **types
        )
        self.objectness = nnx.Conv(features, num_anchors, **pointwise)
        self.deltas = nnx.Conv(features, 4 * num_anchors, **pointwise)

    def __call__(
        self, x: Float[Array, "N Hg Wg C"]
    ) -> tuple[Float[Array, "N n"], Float[Array, "N n 4"]]:
        """Logits and deltas of all anchors; `x` is zero outside its valid part."""
        x = jax.nn.relu(self.conv(x))
        # Not -1, since there may be no images.
        count = x.shape[1] * x.shape[2] * self.num_anchors
        logits = self.objectness(x).reshape(x.shape[0], count)
        deltas = self.deltas(x).reshape(x.shape[0], count, 4)
        return logits, deltas


def anchors_of_grid(
    grid_hw: tuple[int, int],
    stride: int,
    anchor_sizes: Sequence[int | float],
    aspect_ratios: Sequence[int | float],
) -> Float[Array, "n 4"]:
    """Anchors of a map, in pixels of the image."""
    cell = cell_anchors(
        [float(size) for size in anchor_sizes],
        [float(ratio) for ratio in aspect_ratios],
    )
    return grid_anchors(cell, grid_hw, (stride, stride))


def usable_anchors(
    sizes: Int[Array, "N 2"], grid_hw: tuple[int, int], stride: int, num_anchors: int
) -> Bool[Array, "N n"]:
    """Anchors at positions that are not padding of the canvas."""
    mask = valid_mask(map_sizes(sizes, stride), grid_hw)
    mask = jnp.broadcast_to(mask[..., None], (*mask.shape, num_anchors))
    return mask.reshape(mask.shape[0], math.prod(mask.shape[1:]))


def propose(
    logits: Float[Array, "N n"],
    deltas: Float[Array, "N n 4"],
    anchors: Float[Array, "n 4"],
    usable: Bool[Array, "N n"],
    sizes: Int[Array, "N 2"],
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_threshold: float = 0.7,
) -> Proposals:
    """Best boxes of each image; no gradient flows through them.

    Keeps the `pre_nms_top_n` largest logits, decodes and clips those boxes, drops the
    tiny ones, and keeps the first `post_nms_top_n` that non-maximum suppression leaves.
    An anchor whose logit or box is not finite is dropped.
    """
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    logits = logits.astype(jnp.float32)
    logits = jnp.where(usable & jnp.isfinite(logits), logits, -jnp.inf)
    logits, index = top_k(logits, min(pre_nms_top_n, logits.shape[1]))
    boxes = decode_boxes(
        gather_rows(deltas, index).astype(jnp.float32),
        jax.lax.stop_gradient(anchors)[index],
    )
    valid = (logits > -jnp.inf) & jnp.all(jnp.isfinite(boxes), axis=-1)
    boxes = clip_boxes(jnp.where(valid[..., None], boxes, 0), sizes)
    valid &= large_enough(boxes, _MIN_SIDE)
    keep, valid = nms(
        boxes,
        logits,
        iou_threshold=nms_threshold,
        max_outputs=min(post_nms_top_n, logits.shape[1]),
        valid=valid,
    )
    boxes = jnp.where(valid[..., None], gather_rows(boxes, keep), 0)
    logits = jnp.where(valid, gather_rows(logits, keep), -jnp.inf)
    return Proposals(boxes, logits, valid)


def rpn_targets(
    key: Key[Array, ""],
    anchors: Float[Array, "n 4"],
    usable: Bool[Array, "N n"],
    boxes: Float[Array, "N M 4"],
    valid: Bool[Array, "N M"],
    *,
    samples: int = 256,
    positive_fraction: float = 0.5,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
) -> RPNTargets:
    """Matches the anchors with the ground truth and samples those that are learnt from.

    Args:
      key: Split into one key for each image.
      anchors: Of all positions of the canvas.
      usable: From `usable_anchors`.
      boxes: Ground truth, padded.
      valid: Which rows of it are boxes.
      samples: Sampled anchors of an image.
      positive_fraction: Largest share of positives among them.
      positive_iou: Anchors are positive from here on, and the best one of each box.
      negative_iou: Anchors are negative below.
    """

    def of_image(key, usable, boxes, valid):
        iou = jnp.where(usable[None], box_iou(boxes, anchors), -1)
        matches = match_boxes(
            iou, valid, low=negative_iou, high=positive_iou, allow_low_quality=True
        )
        label = jnp.where(usable, matches.label, -1)
        chosen = sample_balanced(
            key, label, count=samples, positive_fraction=positive_fraction
        )
        deltas = encode_boxes(boxes[matches.index[chosen.index]], anchors[chosen.index])
        return RPNTargets(chosen.index, chosen.positive, chosen.valid, deltas)

    keys = jax.random.split(key, boxes.shape[0])
    return jax.lax.stop_gradient(jax.vmap(of_image)(keys, usable, boxes, valid))


def rpn_losses(
    logits: Float[Array, "N n"], deltas: Float[Array, "N n 4"], targets: RPNTargets
) -> dict[str, Float[Array, ""]]:
    """Objectness and box loss of the sampled anchors of all images together.

    Returns:
      "rpn_class": mean binary cross entropy. "rpn_box": smooth L1 (beta 1/9) summed
      over the positives, over the number of sampled anchors.
    """
    logits = gather_rows(logits, targets.index)
    deltas = gather_rows(deltas, targets.index)
    logits, deltas = (v.astype(_loss_dtype(v)) for v in (logits, deltas))
    count = jnp.sum(targets.valid, dtype=logits.dtype)
    entropy = optax.losses.sigmoid_binary_cross_entropy(
        logits, targets.positive.astype(logits.dtype)
    )
    distance = smooth_l1(deltas, targets.deltas.astype(deltas.dtype), beta=_BETA)
    return {
        "rpn_class": masked_mean(entropy, targets.valid, count),
        "rpn_box": masked_mean(jnp.sum(distance, axis=-1), targets.positive, count),
    }


def _loss_dtype(x):
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32
