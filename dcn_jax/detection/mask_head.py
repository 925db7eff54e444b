"""The mask head: pooled features in, a mask for each RoI and class out.

Source: He et al. 2017 (arXiv:1703.06870) section 3; the targets of torchvision,
detectron2 and mmdetection are choices.

Shape letters: N images, M ground-truth boxes of an image, B RoIs of an image, S side of
the ground truth's masks, h w bins, m side of a predicted mask, C channels, L foreground
classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, UInt8

from dcn_jax.boxes import gather_rows
from dcn_jax.detection.box_head import BoxTargets
from dcn_jax.detection.roi_head import check_pool, pool_rois
from dcn_jax.losses import masked_mean
from dcn_jax.modules.arguments import check_integer, check_number, check_rngs
from dcn_jax.modules.fast_forms import pointwise_conv
from dcn_jax.modules.roi_pool import RoIPooling
from dcn_jax.modules.spatial_conv import spatial_conv
from dcn_jax.trunk import Features
from xla_ops import roi_align

# He et al. 2015 (arXiv:1502.01852), by the fan-out, as the peers' mask heads.
_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class MaskTargets(NamedTuple):
    """What the mask head should say of the RoIs that it is trained on."""

    rois: Float[Array, "N B 4"]
    labels: Int32[Array, "N B"]  # from 1 where `valid`
    valid: Bool[Array, "N B"]  # a positive RoI whose object has a mask
    masks: Float[Array, "N B m m"]  # 0 to 1


class MaskHead(nnx.Module):
    """RoI pooling, 3x3 convolutions, a transposed one, and a mask for each class.

    Args:
      pool: A layer of `dcn_jax.modules.roi_pool`, for maps at `strides`.
      in_features: C.
      num_classes: Foreground classes, L.
      strides: Pixels of the image to one step of each level that RoIs read.
      features: Channels of every convolution.
      num_convs: 3x3 convolutions.
      aligned_targets: Whether targets are sampled with pixels as points at half a
        pixel; torchvision has False.
      binary_targets: Whether targets are 0 or 1, from one half on; torchvision has
        False.
      canonical_size: Of a pyramid, see `levels_of_rois`.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      mask_size: m, twice the number of bins along a side.

    Raises:
      TypeError: A number is not an integer, or `rngs` is no `nnx.Rngs`.
      ValueError: A number is less than 1, or `pool` is for maps at other strides, or
        its bins are no square.
    """

    def __init__(
        self,
        pool: RoIPooling,
        in_features: int,
        num_classes: int,
        *,
        strides: Sequence[int],
        features: int = 256,
        num_convs: int = 4,
        aligned_targets: bool = True,
        binary_targets: bool = True,
        canonical_size: float = 224.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        num_classes = check_integer("num_classes", num_classes)
        features = check_integer("features", features)
        num_convs = check_integer("num_convs", num_convs)
        self.strides = tuple(check_integer("strides", stride) for stride in strides)
        check_pool(pool, self.strides)
        if pool.output_size[0] != pool.output_size[1]:
            raise ValueError(
                f"`pool` has output_size {pool.output_size}; expected a square"
            )
        self.pool = pool
        self.num_classes = num_classes
        self.mask_size = 2 * pool.output_size[0]
        self.aligned_targets, self.binary_targets = aligned_targets, binary_targets
        self.canonical_size = check_number("canonical_size", canonical_size)
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        wide: dict[str, Any] = dict(kernel_init=_init, **types)
        widths = [in_features] + [features] * num_convs
        self.convs = nnx.List(
            nnx.Conv(
                width,
                features,
                (3, 3),
                padding=1,
                conv_general_dilated=spatial_conv,
                **wide,
            )
            for width in widths[:-1]
        )
        self.deconv = nnx.ConvTranspose(
            features, features, (2, 2), strides=(2, 2), padding="VALID", **wide
        )
        self.predictor = nnx.Conv(
            features,
            num_classes,
            (1, 1),
            conv_general_dilated=pointwise_conv,
            kernel_init=nnx.initializers.normal(0.001),  # Detectron
            **types,
        )

    def __call__(
        self, features: Features, rois: Float[Array, "N B 4"]
    ) -> Float[Array, "N B m m L"]:
        """Logits of the masks of every class; x1 y1 x2 y2 of the RoIs in pixels."""
        x = pool_rois(self.pool, features, rois, self.strides, self.canonical_size)
        images, count = x.shape[:2]
        x = x.reshape(images * count, *x.shape[2:])
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        x = self.predictor(jax.nn.relu(self.deconv(x)))
        return x.reshape(images, count, *x.shape[1:])

    def predict(
        self,
        features: Features,
        rois: Float[Array, "N B 4"],
        labels: Int32[Array, "N B"],
    ) -> Float[Array, "N B m m"]:
        """Probabilities of the masks of one class for each RoI; `labels` from 1."""
        logits = masks_of_classes(self(features, rois), labels)
        return jax.nn.sigmoid(logits.astype(jnp.float32))

    def targets(
        self,
        targets: BoxTargets,
        masks: UInt8[Array, "N M S S"],
        windows: Float[Array, "N M 4"],
        count: int,
    ) -> MaskTargets:
        """What the masks of the first RoIs should be.

        Args:
          targets: Of the box head; its positive RoIs come first.
          masks: Of the ground truth, see `Batch`.
          windows: Likewise.
          count: How many RoIs of an image may be positive, B of the result.
        """
        first = jax.tree.map(lambda rows: rows[:, :count], targets)
        window = gather_rows(windows, first.matched).astype(first.rois.dtype)
        has_mask = jnp.all(window[..., 2:] > window[..., :2], axis=-1)
        valid = first.valid & (first.labels > 0) & has_mask
        rois = jnp.where(valid[..., None], first.rois, 0)
        # A window of no area would divide by zero.
        unit = jnp.asarray([0, 0, 1, 1], window.dtype)
        seen = crop_masks(
            gather_rows(masks, first.matched),
            jnp.where(valid[..., None], window, unit[None, None]),
            rois,
            self.mask_size,
            aligned=self.aligned_targets,
        )
        seen = jnp.where(valid[..., None, None], seen, 0)
        if self.binary_targets:
            seen = (seen >= 0.5).astype(seen.dtype)
        return jax.lax.stop_gradient(MaskTargets(rois, first.labels, valid, seen))


def masks_of_classes(
    logits: Float[Array, "N B m m L"], labels: Int32[Array, "N B"]
) -> Float[Array, "N B m m"]:
    """The mask of one class of each RoI; of the first where a label is 0."""
    channel = jnp.clip(labels - 1, 0, logits.shape[-1] - 1)
    channel = channel[..., None, None, None]
    return jnp.take_along_axis(logits, channel, axis=-1)[..., 0]


def crop_masks(
    masks: UInt8[Array, "N B S S"],
    windows: Float[Array, "N B 4"],
    rois: Float[Array, "N B 4"],
    size: int,
    *,
    aligned: bool,
) -> Float[Array, "N B size size"]:
    """The part of each mask that lies in a RoI, as means of `size` x `size` cells.

    Args:
      masks: 1 inside the object, 0 outside.
      windows: x1 y1 x2 y2 that a mask covers, in pixels of the image; beyond it there
        is nothing of the object.
      rois: x1 y1 x2 y2, likewise.
      size: Cells along a side.
      aligned: See `xla_ops.roi_align`, whose samples are as dense as the mask's pixels.
    """
    images, count, side = masks.shape[:3]
    corner, extent = windows[..., :2], windows[..., 2:] - windows[..., :2]
    scale = side / extent
    local = [(rois[..., k : k + 2] - corner) * scale for k in (0, 2)]
    local = jnp.concatenate(local, -1).reshape(images * count, 1, 4)
    maps = masks.reshape(images * count, side, side, 1).astype(local.dtype)
    cells = roi_align(
        maps,
        local,
        output_size=size,
        spatial_scale=1.0,
        sampling_ratio=0,
        aligned=aligned,
    )
    return cells.reshape(images, count, size, size)


def mask_losses(
    logits: Float[Array, "N B m m L"], targets: MaskTargets
) -> dict[str, Float[Array, ""]]:
    """The loss of the masks of all images together.

    Returns:
      "mask": mean binary cross entropy of the mask of the RoI's class, over the pixels
      of all RoIs that count.
    """
    dtype = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    own = masks_of_classes(logits, targets.labels).astype(dtype)
    entropy = optax.losses.sigmoid_binary_cross_entropy(
        own, targets.masks.astype(dtype)
    )
    return {"mask": masked_mean(jnp.mean(entropy, axis=(2, 3)), targets.valid)}
