"""The R-CNN head: pooled features in, classes and refined boxes out.

Source: Girshick 2015 (arXiv:1504.08083); targets and the choice of detections as in
torchvision's RoIHeads, box loss as in Detectron.

Shape letters: N images, M ground-truth boxes, B RoIs of an image, h w bins, C channels,
F features of the representation, L foreground classes, D detections. Class 0 is the
background, the others are 1 to L.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from dcn_jax.boxes import (
    BoxCode,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    gather_rows,
    large_enough,
    match_boxes,
    sample_balanced,
    top_k,
)
from dcn_jax.detection.records import Detections
from dcn_jax.detection.roi_head import RoIOutput, check_pool, pool_rois
from dcn_jax.losses import masked_mean, smooth_l1
from dcn_jax.modules.arguments import check_integer, check_number, check_rngs
from dcn_jax.modules.roi_pool import RoIPooling, flatten
from dcn_jax.trunk import Features
from xla_ops import nms

# As in Fast R-CNN.
CODE = BoxCode(weights=(10.0, 10.0, 5.0, 5.0))

# Detections with a side below this, in pixels, are dropped (torchvision).
_MIN_SIDE = 1e-2


@dataclass(frozen=True)
class RoISampling:
    """Which RoIs a head is trained on.

    Args:
      samples: Of an image.
      positive_fraction: Largest share of positives among them.
      positive_iou: RoIs are positive from this overlap on.
      negative_iou: RoIs are background below.
      least_iou: RoIs that overlap every box less than this are not used; 0.1 in the
        first releases, which take such as are hard for background.
      hardest: How many of an image's samples are learned from, those with the largest
        losses (OHEM); 0 is for all.
    """

    samples: int = 512
    positive_fraction: float = 0.25
    positive_iou: float = 0.5
    negative_iou: float = 0.5
    least_iou: float = 0.0
    hardest: int = 0


@dataclass(frozen=True)
class DetectionSelection:
    """Which boxes are detections.

    Args:
      score_threshold: Detections score more than this.
      nms_iou: A box is dropped when it overlaps a better one of its class more.
      max_detections: Of an image, all classes together.
      candidates: Suppression looks at this many scores of an image, the best ones. A
        cut below all of them bounds its cost; with the default threshold there are
        rarely as many left.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    candidates: int = 4096


class BoxTargets(NamedTuple):
    """The RoIs that the head is trained on, and what it should say of them."""

    rois: Float[Array, "N B 4"]
    labels: Int32[Array, "N B"]  # 0: background
    valid: Bool[Array, "N B"]
    deltas: Float[Array, "N B 4"]  # code of the matched box; of use where labels > 0
    is_ground_truth: Bool[Array, "N B"]  # a ground-truth box that joined the proposals
    matched: Int32[Array, "N B"]  # row of the matched box; of use where labels > 0


class BoxHead(nnx.Module):
    """RoI pooling, two fully connected layers, a classifier and a box regressor.

    Args:
      pool: A layer of `dcn_jax.modules.roi_pool`, for maps at `strides`.
      in_features: C.
      num_classes: Foreground classes, L.
      strides: Pixels of the image to one step of each level that RoIs read.
      features: Width of both fully connected layers, F.
      class_agnostic: One box for a RoI in place of one for each foreground class.
      code: Of its boxes.
      loss_beta: Bend of the box loss, on codes with these weights: 1 in Fast R-CNN and
        Detectron, 1/9 in torchvision, 0 in detectron2 and mmdetection.
      canonical_size: Of a pyramid, see `levels_of_rois`.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Raises:
      TypeError: A number is not an integer, or `rngs` is no `nnx.Rngs`.
      ValueError: A number is less than 1, or `pool` is for maps at other strides.
    """

    def __init__(
        self,
        pool: RoIPooling,
        in_features: int,
        num_classes: int,
        *,
        strides: Sequence[int],
        features: int = 1024,
        class_agnostic: bool = False,
        code: BoxCode = CODE,
        loss_beta: float = 1.0,
        canonical_size: float = 224.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        num_classes = check_integer("num_classes", num_classes)
        features = check_integer("features", features)
        self.strides = tuple(check_integer("strides", stride) for stride in strides)
        check_pool(pool, self.strides)
        self.code = code
        self.loss_beta = check_number("loss_beta", loss_beta)
        self.canonical_size = check_number("canonical_size", canonical_size)
        self.pool = pool
        bins = math.prod(pool.output_size)
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        xavier = nnx.initializers.xavier_uniform()
        self.fc6 = nnx.Linear(bins * in_features, features, kernel_init=xavier, **types)
        self.fc7 = nnx.Linear(features, features, kernel_init=xavier, **types)
        self.classifier = nnx.Linear(
            features,
            num_classes + 1,
            kernel_init=nnx.initializers.normal(0.01),  # Detectron, as the next
            **types,
        )
        self.num_classes = num_classes
        self.num_features = features
        self.num_boxes = 1 if class_agnostic else num_classes
        self.regressor = nnx.Linear(
            features,
            4 * self.num_boxes,
            kernel_init=nnx.initializers.normal(0.001),
            **types,
        )

    def __call__(self, features: Features, rois: Float[Array, "N B 4"]) -> RoIOutput:
        """Pools the RoIs, and says what they hold."""
        x = self.represent(features, rois)
        deltas = self.regressor(x).reshape(*x.shape[:2], self.num_boxes, 4)
        return RoIOutput(self.classifier(x), deltas, x)

    def represent(
        self, features: Features, rois: Float[Array, "N B 4"]
    ) -> Float[Array, "N B F"]:
        """Output of the second fully connected layer, after its ReLU."""
        x = flatten(
            pool_rois(self.pool, features, rois, self.strides, self.canonical_size)
        )
        x = jax.nn.relu(self.fc6(x))
        return jax.nn.relu(self.fc7(x))


def box_targets(
    key: Key[Array, ""],
    proposals: Float[Array, "N P 4"],
    proposals_valid: Bool[Array, "N P"],
    boxes: Float[Array, "N M 4"],
    labels: Int32[Array, "N M"],
    valid: Bool[Array, "N M"],
    sampling: RoISampling = RoISampling(),
    code: BoxCode = CODE,
) -> BoxTargets:
    """Samples the RoIs that the head is trained on.

    The ground-truth boxes join the proposals.

    Args:
      key: Split into one key for each image.
      proposals: P of each image.
      proposals_valid: Which of them count.
      boxes: Ground truth, padded.
      labels: Its classes.
      valid: Which rows of it are boxes.
      sampling: How many of what.
      code: Of the boxes.
    """
    num_proposals = proposals.shape[1]
    boxes = boxes.astype(proposals.dtype)

    def of_image(key, proposals, proposals_valid, boxes, labels, valid):
        candidates = jnp.concatenate([proposals, boxes])
        iou = box_iou(boxes, candidates)
        matches = match_boxes(
            iou,
            valid,
            low=sampling.negative_iou,
            high=sampling.positive_iou,
            allow_low_quality=False,
        )
        usable = jnp.concatenate([proposals_valid, valid])
        if sampling.least_iou > 0:
            best = jnp.max(jnp.where(valid[:, None], iou, 0), axis=0)
            usable &= best >= sampling.least_iou
        chosen = sample_balanced(
            key,
            jnp.where(usable, matches.label, -1),
            count=sampling.samples,
            positive_fraction=sampling.positive_fraction,
        )
        matched = matches.index[chosen.index]
        rois = jnp.where(chosen.valid[:, None], candidates[chosen.index], 0)
        return BoxTargets(
            rois=rois,
            labels=jnp.where(chosen.positive, labels[matched], 0),
            valid=chosen.valid,
            deltas=encode_boxes(boxes[matched], rois, code),
            is_ground_truth=chosen.valid & (chosen.index >= num_proposals),
            matched=matched,
        )

    keys = jax.random.split(key, boxes.shape[0])
    targets = jax.vmap(of_image)(keys, proposals, proposals_valid, boxes, labels, valid)
    return jax.lax.stop_gradient(targets)


def box_losses(
    logits: Float[Array, "N B classes"],
    deltas: Float[Array, "N B boxes 4"],
    targets: BoxTargets,
    *,
    beta: float = 1.0,
    hardest: int = 0,
) -> dict[str, Float[Array, ""]]:
    """Class and box loss of the sampled RoIs of all images together.

    Args:
      logits: From the head.
      deltas: From the head; with one box for each RoI all classes share it.
      targets: What they should be.
      beta: Of the smooth L1 loss, on deltas that carry the weights of the code.
      hardest: See `RoISampling`. Shrivastava et al. 2016 (arXiv:1604.03540), without
        their suppression of RoIs that overlap, as in MSRA's code.

    Returns:
      "class": mean cross entropy over the RoIs that are learned from. "box": smooth L1
      summed over the four deltas of the positives among them, over the number of all.
    """
    dtype = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    logits, deltas = logits.astype(dtype), deltas.astype(dtype)
    entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, targets.labels
    )
    column = jnp.clip(targets.labels - 1, 0, deltas.shape[2] - 1)
    own = jax.vmap(gather_rows)(deltas, column[..., None])[:, :, 0]
    distance = smooth_l1(own, targets.deltas.astype(dtype), beta=beta)
    distance = jnp.sum(distance, axis=-1)
    valid, positive = targets.valid, targets.valid & (targets.labels > 0)
    if hardest:
        loss = jax.lax.stop_gradient(entropy + jnp.where(positive, distance, 0))
        loss = jnp.where(valid, loss, -jnp.inf)
        _, index = top_k(loss, min(hardest, loss.shape[1]))
        entropy, distance, valid, positive = (
            gather_rows(rows, index) for rows in (entropy, distance, valid, positive)
        )
    count = jnp.sum(valid, dtype=dtype)
    return {
        "class": masked_mean(entropy, valid, count),
        "box": masked_mean(distance, positive, count),
    }


def select_detections(
    logits: Float[Array, "N B classes"],
    deltas: Float[Array, "N B boxes 4"],
    rois: Float[Array, "N B 4"],
    rois_valid: Bool[Array, "N B"],
    sizes: Int[Array, "N 2"],
    selection: DetectionSelection = DetectionSelection(),
    code: BoxCode = CODE,
) -> Detections:
    """Final boxes: softmax, decoding, clipping, thresholds, suppression by class.

    Args:
      logits: From the head.
      deltas: From the head; with one box for each RoI all classes share it.
      rois: The RoIs that the head saw.
      rois_valid: Which of them count.
      sizes: Valid (height, width) of the images.
      selection: How many of what; `max_detections` is D.
      code: Of the boxes.
    """
    num_classes = logits.shape[2] - 1
    scores = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[..., 1:]
    ok = (scores > selection.score_threshold) & rois_valid[..., None]
    num_images, num_rois = rois.shape[:2]
    # Not -1, since there may be no images or RoIs.
    scores = jnp.where(ok, scores, -1).reshape(num_images, num_rois * num_classes)
    scores, index = top_k(scores, min(selection.candidates, scores.shape[1]))
    row, column = index // num_classes, index % num_classes
    per_box = deltas.reshape(num_images, num_rois * deltas.shape[2], 4)
    per_box = per_box.astype(jnp.float32)
    per_box = gather_rows(per_box, row if deltas.shape[2] == 1 else index)
    rois = gather_rows(rois, row).astype(jnp.float32)
    boxes = decode_boxes(per_box, rois, code)
    finite = jnp.all(jnp.isfinite(boxes), axis=-1)
    boxes = clip_boxes(jnp.where(finite[..., None], boxes, 0), sizes)
    valid = (scores > 0) & finite & large_enough(boxes, _MIN_SIDE)
    keep, valid = nms(
        boxes,
        scores,
        iou_threshold=selection.nms_iou,
        max_outputs=selection.max_detections,
        class_ids=column,
        valid=valid,
    )
    return Detections(
        boxes=jnp.where(valid[..., None], gather_rows(boxes, keep), 0),
        scores=jnp.where(valid, gather_rows(scores, keep), 0),
        labels=jnp.where(valid, gather_rows(column, keep) + 1, 0),
        valid=valid,
    )
