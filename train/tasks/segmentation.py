"""Semantic segmentation: a category for each pixel, judged by mIoU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dcn_jax.segmentation.records import Batch, LabelMaps
from train import draw
from train.config_dict import ConfigDict
from train.configs import _segmentation
from train.data import label_maps, report
from train.data.geometry import Geometry
from train.data.sets.palettes import colours_of
from train.data.source import Example, Source
from train.evaluation.coco_results import run_lengths
from train.evaluation.segmentation import MeanIoU
from train.tasks.composed import Composed


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

    def draw(
        self,
        image: np.ndarray,
        prediction: LabelMaps,
        geometry: Geometry,
        names: Sequence[str],
        score: float,
    ) -> np.ndarray:
        """Tints all but the background in the colours of the categories."""
        del score
        labels = label_maps.on_original(prediction.labels, geometry)
        shown = np.array([name != label_maps.BACKGROUND for name in names])
        return draw.draw_label_map(image, labels, colours_of(names), shown)

    def records(
        self,
        prediction: LabelMaps,
        geometry: Geometry,
        categories: Sequence[Mapping[str, Any]],
        score: float,
    ) -> list[dict[str, Any]]:
        """Lists the pixels of each category but the background, run-length encoded."""
        del score
        labels = label_maps.on_original(prediction.labels, geometry)
        return [
            {
                "label": categories[label]["name"],
                "category_id": categories[label]["id"],
                "segmentation": run_lengths(labels == label),
                "area": int((labels == label).sum()),
            }
            for label in np.unique(labels).tolist()
            if categories[label]["name"] != label_maps.BACKGROUND
        ]
