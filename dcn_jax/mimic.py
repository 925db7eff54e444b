"""R-CNN feature mimicking: the detector's RoI features learn from cropped images.

Some RoIs of every image are cut out of it, resized, and sent through the same network
as images of their own. Their features, free of context, are what the detector's
features of the same RoIs are drawn towards.

Source: Zhu et al. 2019 (arXiv:1811.11168) section 3.3 and eq. 3. The paper leaves some
points open; they are arguments here, with these defaults:

* The distances are summed over an image's RoIs, as eq. 3 reads, and averaged over the
  images (`reduction="sum"`); `"mean"` averages over all RoIs, about 1/32 of it.
* An image with fewer than `count` suitable RoIs mimics those it has.
* Ground-truth boxes are among the detector's own training RoIs and may be chosen
  (`include_ground_truth`).
* Features are those after the ReLU of the second fully connected layer, which is what
  the classifiers see.
* The gradient flows to both sides, because the paper calls the loss joint over shared
  parameters; `detach_teacher` stops it on the side of the crops.
* Crops come from the training image as the detector sees it, resized, flipped and
  normalised. No gradient flows to the coordinates of the RoIs.

Shape letters: N images, H W canvas, B sampled RoIs of an image, E mimicked RoIs of an
image, F features, L foreground classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from dcn_jax.box_head import BoxTargets
from dcn_jax.losses import masked_mean
from dcn_jax.sampling import sample_balanced
from xla_ops import roi_align

REGIONS = ("none", "fg", "bg", "fg_bg")
REDUCTIONS = ("sum", "mean")

# Squared norm below which a feature has no direction.
_EPSILON = 1e-6


class MimicTargets(NamedTuple):
    """The RoIs that are mimicked."""

    index: Int32[Array, "N E"]  # into the sampled RoIs of the box head
    valid: Bool[Array, "N E"]


def mimic_targets(
    key: Key[Array, ""],
    targets: BoxTargets,
    *,
    regions: str = "fg",
    count: int = 32,
    include_ground_truth: bool = True,
) -> MimicTargets:
    """Chooses at random among the RoIs that the box head is trained on.

    Args:
      key: Split into one key for each image.
      targets: Of the box head.
      regions: "fg": positive RoIs (the paper's best), "bg": background, "fg_bg": any.
      count: RoIs of an image, E.
      include_ground_truth: Whether a ground-truth box that joined the proposals may be
        chosen.
    """
    suitable = targets.valid
    if regions == "fg":
        suitable &= targets.labels > 0
    elif regions == "bg":
        suitable &= targets.labels == 0
    if not include_ground_truth:
        suitable &= ~targets.is_ground_truth

    def of_image(key, suitable):
        label = jnp.where(suitable, jnp.int32(1), jnp.int32(-1))
        chosen = sample_balanced(key, label, count=count, positive_fraction=1.0)
        return MimicTargets(chosen.index, chosen.valid)

    keys = jax.random.split(key, suitable.shape[0])
    return jax.vmap(of_image)(keys, suitable)


def crop_patches(
    images: Float[Array, "N H W 3"],
    rois: Float[Array, "N E 4"],
    sizes: Int[Array, "N 2"],
    *,
    crop_size: int = 224,
) -> Float[Array, "N E crop_size crop_size 3"]:
    """Cuts RoIs out of the images, each resized to a square.

    The aspect is not kept. A pixel of a patch is the mean of 2 x 2 bilinear samples.
    """
    return roi_align(
        images,
        rois,
        output_size=(crop_size, crop_size),
        spatial_scale=1.0,
        sampling_ratio=2,
        map_sizes=sizes,
    )


def mimic_losses(
    student: Float[Array, "N E F"],
    teacher: Float[Array, "N E F"],
    logits: Float[Array, "N E classes"],
    labels: Int32[Array, "N E"],
    valid: Bool[Array, "N E"],
    *,
    reduction: str = "sum",
    detach_teacher: bool = False,
) -> dict[str, Float[Array, ""]]:
    """Cosine and classification loss of the mimicked RoIs of all images together.

    Args:
      student: The detector's features of the RoIs.
      teacher: Features of the crops.
      logits: Of the crops' own classifier.
      labels: Classes of the RoIs, 0 for background.
      valid: Which rows count.
      reduction: "sum" or "mean", see the top of this file.
      detach_teacher: Whether the cosine loss leaves the crops' branch alone.

    Returns:
      "mimic_cos": 1 - cosine, reduced. "mimic_class": mean cross entropy.
    """
    dtype = jnp.float64 if student.dtype == jnp.float64 else jnp.float32
    student, teacher, logits = (v.astype(dtype) for v in (student, teacher, logits))
    if detach_teacher:
        teacher = jax.lax.stop_gradient(teacher)
    cosine = optax.losses.cosine_similarity(student, teacher, epsilon=_EPSILON)
    entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    images = jnp.asarray(valid.shape[0], dtype)
    return {
        "mimic_cos": masked_mean(
            1 - cosine, valid, images if reduction == "sum" else None
        ),
        "mimic_class": masked_mean(entropy, valid),
    }
