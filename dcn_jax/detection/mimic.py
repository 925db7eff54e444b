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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from dcn_jax.boxes import gather_rows, level_of_square, sample_balanced
from dcn_jax.detection.box_head import BoxTargets
from dcn_jax.detection.roi_head import RepresentingHead
from dcn_jax.losses import masked_mean
from dcn_jax.modules.arguments import check_integer, check_number, check_rngs
from dcn_jax.trunk import Features, Trunk
from xla_ops import roi_align

REGIONS = ("fg", "bg", "fg_bg")
REDUCTIONS = ("sum", "mean")

# Squared norm below which a feature has no direction.
_EPSILON = 1e-6


class MimicTargets(NamedTuple):
    """The RoIs that are mimicked."""

    index: Int32[Array, "N E"]  # into the sampled RoIs of the box head
    valid: Bool[Array, "N E"]


class Mimic(nnx.Module):
    """The crops' own classifier, the choice of RoIs, and the losses.

    Args:
      head: Of the detector; its representations are mimicked.
      regions: Which RoIs are mimicked: "fg", "bg" or "fg_bg".
      count: Mimicked RoIs of an image, E.
      crop_size: Side of the crops in pixels.
      weight: Of both losses.
      reduction: "sum" or "mean", see the top of this file, as the next two.
      detach_teacher: Whether the cosine loss leaves the crops' branch alone.
      include_ground_truth: Whether ground-truth boxes may be mimicked.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Raises:
      TypeError: An argument is not of its kind, or the head has no representation.
      ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        head: RepresentingHead,
        *,
        regions: str = "fg",
        count: int = 32,
        crop_size: int = 224,
        weight: float = 0.1,
        reduction: str = "sum",
        detach_teacher: bool = False,
        include_ground_truth: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        if not hasattr(head, "represent"):
            raise TypeError(
                f"`head` is {type(head).__name__}, which has no representation of a "
                "RoI to mimic; expected a head with `represent`, such as BoxHead"
            )
        _check_choice("regions", regions, REGIONS)
        _check_choice("reduction", reduction, REDUCTIONS)
        self.regions, self.reduction = regions, reduction
        self.count = check_integer("count", count)
        self.crop_size = check_integer("crop_size", crop_size)
        self.weight = check_number("weight", weight)
        self.detach_teacher = detach_teacher
        self.include_ground_truth = include_ground_truth
        self.classifier = nnx.Linear(
            head.num_features,
            head.num_classes + 1,
            kernel_init=nnx.initializers.normal(0.01),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def targets(self, key: Key[Array, ""], targets: BoxTargets) -> MimicTargets:
        """Chooses among the RoIs that the head is trained on, see `mimic_targets`."""
        return mimic_targets(
            key,
            targets,
            regions=self.regions,
            count=self.count,
            include_ground_truth=self.include_ground_truth,
        )

    def losses(
        self,
        trunk: Trunk,
        head: RepresentingHead,
        features: Features,
        representation: Float[Array, "N B F"],
        targets: BoxTargets,
        chosen: MimicTargets,
    ) -> dict[str, Float[Array, ""]]:
        """Weighted losses, see `mimic_losses`.

        Args:
          trunk: Of the detector.
          head: Likewise.
          features: Of the images, whose pixels are cropped as they are normalised.
          representation: The head's, of all RoIs that it is trained on.
          targets: Those RoIs.
          chosen: Which of them are mimicked.
        """
        rois = gather_rows(targets.rois, chosen.index)
        student = gather_rows(representation, chosen.index)
        teacher = self.represent_crops(trunk, head, features, rois)
        losses = mimic_losses(
            student,
            teacher,
            self.classifier(teacher),
            gather_rows(targets.labels, chosen.index),
            chosen.valid,
            reduction=self.reduction,
            detach_teacher=self.detach_teacher,
        )
        return {name: self.weight * loss for name, loss in losses.items()}

    def represent_crops(
        self,
        trunk: Trunk,
        head: RepresentingHead,
        features: Features,
        rois: Float[Array, "N E 4"],
    ) -> Float[Array, "N E F"]:
        """What the network makes of RoIs when they are all that it sees."""
        num_images, count = rois.shape[:2]
        size = self.crop_size
        images = features.images
        rois = rois.astype(images.dtype)
        patches = crop_patches(images, rois, features.sizes, crop_size=size)
        patches = patches.reshape(num_images * count, size, size, 3)
        features = _with_weights_apart(trunk).levels_of(patches, None)
        features = _with_one_level(features, head, size)
        whole = jnp.asarray([0, 0, size, size], rois.dtype)
        whole = jnp.broadcast_to(whole[None, None], (num_images * count, 1, 4))
        x = head.represent(features, whole)
        return x.reshape(num_images, count, x.shape[-1])


def _with_weights_apart(trunk: Trunk) -> Trunk:
    """The same trunk; XLA does not see that its weights are the same.

    Otherwise XLA joins 1x1 convolutions of the images with those of the crops, for
    a GPU, and copies the maps of both, forward and backward, beside one another.
    """
    graph, state = nnx.split(trunk)
    return nnx.merge(graph, jax.lax.optimization_barrier(state))


def _with_one_level(features: Features, head: RepresentingHead, side: int) -> Features:
    """Features that hold the level that RoIs of this side read; others are not made."""
    maps = features.levels.roi
    if len(maps) == 1:
        return features
    read = level_of_square(side, head.strides, head.canonical_size)
    # XLA leaves out what is only sliced away to nothing.
    maps = tuple(
        x if level == read else jnp.zeros_like(x[:, :1, :1])
        for level, x in enumerate(maps)
    )
    return features._replace(levels=features.levels._replace(roi=maps))


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; expected one of {choices}")


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
    sizes: Int[Array, "N 2"] | None,
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
