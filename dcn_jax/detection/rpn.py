"""Region proposal network: anchors of every level in, boxes worth a look out.

Source: Ren et al. 2015 (arXiv:1506.01497); targets, losses and the order of the steps
as in torchvision's RegionProposalNetwork. With more classes than one, the class-aware
network of Dai et al. 2017 (arXiv:1703.06211) section 3.1.

Shape letters: N images, H W map of a level, C channels, A anchors of one position, n
anchors of a level (in the order row, column, anchor) or of all levels one after the
other, L classes, K logits of an anchor, M ground-truth boxes, S sampled anchors, B
proposals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from dcn_jax.boxes import (
    BoxCode,
    box_iou,
    cell_anchors,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    gather_rows,
    grid_anchors,
    large_enough,
    match_boxes,
    sample_balanced,
    top_k,
)
from dcn_jax.losses import masked_mean, smooth_l1
from dcn_jax.modules.arguments import check_integer, check_number, check_rngs
from dcn_jax.modules.fast_forms import pointwise_conv
from dcn_jax.modules.spatial_conv import spatial_conv
from dcn_jax.padding import map_sizes, valid_mask
from dcn_jax.trunk import Features
from xla_ops import nms

AnchorSizes = Sequence[int | float] | Sequence[Sequence[int | float]]

# Proposals with a side below this, in pixels, are dropped (torchvision).
_MIN_SIDE = 1e-3


@dataclass(frozen=True)
class AnchorSampling:
    """Which anchors the loss reads.

    Args:
      samples: Of an image.
      positive_fraction: Largest share of positives among them.
      positive_iou: Anchors are positive from here on, and the best one of each box.
      negative_iou: Anchors are negative below.
    """

    samples: int = 256
    positive_fraction: float = 0.5
    positive_iou: float = 0.7
    negative_iou: float = 0.3


@dataclass(frozen=True)
class Selection:
    """Which boxes become proposals.

    Args:
      pre_nms_top_n: Boxes of each level that enter the suppression.
      post_nms_top_n: Proposals of an image that it leaves, of all levels together.
      nms_iou: Overlap at which the lower of two boxes of a level is dropped.
      score_threshold: Proposals score at least this, between 0 and 1.
    """

    pre_nms_top_n: int
    post_nms_top_n: int
    nms_iou: float = 0.7
    score_threshold: float = 0.0


class RPNOutput(NamedTuple):
    """What the network says of every anchor; an entry for each level."""

    logits: tuple[Float[Array, "N n K"], ...]
    deltas: tuple[Float[Array, "N n 4"], ...]
    anchors: tuple[Float[Array, "n 4"], ...]  # x1 y1 x2 y2 in pixels of the image
    usable: tuple[Bool[Array, "N n"], ...]  # not on the padding of the canvas


class Proposals(NamedTuple):
    """Proposals of each image, by falling score."""

    boxes: Float[Array, "N B 4"]
    logits: Float[Array, "N B"]
    valid: Bool[Array, "N B"]


class RPNTargets(NamedTuple):
    """The anchors that the loss reads, and what they should say."""

    index: Int32[Array, "N S"]  # into the anchors of all levels
    labels: Int32[Array, "N S"]  # 0: background; 1 to L, or 1 where L is 1
    valid: Bool[Array, "N S"]
    deltas: Float[Array, "N S 4"]  # code of the matched box; of use where labels > 0


class RPN(nnx.Module):
    """3x3 convolution and ReLU, then logits and four deltas for every anchor.

    All levels share the weights.

    Args:
      in_features: C.
      strides: Pixels of the image to one step of each level.
      num_classes: L: 1 tells boxes from background, by one logit; more tell classes
        apart, by one logit for each and one, the first, for the background. Proposals
        have no class.
      features: Channels of the 3x3 convolution.
      anchor_sizes: Sides in pixels of the square anchors of the finest level; on a
        level that is k times as coarse they are k times as large. Or a tuple of sides
        for each level, as many in each.
      aspect_ratios: Heights over widths.
      round_anchors: Whether anchors are rounded to whole pixels, see `cell_anchors`.
      strides_of_canvas: Whether anchors of a level are as far apart as the sides of the
        canvas over those of the grid, rounded down, as in torchvision; else `strides`.
      code: Of its boxes.
      loss_beta: Bend of the smooth L1 loss; 1/9 in the papers' code (sigma = 3,
        Detectron, torchvision), 0 in detectron2 and mmdetection.
      sampling: Which anchors the loss reads.
      train: Which boxes become proposals in training,
      test: and in testing.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Raises:
      TypeError: A number is not an integer, or `rngs` is no `nnx.Rngs`.
      ValueError: A number is out of its range.
    """

    def __init__(
        self,
        in_features: int,
        strides: Sequence[int],
        *,
        num_classes: int = 1,
        features: int = 512,
        anchor_sizes: AnchorSizes = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[int | float] = (0.5, 1, 2),
        round_anchors: bool = True,
        strides_of_canvas: bool = False,
        code: BoxCode = BoxCode(),
        loss_beta: float = 1 / 9,
        sampling: AnchorSampling = AnchorSampling(),
        train: Selection = Selection(12000, 2000),
        test: Selection = Selection(6000, 1000),
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        features = check_integer("features", features)
        self.strides = tuple(check_integer("strides", stride) for stride in strides)
        self.num_classes = check_integer("num_classes", num_classes)
        self.anchor_sizes = _sizes_of_levels(anchor_sizes, self.strides)
        self.aspect_ratios = tuple(map(float, aspect_ratios))
        # Names what is wrong with them.
        for sizes in self.anchor_sizes:
            cell_anchors(sizes, self.aspect_ratios)
        self.round_anchors, self.strides_of_canvas = round_anchors, strides_of_canvas
        self.code = code
        self.loss_beta = check_number("loss_beta", loss_beta)
        self.sampling, self.train_selection, self.test_selection = sampling, train, test
        self.num_anchors = len(self.anchor_sizes[0]) * len(self.aspect_ratios)
        self.num_logits = 1 if self.num_classes == 1 else self.num_classes + 1
        types: dict[str, Any] = dict(
            kernel_init=nnx.initializers.normal(0.01),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.conv = nnx.Conv(
            in_features,
            features,
            (3, 3),
            padding=1,
            conv_general_dilated=spatial_conv,
            **types,
        )
        pointwise: dict[str, Any] = dict(
            kernel_size=(1, 1), conv_general_dilated=pointwise_conv, **types
        )
        self.classifier = nnx.Conv(
            features, self.num_logits * self.num_anchors, **pointwise
        )
        self.deltas = nnx.Conv(features, 4 * self.num_anchors, **pointwise)

    def __call__(self, features: Features) -> RPNOutput:
        """Logits and deltas of all anchors, and the anchors."""
        levels = [
            self._level(x, level, features)
            for level, x in enumerate(features.levels.rpn)
        ]
        return RPNOutput(*zip(*levels, strict=True))

    def _level(self, x, level, features):
        grid, stride = x.shape[1:3], self.strides[level]
        canvas = features.images.shape[1:3] if self.strides_of_canvas else None
        anchors = self.anchors_of_grid(grid, level, canvas)
        if features.sizes is None:
            usable = jnp.ones((x.shape[0], anchors.shape[0]), bool)
        else:
            usable = usable_anchors(features.sizes, grid, stride, self.num_anchors)
        x = jax.nn.relu(self.conv(x))
        # Not -1, since there may be no images.
        count = x.shape[1] * x.shape[2] * self.num_anchors
        logits = self.classifier(x).reshape(x.shape[0], count, self.num_logits)
        deltas = self.deltas(x).reshape(x.shape[0], count, 4)
        return logits, deltas, anchors, usable

    def anchors_of_grid(
        self,
        grid_hw: tuple[int, int],
        level: int,
        canvas_hw: tuple[int, int] | None = None,
    ) -> Float[Array, "n 4"]:
        """Anchors of a level, in pixels of the image.

        Args:
          grid_hw: Rows and columns of the level.
          level: Its number, the finest is 0.
          canvas_hw: The anchors divide it; None puts them a stride apart.
        """
        cell = cell_anchors(
            self.anchor_sizes[level], self.aspect_ratios, rounded=self.round_anchors
        )
        stride = self.strides[level]
        steps = (stride, stride)
        if canvas_hw is not None:
            steps = (canvas_hw[0] // grid_hw[0], canvas_hw[1] // grid_hw[1])
        return grid_anchors(cell, grid_hw, steps)

    def targets(
        self,
        key: Key[Array, ""],
        output: RPNOutput,
        boxes: Float[Array, "N M 4"],
        labels: Int32[Array, "N M"],
        valid: Bool[Array, "N M"],
    ) -> RPNTargets:
        """Matches the anchors with the ground truth, samples those to learn from."""
        if self.num_classes == 1:
            labels = jnp.ones_like(labels)
        anchors, usable = jnp.concatenate(output.anchors), _join(output.usable)
        return rpn_targets(
            key, anchors, usable, boxes, labels, valid, self.sampling, self.code
        )

    def losses(
        self, output: RPNOutput, targets: RPNTargets
    ) -> dict[str, Float[Array, ""]]:
        """Class and box loss of the sampled anchors, see `rpn_losses`."""
        logits, deltas = _join(output.logits), _join(output.deltas)
        return rpn_losses(logits, deltas, targets, beta=self.loss_beta)

    def propose(
        self,
        output: RPNOutput,
        sizes: Int[Array, "N 2"],
        *,
        training: bool = False,
    ) -> Proposals:
        """Best boxes of each image, see `propose`."""
        selection = self.train_selection if training else self.test_selection
        return propose(output, sizes, selection, self.code)


def _sizes_of_levels(
    sizes: AnchorSizes, strides: tuple[int, ...]
) -> tuple[tuple[float, ...], ...]:
    """Anchor sizes of every level.

    Raises:
      ValueError: There is not one tuple for each level, or they differ in length.
    """
    if not any(isinstance(size, Sequence) for size in sizes):
        finest: Any = sizes
        return tuple(
            tuple(float(size) * stride / strides[0] for size in finest)
            for stride in strides
        )
    nested = all(isinstance(size, Sequence) for size in sizes)
    levels: Any = sizes if nested else ()
    if len(levels) != len(strides) or len(set(map(len, levels))) != 1:
        raise ValueError(
            f"`anchor_sizes` is {sizes}; expected numbers, or a tuple of as many "
            f"numbers for each of the {len(strides)} levels"
        )
    return tuple(tuple(map(float, level)) for level in levels)


def usable_anchors(
    sizes: Int[Array, "N 2"], grid_hw: tuple[int, int], stride: int, num_anchors: int
) -> Bool[Array, "N n"]:
    """Anchors at positions that are not padding of the canvas."""
    mask = valid_mask(map_sizes(sizes, stride), grid_hw)
    mask = jnp.broadcast_to(mask[..., None], (*mask.shape, num_anchors))
    return mask.reshape(mask.shape[0], math.prod(mask.shape[1:]))


def propose(
    output: RPNOutput,
    sizes: Int[Array, "N 2"],
    selection: Selection,
    code: BoxCode = BoxCode(),
) -> Proposals:
    """Best boxes of each image; no gradient flows through them.

    Keeps the largest logits of each level, decodes and clips those boxes, drops the
    tiny ones, and keeps the first that non-maximum suppression, by level, leaves. An
    anchor whose logit or box is not finite is dropped. Of several classes the logit is
    that of being any of them.

    Args:
      output: Of the network.
      sizes: Valid (height, width) of the images.
      selection: How many of what.
      code: Of the boxes.
    """
    levels = [
        _best(*level, sizes, selection, code) for level in zip(*output, strict=True)
    ]
    boxes, logits, valid = (_join(parts) for parts in zip(*levels, strict=True))
    numbers = None
    if len(levels) > 1:
        counts = [level[1].shape[1] for level in levels]
        numbers = np.repeat(np.arange(len(levels), dtype=np.int32), counts)
        numbers = jnp.broadcast_to(numbers[None], logits.shape)
    keep, valid = nms(
        boxes,
        logits,
        iou_threshold=selection.nms_iou,
        max_outputs=min(selection.post_nms_top_n, logits.shape[1]),
        class_ids=numbers,
        valid=valid,
    )
    boxes = jnp.where(valid[..., None], gather_rows(boxes, keep), 0)
    logits = jnp.where(valid, gather_rows(logits, keep), -jnp.inf)
    return Proposals(boxes, logits, valid)


def _best(logits, deltas, anchors, usable, sizes, selection, code):
    """The boxes of one level that enter the suppression, by falling logit."""
    logits, deltas, anchors = jax.lax.stop_gradient((logits, deltas, anchors))
    dtype = _loss_dtype(logits)
    logits, anchors = _log_odds(logits.astype(dtype)), anchors.astype(dtype)
    logits = jnp.where(usable & jnp.isfinite(logits), logits, -jnp.inf)
    logits, index = top_k(logits, min(selection.pre_nms_top_n, logits.shape[1]))
    deltas = gather_rows(deltas, index).astype(dtype)
    boxes = decode_boxes(deltas, anchors[index], code)
    valid = (logits > -jnp.inf) & jnp.all(jnp.isfinite(boxes), axis=-1)
    boxes = clip_boxes(jnp.where(valid[..., None], boxes, 0), sizes)
    valid &= large_enough(boxes, _MIN_SIDE)
    valid &= jax.nn.sigmoid(logits) >= selection.score_threshold
    return boxes, logits, valid


def _log_odds(logits):
    """Of not being background, [N, n]."""
    if logits.shape[2] == 1:
        return logits[..., 0]
    return jax.nn.logsumexp(logits[..., 1:], axis=-1) - logits[..., 0]


def rpn_targets(
    key: Key[Array, ""],
    anchors: Float[Array, "n 4"],
    usable: Bool[Array, "N n"],
    boxes: Float[Array, "N M 4"],
    labels: Int32[Array, "N M"],
    valid: Bool[Array, "N M"],
    sampling: AnchorSampling = AnchorSampling(),
    code: BoxCode = BoxCode(),
) -> RPNTargets:
    """Matches the anchors with the ground truth, samples those to learn from.

    Args:
      key: Split into one key for each image.
      anchors: Of all positions of the canvas, of all levels.
      usable: Those that are not on padding.
      boxes: Ground truth, padded.
      labels: Its classes, 1 where all are one.
      valid: Which rows of it are boxes.
      sampling: How many of what.
      code: Of the boxes.
    """

    def of_image(key, usable, boxes, labels, valid):
        iou = jnp.where(usable[None], box_iou(boxes, anchors), -1)
        matches = match_boxes(
            iou,
            valid,
            low=sampling.negative_iou,
            high=sampling.positive_iou,
            allow_low_quality=True,
        )
        label = jnp.where(usable, matches.label, -1)
        chosen = sample_balanced(
            key,
            label,
            count=sampling.samples,
            positive_fraction=sampling.positive_fraction,
        )
        matched = matches.index[chosen.index]
        return RPNTargets(
            chosen.index,
            jnp.where(chosen.positive, labels[matched], 0),
            chosen.valid,
            encode_boxes(boxes[matched], anchors[chosen.index], code),
        )

    keys = jax.random.split(key, boxes.shape[0])
    targets = jax.vmap(of_image)(keys, usable, boxes, labels, valid)
    return jax.lax.stop_gradient(targets)


def rpn_losses(
    logits: Float[Array, "N n K"],
    deltas: Float[Array, "N n 4"],
    targets: RPNTargets,
    *,
    beta: float = 1 / 9,
) -> dict[str, Float[Array, ""]]:
    """Class and box loss of the sampled anchors of all images together.

    Args:
      logits: Of all anchors.
      deltas: Likewise.
      targets: The sampled ones, and what they should say.
      beta: Of the smooth L1 loss.

    Returns:
      "rpn_class": mean cross entropy, binary where there is one logit. "rpn_box":
      smooth L1 summed over the positives, over the number of sampled anchors.
    """
    logits = gather_rows(logits, targets.index)
    deltas = gather_rows(deltas, targets.index)
    logits, deltas = (v.astype(_loss_dtype(v)) for v in (logits, deltas))
    count = jnp.sum(targets.valid, dtype=logits.dtype)
    positive = targets.labels > 0
    if logits.shape[2] == 1:
        entropy = optax.losses.sigmoid_binary_cross_entropy(
            logits[..., 0], positive.astype(logits.dtype)
        )
    else:
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, targets.labels
        )
    distance = smooth_l1(deltas, targets.deltas.astype(deltas.dtype), beta=beta)
    return {
        "rpn_class": masked_mean(entropy, targets.valid, count),
        "rpn_box": masked_mean(jnp.sum(distance, axis=-1), positive, count),
    }


def _join(levels):
    """Arrays [N, n, ...] of the levels, one after the other."""
    return levels[0] if len(levels) == 1 else jnp.concatenate(levels, axis=1)


def _loss_dtype(x):
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32
