"""Random weights under which a detector works about as a trained one does.

As a network draws them, maps grow from block to block, offsets are zero, and nothing is
detected. `make_typical` measures on an image what it changes: norms hold the statistics
of what they read, offsets deviate by two pixels, and some classes stand out.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from dcn_jax.backbones import ResNet
from dcn_jax.detection.two_stage import TwoStage
from dcn_jax.modules import DeformConv, DeformRoIPool
from dcn_jax.modules.fast_forms import max_pool_3x3
from xla_ops import roi_align

# Standard deviations: of offsets in pixels of the map they are on; of those of bins,
# before `offset_scale`, in units of the RoI's size; of the logits of classes.
OFFSET, BIN_OFFSET, LOGIT = 2.0, 1.0, 1.0


def make_typical(
    model: TwoStage,
    images: Num[Array, "N H W 3"],
    sizes: Int[Array, "N 2"],
    key: jax.Array,
) -> None:
    """Changes the weights of a detector without a pyramid, with frozen batch norms.

    Args:
      model: Changed in place.
      images: RGB, 0 to 255; all of them valid.
      sizes: Their (height, width).
      key: For the branches of offsets, which are drawn.
    """
    keys = iter(jax.random.split(key, 100))
    backbone: Any = model.trunk.backbone
    _settle(backbone, model.trunk.normalise(images, sizes), keys)
    features = model.features(images, sizes)
    rois = model.rpn.propose(model.rpn(features), sizes).boxes
    head: Any = model.roi
    pool = head.pool
    if isinstance(pool, DeformRoIPool):
        pooled = roi_align(
            features.levels.roi[0],
            rois,
            output_size=pool.output_size,
            spatial_scale=pool.spatial_scale,
            sampling_ratio=pool.sampling_ratio,
        )
        _draw(pool.offset_fc, next(keys))
        offset, _ = pool.branch(pooled)
        _scale(pool.offset_fc, BIN_OFFSET / jnp.std(offset))
    logits = head.classifier(head.represent(features, rois))
    _scale(head.classifier, LOGIT / jnp.std(logits))


def _settle(
    backbone: ResNet, x: Float[Array, "N H W 3"], keys: Iterator[jax.Array]
) -> None:
    """The pass of a backbone, in which each layer is changed before it is used."""

    def normed(conv: Any, norm: Any, x: jax.Array) -> jax.Array:
        y = conv(x)
        norm.mean.set_value(jnp.mean(y, (0, 1, 2)))
        norm.var.set_value(jnp.var(y, (0, 1, 2)))
        return norm(y)

    x = max_pool_3x3(jax.nn.relu(normed(backbone.conv1, backbone.norm1, x)))
    for stage in range(1, 5):
        for block in getattr(backbone, f"layer{stage}"):
            y = jax.nn.relu(normed(block.conv1, block.norm1, x))
            if isinstance(block.conv2, DeformConv):
                _draw(block.conv2.offset_conv, next(keys))
                offset, _ = block.conv2.sampling(y)
                _scale(block.conv2.offset_conv, OFFSET / jnp.std(offset))
            y = jax.nn.relu(normed(block.conv2, block.norm2, y))
            y = normed(block.conv3, block.norm3, y)
            if block.has_downsample:
                x = normed(block.downsample_conv, block.downsample_norm, x)
            x = jax.nn.relu(x + y)


def _draw(layer: nnx.Conv | nnx.Linear, key: jax.Array) -> None:
    kernel = layer.kernel[...]
    layer.kernel.set_value(jax.random.normal(key, kernel.shape, kernel.dtype))


def _scale(layer: nnx.Conv | nnx.Linear, factor: jax.Array) -> None:
    layer.kernel.set_value(layer.kernel[...] * factor)
