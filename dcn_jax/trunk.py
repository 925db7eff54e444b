"""From images to levels: normalisation, backbone, neck.

Shape letters: N images, H W canvas, C channels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from dcn_jax.backbones import Backbone
from dcn_jax.necks import Levels, Neck
from dcn_jax.padding import clear_padding

# ImageNet's statistics, RGB, 0 to 255.
_PIXEL_MEAN = (123.675, 116.28, 103.53)
_PIXEL_STD = (58.395, 57.12, 57.375)


class Features(NamedTuple):
    """What the stages of a network read."""

    images: Float[Array, "N H W 3"]  # normalised, zero outside of the valid part
    sizes: Int[Array, "N 2"] | None  # valid (height, width); None: all of it
    levels: Levels


class Trunk(nnx.Module):
    """Normalises images once and makes the levels that all stages share.

    Args:
      backbone: Images to maps.
      neck: Maps to levels.
      pixel_mean: Subtracted from RGB values of 0 to 255.
      pixel_std: Divides them then.
      clear_padding: Whether the padding of a canvas is kept out of every result. False
        leaves there what convolutions make of it, and anchors lie there too, as in
        torchvision, detectron2 and mmdetection: what is found in an image then depends
        on its canvas.

    Raises:
      ValueError: There are not three means or deviations, or one of these is not
        positive.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        *,
        pixel_mean: Sequence[float] = _PIXEL_MEAN,
        pixel_std: Sequence[float] = _PIXEL_STD,
        clear_padding: bool = True,
    ):
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            if len(values) != 3 or (name == "pixel_std" and min(values) <= 0):
                raise ValueError(
                    f"`{name}` is {tuple(values)}; expected 3 numbers, for R, G and B"
                    + (", above 0" if name == "pixel_std" else "")
                )
        self.backbone, self.neck = backbone, neck
        self.pixel_mean = tuple(map(float, pixel_mean))
        self.pixel_std = tuple(map(float, pixel_std))
        self.clear_padding = clear_padding

    @property
    def frozen_paths(self) -> tuple[str, ...]:
        """Beginnings of the paths of what is not trained, in a network's `trunk`."""
        return tuple(f"trunk.backbone.{name}." for name in self.backbone.frozen_names)

    def __call__(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> Features:
        """Normalises, and makes the levels.

        Args:
          images: RGB, 0 to 255, padded at the right and bottom to the canvas.
          sizes: Valid (height, width) of each.
        """
        images = self.normalise(images, sizes)
        return self.levels_of(images, sizes if self.clear_padding else None)

    def levels_of(
        self, images: Float[Array, "N H W 3"], sizes: Int[Array, "N 2"] | None
    ) -> Features:
        """Makes the levels of images that are normalised already, as crops of them."""
        levels = self.neck(self.backbone(images, sizes), sizes)
        return Features(images, sizes, levels)

    def normalise(
        self, images: Num[Array, "N H W 3"], sizes: Int[Array, "N 2"]
    ) -> Float[Array, "N H W 3"]:
        """Subtracts the means, divides by the deviations, clears the padding.

        Raises:
          ValueError: A shape is wrong.
        """
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                f"`images` has shape {images.shape}; expected (N, H, W, 3), RGB"
            )
        if sizes.shape != (images.shape[0], 2):
            raise ValueError(
                f"`sizes` has shape {sizes.shape}; expected {(images.shape[0], 2)}, "
                "(height, width) of each image"
            )
        dtype = self.backbone.param_dtype
        mean, std = (
            jnp.asarray(values, dtype)[None, None, None]
            for values in (self.pixel_mean, self.pixel_std)
        )
        return clear_padding((images.astype(dtype) - mean) / std, sizes)


def check_strides(name: str, stage: Any, strides: Sequence[int]) -> None:
    """Refuses a stage for other levels than the neck's.

    Args:
      name: Of the argument.
      stage: Has `strides`.
      strides: Of the levels of the neck that it reads.

    Raises:
      ValueError: They differ.
    """
    if tuple(stage.strides) != tuple(strides):
        raise ValueError(
            f"`{name}` has strides {tuple(stage.strides)}; expected those of the neck, "
            f"{tuple(strides)}"
        )
