"""A detector for users: a trained network that is asked about pictures."""

import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from dcn_jax.categories import Category, as_categories
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.inference import exported, loading
from dcn_jax.inference.detections import ImageDetections
from dcn_jax.inference.predictor import Image, Network, Predictor

# What a run of `train.main` leaves in its folder.
FILE_NAME = "detector.safetensors"


class Detector:
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

    def __init__(
        self,
        network: Network,
        categories: Sequence[Category | str],
        preprocessing: Preprocessing = Preprocessing(),
    ):
        self.categories = as_categories(categories, start=1)
        self._predictor = Predictor(network, preprocessing)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        coco_ids: bool = True,
        dtype: Any = None,
    ) -> "Detector":
        """Loads the detector of a run, or of a file of weights.

        Args:
          path: The folder of a run of `train.main`; its `detector.safetensors`; or a
            detector of torchvision, mmdetection or detectron2, see
            `dcn_jax.weights.read_detector`.
          names: Of the categories, for files that do not have them.
          preprocessing: None takes that of the file, or for detectors of others that
            of the papers: a short side of 800.
          coco_ids: As in `dcn_jax.weights.read_detector`.
          dtype: Of the computation; None is the parameters'.

        Raises:
          OSError: It cannot be opened.
          ValueError: It holds no detector, or `names` has another length than it has
            classes; the message names the file.
        """
        return cls(
            *loading.load(
                path,
                FILE_NAME,
                segments=False,
                names=names,
                preprocessing=preprocessing,
                coco_ids=coco_ids,
                dtype=dtype,
            )
        )

    @property
    def network(self) -> Network:
        """What predicts."""
        return self._predictor.network

    @property
    def preprocessing(self) -> Preprocessing:
        """How images come onto the network's canvases."""
        return self._predictor.preprocessing

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

    def export(
        self, path: str | os.PathLike, *, platforms: Sequence[str] = ("cpu",)
    ) -> None:
        """Writes compiled programs and weights into one file, for `from_export`.

        There is a program for each canvas. Who runs them needs no definition of the
        network, but this package, whose kernels they call.

        Args:
          path: The file.
          platforms: What the programs run on: "cpu", "cuda", "tpu", ... One for which
            no kernels are built here gets the plain forms, with a warning.

        Raises:
          OSError: The file cannot be written.
          ValueError: A platform is not known, or the network comes from an export
            itself.
        """
        exported.write_export(
            path,
            "detector",
            self.network,
            self.categories,
            self.preprocessing,
            platforms,
        )

    @classmethod
    def from_export(cls, path: str | os.PathLike) -> "Detector":
        """Loads what `export` wrote.

        Its programs are run as they are: load only files whose origin is trusted.

        Raises:
          OSError: The file cannot be opened.
          ValueError: It is damaged, or no export of a detector.
        """
        return cls(*exported.read_export(path, "detector"))
