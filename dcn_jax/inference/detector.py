"""A detector for users: a trained network that is asked about pictures."""

import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from dcn_jax.inference.detections import ImageDetections
from dcn_jax.inference.image_network import ImageNetwork
from dcn_jax.inference.predictor import Image


class Detector(ImageNetwork):
    """Finds objects in image files and arrays.

        detector = Detector.load("runs/demo")
        found = detector.detect("photo.jpg")
        print(found.boxes, found.scores, found.names)

    Args:
      network: Of `dcn_jax.networks`, or any with `predict` to
        `dcn_jax.detection.records.Detections`.
      categories: What its labels mean, or their names; the first is label 1.
      preprocessing: How images come onto its canvases.
    """

    _kind = "detector"
    _first_label = 1

    @overload
    def detect(
        self, images: str | os.PathLike | np.ndarray, *, score: float = ...
    ) -> ImageDetections: ...

    @overload
    def detect(
        self, images: Sequence[Image], *, score: float = ...
    ) -> list[ImageDetections]: ...

    def detect(
        self, images: Any, *, score: float = 0.0
    ) -> ImageDetections | list[ImageDetections]:
        """Finds objects.

        Images are looked at one after the other, each as the evaluation of a run does;
        the first on each canvas waits for its compilation.

        Args:
          images: A path of a JPEG or PNG file, which is turned upright as its
            orientation tag says; an array [H, W, 3] of uint8, RGB; or a sequence of
            these, of any sizes.
          score: The lowest that is returned.

        Returns:
          What was found, in pixels of the image as it was given; of a sequence, a list.

        Raises:
          OSError: A file cannot be opened.
          ValueError: An image is broken or too large, or `score` is not from 0 to 1;
            the message names the file.
          TypeError: An image is of another type.
        """
        if not 0 <= score <= 1:
            raise ValueError(f"`score` is {score}; expected a number from 0 to 1")
        return self._predictor.of(
            images,
            lambda prediction, geometry: ImageDetections.of(
                prediction, geometry, self.categories, score
            ),
        )

    def draw(
        self, image: Image, found: ImageDetections | None = None, *, score: float = 0.5
    ) -> np.ndarray:
        """Draws what is found in an image on a copy of it, [H, W, 3] uint8, RGB.

        Args:
          image: As for `detect`.
          found: What `detect` returned for it; None looks for it.
          score: The lowest that is drawn.

        Raises:
          ValueError: `found` is of another image's size; or as `detect`.
        """
        pixels = self._predictor.read(image)
        if found is None:
            found = self.detect(pixels)
        return found.draw(pixels, score)
