"""Semantic segmentation: a category for each pixel, judged by mIoU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dcn_jax.categories import Category, categories_of
from dcn_jax.images import drawing
from dcn_jax.images.fit import resize_labels
from dcn_jax.images.geometry import Geometry
from dcn_jax.inference.label_map import ImageLabels
from dcn_jax.segmentation.records import Batch, LabelMaps
from train.config_dict import ConfigDict
from train.configs import _segmentation
from train.data import label_maps, report
from train.data.sets.palettes import colours_of
from train.data.source import Example, Source
from train.evaluation.coco_results import run_lengths
from train.evaluation.segmentation import MeanIoU
from train.tasks.composed import Composed

# Of a picture without a tint.
_NOTHING = "nothing but background"


class Segmentation(Composed):
    """See `train.task.Task`, which explains the methods and their arguments.

    Labels are places among the categories of the data set, from 0.
    """

    Batch = Batch
    fields = _segmentation
    network_file = "segmenter.safetensors"

    def usable(self, source: Source) -> np.ndarray:
        """Images with a labelled pixel."""
        return source.labelled > 0

    def summary(self, source: Source, split: str, data: ConfigDict) -> str:
        """Says which images are used, and how much of them is labelled."""
        skip_empty = split == data.train_split and data.skip_empty
        return report.label_map_line(source, split, skip_empty=skip_empty)

    def targets(
        self, example: Example, geometry: Geometry, data: ConfigDict
    ) -> dict[str, np.ndarray]:
        """The label map of an image, as it lies on its canvas."""
        del data
        assert example.label_map is not None
        return {"labels": label_maps.on_canvas(example.label_map, geometry)}

    def metric(self, source: Source) -> MeanIoU:
        """The mIoU."""
        return MeanIoU(source)

    def categories(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
        """Adds the colours of the data set."""
        known = categories_of(rows)
        colours = colours_of([category.name for category in known]).tolist()
        return tuple(
            category._replace(colour=tuple(colour))
            for category, colour in zip(known, colours, strict=True)
        )

    def draw(
        self,
        image: np.ndarray,
        prediction: LabelMaps,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> np.ndarray:
        """Tints all but the background in the colours of the categories."""
        del score
        found = ImageLabels.of(prediction, geometry, self.categories(categories))
        picture = found.draw(image)
        return picture if found.present else drawing.draw_note(picture, _NOTHING)

    def draw_truth(
        self,
        image: np.ndarray,
        example: Example,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        data: ConfigDict,
    ) -> np.ndarray:
        """Tints what has a category, and what has none in a light colour."""
        del data
        assert example.label_map is not None
        labels = resize_labels(example.label_map, geometry.size)
        return ImageLabels(labels, self.categories(categories)).draw(image)

    def records(
        self,
        prediction: LabelMaps,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> list[dict[str, Any]]:
        """Lists the pixels of each category but the background, run-length encoded."""
        del score
        found = ImageLabels.of(prediction, geometry, categories_of(categories))
        return [
            {
                "label": found.categories[label].name,
                "category_id": found.categories[label].id,
                "segmentation": run_lengths(found.mask(label)),
                "area": int(found.mask(label).sum()),
            }
            for label in found.present
        ]
