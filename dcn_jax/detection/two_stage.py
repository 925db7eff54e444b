"""Two-stage detectors: Faster and Mask R-CNN, R-FCN: what proposes, then classifies.

This file only wires; each stage stands in its own module. `dcn_jax.networks` has the
papers' networks.

Shape letters: N images, H W canvas, M ground-truth boxes, B RoIs of an image, D
detections.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Num

from dcn_jax.detection.box_head import (
    BoxTargets,
    DetectionSelection,
    RoISampling,
    box_losses,
    box_targets,
    select_detections,
)
from dcn_jax.detection.mask_head import MaskHead, MaskTargets, mask_losses
from dcn_jax.detection.mimic import Mimic, MimicTargets
from dcn_jax.detection.records import Batch, Detections
from dcn_jax.detection.roi_head import RepresentingHead, RoIHead
from dcn_jax.detection.rpn import RPN, RPNOutput, RPNTargets
from dcn_jax.trunk import Features, Trunk, check_strides


class Targets(NamedTuple):
    """Every discrete decision of a training step; constants of the loss."""

    rpn: RPNTargets
    box: BoxTargets
    mimic: MimicTargets | None
    mask: MaskTargets | None = None


class TwoStage(nnx.Module):
    """A detector that classifies what a region proposal network proposes.

    Args:
      trunk: Images to levels.
      rpn: Levels to proposals, of one class.
      roi: RoIs to classes and boxes.
      mask: Boxes to masks, or None.
      mimic: Feature mimicking, or None.
      sampling: Which RoIs the head is trained on.
      selection: Which boxes are detections.

    Raises:
      ValueError: The RPN tells classes apart, or a stage has other strides than the
        neck that it reads.
    """

    def __init__(
        self,
        trunk: Trunk,
        rpn: RPN,
        roi: RoIHead,
        *,
        mask: MaskHead | None = None,
        mimic: Mimic | None = None,
        sampling: RoISampling = RoISampling(),
        selection: DetectionSelection = DetectionSelection(),
    ):
        if rpn.num_classes != 1:
            raise ValueError(
                f"`rpn` has {rpn.num_classes} classes; expected 1, as its boxes are "
                "proposals"
            )
        check_strides("rpn", rpn, trunk.neck.rpn_strides)
        check_strides("roi", roi, trunk.neck.roi_strides)
        if mask is not None:
            check_strides("mask", mask, trunk.neck.roi_strides)
        self.trunk, self.rpn, self.roi = trunk, rpn, roi
        self.mask: MaskHead | None = nnx.data(mask)
        self.mimic: Mimic | None = nnx.data(mimic)
        self.sampling, self.selection = sampling, selection

    @property
    def frozen_paths(self) -> tuple[str, ...]:
        """Beginnings of the paths of parameters that are not trained."""
        return self.trunk.frozen_paths

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
          "rpn_class", "rpn_box", "class", "box"; with a mask head "mask"; and when
          mimicking "mimic_class" and "mimic_cos".

        Raises:
          ValueError: There is a mask head, and the batch has no masks.
        """
        features = self.features(batch.images, batch.sizes)
        proposed = self.rpn(features)
        if targets is None:
            targets = self._targets(proposed, batch, key)
        losses = self.rpn.losses(proposed, targets.rpn)
        seen = self.roi(features, targets.box.rois)
        losses |= box_losses(
            seen.logits,
            seen.deltas,
            targets.box,
            beta=self.roi.loss_beta,
            hardest=self.sampling.hardest,
        )
        if self.mask is not None and targets.mask is not None:
            masks = self.mask(features, targets.mask.rois)
            losses |= mask_losses(masks, targets.mask)
        if self.mimic is not None and targets.mimic is not None:
            # `Mimic` has refused a head without.
            head, representation = cast(RepresentingHead, self.roi), seen.representation
            assert representation is not None
            losses |= self.mimic.losses(
                self.trunk, head, features, representation, targets.box, targets.mimic
            )
        return losses

    def targets(self, batch: Batch, key: Key[Array, ""]) -> Targets:
        """The decisions that `losses` would take: matches, samples, proposals."""
        features = self.features(batch.images, batch.sizes)
        return self._targets(self.rpn(features), batch, key)

    def _targets(self, proposed: RPNOutput, batch: Batch, key) -> Targets:
        rpn_key, box_key, mimic_key = jax.random.split(key, 3)
        truth = batch.boxes, batch.labels, batch.valid
        of_rpn = self.rpn.targets(rpn_key, proposed, *truth)
        proposals = self.rpn.propose(proposed, batch.sizes, training=True)
        of_box = box_targets(
            box_key,
            proposals.boxes,
            proposals.valid,
            *truth,
            self.sampling,
            self.roi.code,
        )
        of_mimic = None
        if self.mimic is not None:
            of_mimic = self.mimic.targets(mimic_key, of_box)
        of_mask = None
        if self.mask is not None:
            if batch.masks is None or batch.mask_windows is None:
                raise ValueError(
                    "`batch` has no masks; expected them, as there is a mask head"
                )
            positives = int(self.sampling.samples * self.sampling.positive_fraction)
            of_mask = self.mask.targets(
                of_box, batch.masks, batch.mask_windows, positives
            )
        return Targets(of_rpn, of_box, of_mimic, of_mask)

    def predict(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> Detections:
        """Finds objects.

        Args:
          images: RGB, 0 to 255, padded at the right and bottom to the canvas.
          sizes: Valid (height, width) of each.
        """
        features = self.features(images, sizes)
        proposals = self.rpn.propose(self.rpn(features), sizes)
        seen = self.roi(features, proposals.boxes)
        found = select_detections(
            seen.logits,
            seen.deltas,
            proposals.boxes,
            proposals.valid,
            sizes,
            self.selection,
            self.roi.code,
        )
        if self.mask is None:
            return found
        masks = self.mask.predict(features, found.boxes, found.labels)
        return found._replace(masks=jnp.where(found.valid[..., None, None], masks, 0))

    def features(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> Features:
        """What all stages read: normalised images and the levels of the neck."""
        return self.trunk(images, sizes)
