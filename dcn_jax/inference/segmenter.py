"""A segmentation network for users, asked about pictures."""

import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from dcn_jax.categories import Category, as_categories
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.inference import exported, loading
from dcn_jax.inference.label_map import ImageLabels
from dcn_jax.inference.predictor import Image, Network, Predictor

# What a run of `train.main` leaves in its folder.
FILE_NAME = "segmenter.safetensors"


class Segmenter:
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

    def __init__(
        self,
        network: Network,
        categories: Sequence[Category | str],
        preprocessing: Preprocessing = Preprocessing(),
    ):
        self.categories = as_categories(categories, start=0)
        self._predictor = Predictor(network, preprocessing)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        dtype: Any = None,
    ) -> "Segmenter":
        """Loads the network of a run, or of its `segmenter.safetensors`.

        Args:
          path: The folder of the run, or the file.
          names: Of the categories, in place of those of the file.
          preprocessing: None takes that of the file.
          dtype: Of the computation; None is the parameters'.

        Raises:
          OSError: It cannot be opened.
          ValueError: It holds no such network, or `names` has another length than it
            has classes; the message names the file.
        """
        return cls(
            *loading.load(
                path,
                FILE_NAME,
                segments=True,
                names=names,
                preprocessing=preprocessing,
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

    def export(
        self, path: str | os.PathLike, *, platforms: Sequence[str] = ("cpu",)
    ) -> None:
        """Writes compiled programs and weights into one file; see `Detector.export`.

        Raises:
          OSError: The file cannot be written.
          ValueError: A platform is not known, or the network comes from an export
            itself.
        """
        exported.write_export(
            path,
            "segmenter",
            self.network,
            self.categories,
            self.preprocessing,
            platforms,
        )

    @classmethod
    def from_export(cls, path: str | os.PathLike) -> "Segmenter":
        """Loads what `export` wrote.

        Its programs are run as they are: load only files whose origin is trusted.

        Raises:
          OSError: The file cannot be opened.
          ValueError: It is damaged, or no export of a segmenter.
        """
        return cls(*exported.read_export(path, "segmenter"))
