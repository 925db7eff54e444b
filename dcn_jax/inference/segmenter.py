"""A segmentation network for users, asked about pictures."""

import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from dcn_jax.inference.image_network import ImageNetwork
from dcn_jax.inference.label_map import ImageLabels
from dcn_jax.inference.predictor import Image


class Segmenter(ImageNetwork):
    """Labels the pixels of image files and arrays.

        segmenter = Segmenter.load("runs/deeplab")
        found = segmenter.segment("photo.jpg")
        print(found.labels, found.present)

    Args:
      network: `dcn_jax.networks.deeplab`, or any with `predict` to
        `dcn_jax.segmentation.records.LabelMaps`.
      categories: What its labels mean, or their names; the first is label 0.
      preprocessing: How images come onto its canvases.
    """

    _kind = "segmenter"
    _first_label = 0

    @overload
    def segment(self, images: str | os.PathLike | np.ndarray) -> ImageLabels: ...

    @overload
    def segment(self, images: Sequence[Image]) -> list[ImageLabels]: ...

    def segment(self, images: Any) -> ImageLabels | list[ImageLabels]:
        """Labels every pixel.

        Args:
          images: As for `Detector.detect`.

        Returns:
          A label map as large as the image; of a sequence, a list.

        Raises:
          OSError: A file cannot be opened.
          ValueError: An image is broken or too large; the message names the file.
          TypeError: An image is of another type.
        """
        return self._predictor.of(
            images,
            lambda prediction, geometry: ImageLabels.of(
                prediction, geometry, self.categories
            ),
        )

    def draw(self, image: Image, found: ImageLabels | None = None) -> np.ndarray:
        """Tints a copy of an image by its labels, [H, W, 3] uint8, RGB.

        A small image is enlarged.

        Args:
          image: As for `segment`.
          found: What `segment` returned for it; None labels it.

        Raises:
          ValueError: `found` is of another image's size; or as `segment`.
        """
        pixels = self._predictor.read(image)
        if found is None:
            found = self.segment(pixels)
        return found.draw(pixels)
