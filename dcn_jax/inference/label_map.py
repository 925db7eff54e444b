"""What a segmentation network says of one image, pixel by pixel.

Shape letters: H W the image.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from dcn_jax.categories import BACKGROUND, Category
from dcn_jax.images import drawing
from dcn_jax.images.fit import resize_labels
from dcn_jax.images.geometry import Geometry
from dcn_jax.images.palette import voc_palette
from dcn_jax.segmentation.records import LabelMaps


@dataclasses.dataclass(frozen=True, eq=False)
class ImageLabels:
    """A category for each pixel of one image; NumPy.

    Attributes:
      labels: 0 is the first of `categories`.
      categories: What the labels mean.
    """

    labels: Integer[np.ndarray, "H W"]
    categories: tuple[Category, ...]

    @classmethod
    def of(
        cls, prediction: LabelMaps, geometry: Geometry, categories: Sequence[Category]
    ) -> "ImageLabels":
        """Takes a network's label map of one image back to the image.

        Args:
          prediction: On the host, without the axis of the batch.
          geometry: How the image, which was neither mirrored nor cut, came onto its
            canvas.
          categories: What the labels mean.

        Raises:
          ValueError: A label is of no category.
        """
        height, width = geometry.shown
        labels = np.asarray(prediction.labels)[:height, :width]
        if (highest := labels.max(initial=0)) >= len(categories):
            raise ValueError(
                f"`prediction` has the label {highest}; expected below "
                f"{len(categories)}, the number of categories"
            )
        return cls(resize_labels(labels, geometry.original), tuple(categories))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        height, width = self.labels.shape
        return height, width

    @property
    def present(self) -> list[int]:
        """The labels that occur, without that of the background."""
        return [
            label
            for label in np.unique(self.labels).tolist()
            if self.categories[label].name != BACKGROUND
        ]

    def mask(self, label: int) -> Bool[np.ndarray, "H W"]:
        """Which pixels have a label."""
        return self.labels == label

    def draw(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Returns a copy of the image, tinted in the colours of the categories.

        Their names stand in it. Of the background neither is there; a label without a
        category, as ground truth has where nothing is known, has a colour alone. A
        small image is enlarged, so that names can be read.

        Args:
          image: RGB, of this `size`.

        Raises:
          ValueError: The image has another size.
        """
        drawing.check_size(image, self.size)
        colours = voc_palette()
        shown = np.ones(len(colours), bool)
        for label, category in enumerate(self.categories):
            shown[label] = category.name != BACKGROUND
            if category.colour is not None:
                colours[label] = category.colour
        picture = drawing.enlarged(image)
        labels = resize_labels(self.labels, picture.shape[:2])
        picture = drawing.draw_label_map(picture, labels, colours, shown)
        names = [c.name if c.name != BACKGROUND else "" for c in self.categories]
        return drawing.draw_region_names(picture, labels, names, colours)
