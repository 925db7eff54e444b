"""One-stage detectors: the class-aware region proposal network.

Shape letters: N images, n anchors of all levels, L classes.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Num

from dcn_jax.detection.box_head import DetectionSelection, select_detections
from dcn_jax.detection.records import Batch, Detections
from dcn_jax.detection.rpn import RPN, RPNTargets
from dcn_jax.trunk import Features, Trunk, check_strides


class OneStage(nnx.Module):
    """A detector whose anchors are classified and moved, once.

    The paper says no more than that the classifier of a region proposal network has
    L + 1 classes, and that 256 anchors are sampled. Ours are: the other rules of the
    RPN's targets, one box for an anchor, whatever its class, and the choice of
    detections, which is that of the paper's other detectors.

    Args:
      trunk: Images to levels.
      rpn: Levels to classes and boxes of anchors; with one class it tells objects from
        background.
      selection: Which boxes are detections.

    Raises:
      ValueError: The RPN has other strides than the neck.

    Source: Dai et al. 2017 (arXiv:1703.06211) section 3.1.
    """

    def __init__(
        self,
        trunk: Trunk,
        rpn: RPN,
        *,
        selection: DetectionSelection = DetectionSelection(),
    ):
        check_strides("rpn", rpn, trunk.neck.rpn_strides)
        self.trunk, self.rpn, self.selection = trunk, rpn, selection

    @property
    def frozen_paths(self) -> tuple[str, ...]:
        """Beginnings of the paths of parameters that are not trained."""
        return self.trunk.frozen_paths

    def losses(
        self, batch: Batch, key: Key[Array, ""], targets: RPNTargets | None = None
    ) -> dict[str, Float[Array, ""]]:
        """Training losses, whose sum is to be minimised; see `TwoStage.losses`.

        Args:
          batch: Images with ground truth.
          key: For the random samples.
          targets: From `targets`, to hold all decisions fixed.

        Returns:
          "rpn_class" and "rpn_box".
        """
        output = self.rpn(self.features(batch.images, batch.sizes))
        if targets is None:
            truth = batch.boxes, batch.labels, batch.valid
            targets = self.rpn.targets(key, output, *truth)
        return self.rpn.losses(output, targets)

    def targets(self, batch: Batch, key: Key[Array, ""]) -> RPNTargets:
        """The decisions that `losses` would take: matches and samples."""
        output = self.rpn(self.features(batch.images, batch.sizes))
        return self.rpn.targets(key, output, batch.boxes, batch.labels, batch.valid)

    def predict(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> Detections:
        """Finds objects.

        Args:
          images: RGB, 0 to 255, padded at the right and bottom to the canvas.
          sizes: Valid (height, width) of each.
        """
        output = self.rpn(self.features(images, sizes))
        logits, deltas, usable = (
            jnp.concatenate(levels, axis=1)
            for levels in (output.logits, output.deltas, output.usable)
        )
        if self.rpn.num_classes == 1:
            # One logit is that of an object, beside 0.
            logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=2)
        anchors = jnp.concatenate(output.anchors)
        return select_detections(
            logits,
            deltas[:, :, None],
            jnp.broadcast_to(anchors[None], deltas.shape),
            usable,
            sizes,
            self.selection,
            self.rpn.code,
        )

    def features(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> Features:
        """What is read: normalised images and the levels of the neck."""
        return self.trunk(images, sizes)
