"""DeepLab: a label for every pixel of an image, from one map.

Source: Chen et al. 2015 (arXiv:1412.7062), as in Dai et al. 2017 (arXiv:1703.06211)
section 3.1 and its released code.

Shape letters: N images, H W canvas, L classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, Key, Num

from dcn_jax.losses import masked_mean
from dcn_jax.padding import valid_mask
from dcn_jax.segmentation.pixel_head import PixelHead
from dcn_jax.segmentation.records import IGNORED, Batch, LabelMaps
from dcn_jax.trunk import Features, Trunk, check_strides


class DeepLab(nnx.Module):
    """A network that classifies pixels.

    Args:
      trunk: Images to one level, which RoIs would read.
      head: That level to logits of every pixel.

    Raises:
      ValueError: The head has other strides than the neck.
    """

    def __init__(self, trunk: Trunk, head: PixelHead):
        check_strides("head", head, trunk.neck.roi_strides)
        self.trunk, self.head = trunk, head

    @property
    def frozen_paths(self) -> tuple[str, ...]:
        """Beginnings of the paths of parameters that are not trained."""
        return self.trunk.frozen_paths

    def losses(self, batch: Batch, key: Key[Array, ""]) -> dict[str, Float[Array, ""]]:
        """The training loss.

        Args:
          batch: Images with labels.
          key: Not used: nothing is drawn at random.

        Returns:
          "class", see `pixel_loss`.
        """
        del key
        logits = self.head(self.features(batch.images, batch.sizes))
        return {"class": pixel_loss(logits, batch.labels, batch.sizes)}

    def predict(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> LabelMaps:
        """The likeliest label of every pixel.

        Args:
          images: RGB, 0 to 255, padded at the right and bottom to the canvas.
          sizes: Valid (height, width) of each.
        """
        logits = self.head(self.features(images, sizes))
        labels = jax.lax.argmax(logits, 3, jnp.int32)
        labels = jnp.where(valid_mask(sizes, labels.shape[1:]), labels, IGNORED)
        return LabelMaps(labels.astype(jnp.uint8))

    def features(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> Features:
        """What the head reads: normalised images and the level of the neck."""
        return self.trunk(images, sizes)


def pixel_loss(
    logits: Float[Array, "N H W L"],
    labels: Integer[Array, "N H W"],
    sizes: Int[Array, "N 2"],
) -> Float[Array, ""]:
    """Mean cross entropy over the pixels of all images together.

    Args:
      logits: Of every pixel of the canvas.
      labels: From 0; `IGNORED` does not count.
      sizes: Valid (height, width) of each image; padding does not count.
    """
    labels = labels.astype(jnp.int32)
    valid = (labels != IGNORED) & valid_mask(sizes, labels.shape[1:])
    # A comparison that XLA fuses into the sum, also backwards; a gather would be
    # scattered, pixel by pixel.
    classes = jnp.arange(logits.shape[3], dtype=jnp.int32)[None, None, None]
    own = jnp.sum(jnp.where(labels[..., None] == classes, logits, 0), axis=3)
    return masked_mean(jax.nn.logsumexp(logits, axis=3) - own, valid)
