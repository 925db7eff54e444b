"""What a detector found in one image, in pixels of that image.

Shape letters: D objects, m side of a mask as the network gives it, H W the image.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dcn_jax.categories import Category
from dcn_jax.detection.paste import paste_mask
from dcn_jax.detection.records import Detections
from dcn_jax.images import drawing
from dcn_jax.images.geometry import Geometry


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDetections:
    """The objects of one image, by falling score; NumPy arrays.

    Attributes:
      boxes: x1 y1 x2 y2 in pixels of the image, without +1.
      scores: From 0 to 1.
      labels: 1 is the first of `categories`.
      size: (H, W) of the image.
      categories: What the labels mean.
      box_masks: Probabilities over each box, or None where the network has no masks.
    """

    boxes: Float[np.ndarray, "D 4"]
    scores: Float[np.ndarray, " D"]
    labels: Int[np.ndarray, " D"]
    size: tuple[int, int]
    categories: tuple[Category, ...]
    box_masks: Float[np.ndarray, "D m m"] | None = None

    @classmethod
    def of(
        cls,
        prediction: Detections,
        geometry: Geometry,
        categories: Sequence[Category],
        score: float = 0.0,
    ) -> "ImageDetections":
        """Takes a network's detections of one image back to the image.

        Args:
          prediction: On the host, without the axis of the batch.
          geometry: How the image, which was neither mirrored nor cut, came onto its
            canvas.
          categories: What the labels mean.
          score: The lowest that is kept.

        Raises:
          ValueError: A label is of no category.
        """
        kept = np.asarray(prediction.valid) & (np.asarray(prediction.scores) >= score)
        kept &= np.isfinite(np.asarray(prediction.boxes)).all(-1)
        boxes = np.asarray(prediction.boxes)[kept]
        labels = np.asarray(prediction.labels)[kept]
        if labels.size and not 1 <= labels.min() <= labels.max() <= len(categories):
            raise ValueError(
                f"`prediction` has labels from {labels.min()} to {labels.max()}; "
                f"expected from 1 to {len(categories)}, the number of categories"
            )
        y, x = geometry.scale
        masks = prediction.masks
        return cls(
            boxes / np.asarray([x, y, x, y], boxes.dtype),
            np.asarray(prediction.scores)[kept],
            labels,
            geometry.original,
            tuple(categories),
            None if masks is None else np.asarray(masks)[kept],
        )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Of each object's category."""
        return [self.categories[label - 1].name for label in self.labels.tolist()]

    @property
    def category_ids(self) -> list[int]:
        """Ids in the data set that the network was trained on, of each object."""
        return [self.categories[label - 1].id for label in self.labels.tolist()]

    @functools.cached_property
    def masks(self) -> Bool[np.ndarray, "D H W"] | None:
        """Which pixels of the image are each object's; None without masks.

        D times as large as the image: `mask` gives one of them.
        """
        if self.box_masks is None:
            return None
        masks = np.zeros((len(self), *self.size), bool)
        for index in range(len(self)):
            masks[index] = self.mask(index)
        return masks

    def mask(self, index: int) -> Bool[np.ndarray, "H W"]:
        """Which pixels of the image are one object's.

        Raises:
          ValueError: The network has no masks.
        """
        if self.box_masks is None:
            raise ValueError("there are no masks: the network predicts none")
        return paste_mask(self.box_masks[index], self.boxes[index], self.size)

    def at_least(self, score: float) -> "ImageDetections":
        """Returns the objects that reach a score."""
        return self._taken(np.flatnonzero(self.scores >= score))

    def _taken(self, rows: Int[np.ndarray, " d"]) -> "ImageDetections":
        return dataclasses.replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            box_masks=None if self.box_masks is None else self.box_masks[rows],
        )

    def draw(
        self, image: UInt8[np.ndarray, "H W 3"], score: float = 0.5, *, best: int = 0
    ) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Returns a copy of the image with boxes, labels, scores and masks on it.

        A small image is enlarged, so that labels can be read.

        Args:
          image: RGB, of this `size`.
          score: The lowest that is drawn.
          best: How many are drawn, in thin lines, where none reaches that score; the
            picture then says so. 0: none, without a word.

        Raises:
          ValueError: The image has another size.
        """
        drawing.check_size(image, self.size)
        found, note = self.at_least(score), ""
        if best and not len(found):
            found = self._taken(np.argsort(-self.scores, kind="stable")[:best])
            note = "nothing found"
            if len(found):
                note = f"none reaches {score:.2f}; best {len(found)} shown"
        picture = drawing.enlarged(image)
        size = picture.shape[:2]
        ratios = [new / old for new, old in zip(size, self.size, strict=True)]
        boxes = found.boxes * np.asarray([*ratios[::-1]] * 2, found.boxes.dtype)
        labels = found.labels.tolist()
        if found.box_masks is not None:
            # The best is drawn last, on top, as of the boxes.
            for index in np.argsort(found.scores):
                mask = paste_mask(found.box_masks[index], boxes[index], size)
                picture = drawing.draw_mask(picture, mask, labels[index])
        names = [category.name for category in self.categories]
        picture = drawing.draw_boxes(
            picture, boxes, found.scores, labels, names, thin=bool(note)
        )
        return drawing.draw_note(picture, note) if note else picture

    def to_supervision(self) -> Any:
        """Returns them as `supervision.Detections`, with `class_name` in its data.

        Raises:
          ImportError: The package supervision is not installed.
        """
        import supervision  # pyright: ignore[reportMissingImports]

        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=np.asarray(self.category_ids, int),
            data={"class_name": np.asarray(self.names, str)},
        )
