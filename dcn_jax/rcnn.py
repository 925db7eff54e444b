"""Faster R-CNN as in the DCNv2 paper.

A ResNet whose conv5 is dilated to stride 16, a region proposal network on conv4, a 1x1
reduction of conv5, RoI pooling into 7x7 bins, and a head of two fully connected layers.
This file only wires; each stage stands in its own module.

Shape letters: N images, H W canvas, M ground-truth boxes, B RoIs of an image, D
detections.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Num

from dcn_jax import mimic as mimicking
from dcn_jax.backbones import ResNet
from dcn_jax.box_head import (
    BoxHead,
    BoxTargets,
    box_losses,
    box_targets,
    select_detections,
)
from dcn_jax.fast_forms import pointwise_conv
from dcn_jax.mimic import MimicTargets, crop_patches, mimic_losses, mimic_targets
from dcn_jax.modules.offset_health import offset_health
from dcn_jax.modules.roi_pool import DeformRoIPool
from dcn_jax.padding import clear_padding, map_sizes
from dcn_jax.rpn import (
    Proposals,
    RPNHead,
    RPNTargets,
    anchors_of_grid,
    propose,
    rpn_losses,
    rpn_targets,
    usable_anchors,
)
from dcn_jax.sampling import gather_rows
from dcn_jax.types import Batch, Detections
from xla_ops import roi_align

_ROI_POOLINGS = ("roi_align", "deform", "modulated")

# ImageNet's statistics, RGB, 0 to 255.
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)


class Targets(NamedTuple):
    """Every discrete decision of a training step; constants of the loss."""

    rpn: RPNTargets
    box: BoxTargets
    mimic: MimicTargets | None


class FasterRCNN(nnx.Module):
    """Faster R-CNN with aligned, deformable or modulated RoI pooling, and mimicking.

    Defaults are the DCNv2 paper's, and Detectron's where it refers to them.

    Args:
      backbone: With maps "c4" and "c5" at one stride.
      num_classes: Foreground classes.
      pixel_mean: Subtracted from RGB values of 0 to 255.
      pixel_std: Divides them then.
      rpn_features: Channels of the RPN's 3x3 convolution.
      anchor_sizes: Sides in pixels of the square anchors.
      aspect_ratios: Heights over widths.
      rpn_pre_nms_top_n: Boxes that enter the RPN's suppression, in training and in
        testing.
      rpn_post_nms_top_n: Proposals that it leaves, likewise.
      rpn_nms_threshold: IoU of that suppression.
      rpn_samples: Anchors of an image that the RPN's loss reads.
      rpn_positive_fraction: Largest share of positives among them.
      rpn_positive_iou: Anchors are positive from this IoU on,
      rpn_negative_iou: and negative below this.
      reduction_features: Channels of the 1x1 reduction of conv5.
      roi_pooling: "roi_align", "deform" (DCNv1) or "modulated" (DCNv2).
      roi_output_size: Bins of RoI pooling along each axis.
      roi_sampling_ratio: Samples of a bin along each axis.
      roi_branch_features: Width of the fully connected layers of modulated RoI pooling.
      roi_samples: RoIs of an image that the head is trained on.
      roi_positive_fraction: Largest share of positives among them.
      roi_positive_iou: RoIs are positive from this IoU on and background below.
      head_features: Width of the head's two fully connected layers.
      class_agnostic_boxes: One box for a RoI in place of one for each class.
      box_weights: Multipliers of the head's box code.
      score_threshold: Detections score more than this.
      nms_threshold: IoU of the final suppression, by class.
      max_detections: Detections of an image.
      detection_candidates: Scores of an image that enter the final suppression.
      mimic: Regions that are mimicked: "none", "fg", "bg" or "fg_bg".
      mimic_count: Mimicked RoIs of an image.
      mimic_crop_size: Side of the crops in pixels.
      mimic_weight: Weight of both mimicking losses.
      mimic_reduction: "sum" or "mean", see `dcn_jax.mimic`, as the next two.
      mimic_detach_teacher: Whether the cosine loss leaves the crops' branch alone.
      mimic_ground_truth: Whether ground-truth boxes may be mimicked.
      dtype: Of the computation; None takes the parameters'. The backbone has its own.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Raises:
      ValueError: An argument is out of its range, or conv4 and conv5 differ in stride.
    """

    def __init__(
        self,
        backbone: ResNet,
        num_classes: int,
        *,
        pixel_mean: Sequence[float] = _PIXEL_MEAN,
        pixel_std: Sequence[float] = _PIXEL_STD,
        rpn_features: int = 512,
        anchor_sizes: Sequence[int | float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[int | float] = (0.5, 1, 2),
        rpn_pre_nms_top_n: tuple[int, int] = (12000, 6000),
        rpn_post_nms_top_n: tuple[int, int] = (2000, 1000),
        rpn_nms_threshold: float = 0.7,
        rpn_samples: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_positive_iou: float = 0.7,
        rpn_negative_iou: float = 0.3,
        reduction_features: int = 256,
        roi_pooling: str = "modulated",
        roi_output_size: int = 7,
        roi_sampling_ratio: int = 2,
        roi_branch_features: int = 1024,
        roi_samples: int = 512,
        roi_positive_fraction: float = 0.25,
        roi_positive_iou: float = 0.5,
        head_features: int = 1024,
        class_agnostic_boxes: bool = False,
        box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        detection_candidates: int = 4096,
        mimic: str = "none",
        mimic_count: int = 32,
        mimic_crop_size: int = 224,
        mimic_weight: float = 0.1,
        mimic_reduction: str = "sum",
        mimic_detach_teacher: bool = False,
        mimic_ground_truth: bool = True,
        dtype=None,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_choice("roi_pooling", roi_pooling, _ROI_POOLINGS)
        _check_choice("mimic", mimic, mimicking.REGIONS)
        _check_choice("mimic_reduction", mimic_reduction, mimicking.REDUCTIONS)
        if num_classes < 1:
            raise ValueError(f"`num_classes` is {num_classes}; expected at least 1")
        self.stride = backbone.strides["c4"]
        if backbone.strides["c5"] != self.stride:
            raise ValueError(
                f"`backbone` has strides {backbone.strides}; expected one stride for "
                "c4 and c5 (`dilate_conv5=True`)"
            )
        self.backbone = backbone
        self.num_classes = num_classes
        self.pixel_mean = tuple(map(float, pixel_mean))
        self.pixel_std = tuple(map(float, pixel_std))
        self.anchor_sizes = tuple(anchor_sizes)
        self.aspect_ratios = tuple(aspect_ratios)
        self.num_anchors = len(self.anchor_sizes) * len(self.aspect_ratios)
        self.rpn_pre_nms_top_n = tuple(rpn_pre_nms_top_n)
        self.rpn_post_nms_top_n = tuple(rpn_post_nms_top_n)
        self.rpn_nms_threshold = rpn_nms_threshold
        self.rpn_samples = rpn_samples
        self.rpn_positive_fraction = rpn_positive_fraction
        self.rpn_positive_iou = rpn_positive_iou
        self.rpn_negative_iou = rpn_negative_iou
        self.roi_pooling = roi_pooling
        self.roi_output_size = (roi_output_size, roi_output_size)
        self.roi_sampling_ratio = roi_sampling_ratio
        self.roi_samples = roi_samples
        self.roi_positive_fraction = roi_positive_fraction
        self.roi_positive_iou = roi_positive_iou
        x, y, width, height = box_weights
        self.box_weights = (x, y, width, height)
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.detection_candidates = detection_candidates
        self.mimic = mimic
        self.mimic_count = mimic_count
        self.mimic_crop_size = mimic_crop_size
        self.mimic_weight = mimic_weight
        self.mimic_reduction = mimic_reduction
        self.mimic_detach_teacher = mimic_detach_teacher
        self.mimic_ground_truth = mimic_ground_truth
        self.param_dtype = param_dtype

        types = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        gaussian = nnx.initializers.normal(0.01)
        self.rpn = RPNHead(
            backbone.channels["c4"], self.num_anchors, features=rpn_features, **types
        )
        self.reduction = nnx.Conv(
            backbone.channels["c5"],
            reduction_features,
            (1, 1),
            kernel_init=gaussian,
            conv_general_dilated=pointwise_conv,
            **types,
        )
        if roi_pooling != "roi_align":
            self.roi_pool = DeformRoIPool(
                reduction_features,
                self.roi_output_size,
                spatial_scale=1 / self.stride,
                hidden_features=roi_branch_features,
                modulated=roi_pooling == "modulated",
                sampling_ratio=roi_sampling_ratio,
                **types,
            )
        self.head = BoxHead(
            reduction_features * roi_output_size**2,
            num_classes,
            features=head_features,
            class_agnostic=class_agnostic_boxes,
            **types,
        )
        if mimic != "none":
            self.mimic_classifier = nnx.Linear(
                head_features, num_classes + 1, kernel_init=gaussian, **types
            )

    def losses(
        self, batch: Batch, key: Key[Array, ""], targets: Targets | None = None
    ) -> dict[str, Float[Array, ""]]:
        """Training losses, weighted; their sum is to be minimised.

        Every loss is a sum over the whole batch divided by a count over the whole
        batch, so that a batch sharded over devices has the loss of the same batch on
        one.

        Args:
          batch: Images with ground truth.
          key: For the random samples, one for each step; the same key gives the same
            samples.
          targets: From `targets`, to hold all decisions fixed; None makes them here,
            and is what training does.

        Returns:
          "rpn_class", "rpn_box", "class", "box", and when mimicking "mimic_class" and
          "mimic_cos".
        """
        maps = self.features(batch.images, batch.sizes)
        logits, deltas = self.rpn(maps["c4"])
        if targets is None:
            targets = self._targets(maps["c4"], logits, deltas, batch, key)
        losses = rpn_losses(logits, deltas, targets.rpn)
        representation = self._represent(
            maps["roi"], targets.box.rois, self._map_sizes(batch.sizes)
        )
        losses |= box_losses(*self.head.predict(representation), targets.box)
        if self.mimic != "none":
            losses |= self._mimic_losses(batch, representation, targets)
        return losses

    def targets(self, batch: Batch, key: Key[Array, ""]) -> Targets:
        """The decisions that `losses` would take: matches, samples, proposals."""
        maps = self.features(batch.images, batch.sizes)
        logits, deltas = self.rpn(maps["c4"])
        return self._targets(maps["c4"], logits, deltas, batch, key)

    def detect(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> Detections:
        """Finds objects.

        Args:
          images: RGB, 0 to 255, padded at the right and bottom to the canvas.
          sizes: Valid (height, width) of each.
        """
        maps = self.features(images, sizes)
        logits, deltas = self.rpn(maps["c4"])
        proposals = self._propose(maps["c4"], logits, deltas, sizes, training=False)
        representation = self._represent(
            maps["roi"], proposals.boxes, self._map_sizes(sizes)
        )
        logits, deltas = self.head.predict(representation)
        return select_detections(
            logits,
            deltas,
            proposals.boxes,
            proposals.valid,
            sizes,
            weights=self.box_weights,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            candidates=self.detection_candidates,
        )

    def features(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> dict[str, Float[Array, "N P Q C"]]:
        """Maps of the backbone, and "roi": the reduced one that RoI pooling reads."""
        return self._maps(self._normalise(images, sizes), sizes)

    def offset_health(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> dict[str, Float[Array, ""]]:
        """Statistics of the learned offsets, see `dcn_jax.modules.offset_health`.

        Returns:
          "offset/mean_abs", "offset/outside" and "offset/dead", each the mean over the
          deformable convolutions; empty when there are none.
        """
        return offset_health(self, lambda model: model.features(images, sizes))

    def _normalise(self, images, sizes):
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                f"`images` has shape {images.shape}; expected (N, H, W, 3), RGB"
            )
        if sizes.shape != (images.shape[0], 2):
            raise ValueError(
                f"`sizes` has shape {sizes.shape}; expected {(images.shape[0], 2)}, "
                "(height, width) of each image"
            )
        mean, std = (
            jnp.asarray(v, self.param_dtype)[None, None, None]
            for v in (self.pixel_mean, self.pixel_std)
        )
        return clear_padding((images.astype(self.param_dtype) - mean) / std, sizes)

    def _maps(self, images, sizes):
        maps = self.backbone(images, sizes)
        return maps | {"roi": jax.nn.relu(self.reduction(maps["c5"]))}

    def _map_sizes(self, sizes):
        return map_sizes(sizes, self.stride)

    def _represent(self, x, rois, sizes):
        """Head features [N, B, F] of RoIs on the reduced map `x`."""
        rois = rois.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
        if self.roi_pooling == "roi_align":
            pooled = roi_align(
                x,
                rois,
                output_size=self.roi_output_size,
                spatial_scale=1 / self.stride,
                sampling_ratio=self.roi_sampling_ratio,
                map_sizes=sizes,
            )
        else:
            pooled = self.roi_pool(x, rois, map_sizes=sizes)
        return self.head.represent(pooled)

    def _anchors(self, c4, sizes):
        grid = c4.shape[1:3]
        anchors = anchors_of_grid(
            grid, self.stride, self.anchor_sizes, self.aspect_ratios
        )
        return anchors, usable_anchors(sizes, grid, self.stride, self.num_anchors)

    def _propose(self, c4, logits, deltas, sizes, *, training) -> Proposals:
        anchors, usable = self._anchors(c4, sizes)
        return propose(
            logits,
            deltas,
            anchors,
            usable,
            sizes,
            pre_nms_top_n=self.rpn_pre_nms_top_n[0 if training else 1],
            post_nms_top_n=self.rpn_post_nms_top_n[0 if training else 1],
            nms_threshold=self.rpn_nms_threshold,
        )

    def _targets(self, c4, logits, deltas, batch, key) -> Targets:
        rpn_key, box_key, mimic_key = jax.random.split(key, 3)
        anchors, usable = self._anchors(c4, batch.sizes)
        of_rpn = rpn_targets(
            rpn_key,
            anchors,
            usable,
            batch.boxes,
            batch.valid,
            samples=self.rpn_samples,
            positive_fraction=self.rpn_positive_fraction,
            positive_iou=self.rpn_positive_iou,
            negative_iou=self.rpn_negative_iou,
        )
        proposals = self._propose(c4, logits, deltas, batch.sizes, training=True)
        of_box = box_targets(
            box_key,
            proposals.boxes,
            proposals.valid,
            batch.boxes,
            batch.labels,
            batch.valid,
            samples=self.roi_samples,
            positive_fraction=self.roi_positive_fraction,
            positive_iou=self.roi_positive_iou,
            weights=self.box_weights,
        )
        of_mimic = None
        if self.mimic != "none":
            of_mimic = mimic_targets(
                mimic_key,
                of_box,
                regions=self.mimic,
                count=self.mimic_count,
                include_ground_truth=self.mimic_ground_truth,
            )
        return Targets(of_rpn, of_box, of_mimic)

    def _mimic_losses(self, batch, representation, targets):
        index, valid = targets.mimic
        rois = gather_rows(targets.box.rois, index)
        labels = gather_rows(targets.box.labels, index)
        student = gather_rows(representation, index)
        teacher = self._represent_crops(batch, rois)
        losses = mimic_losses(
            student,
            teacher,
            self.mimic_classifier(teacher),
            labels,
            valid,
            reduction=self.mimic_reduction,
            detach_teacher=self.mimic_detach_teacher,
        )
        return {name: self.mimic_weight * loss for name, loss in losses.items()}

    def _represent_crops(self, batch, rois):
        """Features [N, E, F] that the network has of RoIs when they are all it sees."""
        num_images, count = rois.shape[:2]
        size = self.mimic_crop_size
        images = self._normalise(batch.images, batch.sizes)
        rois = rois.astype(images.dtype)
        patches = crop_patches(images, rois, batch.sizes, crop_size=size)
        patches = patches.reshape(num_images * count, size, size, 3)
        x = self._with_weights_apart()._maps(patches, None)["roi"]
        whole = jnp.asarray([0, 0, size, size], rois.dtype)
        whole = jnp.broadcast_to(whole[None, None], (num_images * count, 1, 4))
        features = self._represent(x, whole, None)
        return features.reshape(num_images, count, features.shape[-1])

    def _with_weights_apart(self) -> "FasterRCNN":
        """The same network; XLA does not see that its weights are the same.

        Otherwise XLA joins 1x1 convolutions of the images with those of the crops, for
        a GPU, and copies the maps of both, forward and backward, beside one another.
        """
        graph, state = nnx.split(self)
        return nnx.merge(graph, jax.lax.optimization_barrier(state))


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; expected one of {choices}")
