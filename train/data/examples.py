"""The one record format that every data set of this project is stored in.

A record keeps the encoded image and the COCO annotations of one image. What the
loader must know of every image before it reads any (size, whether it has usable
ground truth) stands in the data set's metadata, in record order.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds


def features() -> tfds.features.FeaturesDict:
    """Features of a record; `annotations` is the JSON text of a list of COCO dicts."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": np.int64,
            "height": np.int64,
            "width": np.int64,
            "file_name": tfds.features.Text(),
            "annotations": tfds.features.Text(),
        }
    )


def metadata(categories: Sequence[Mapping[str, Any]]) -> tfds.core.MetadataDict:
    """Metadata of a data set: its categories, and an index that building fills.

    Args:
      categories: `{"id": int, "name": str}` each.

    Returns:
      `{"categories": [...], "index": {}}`; `index[split]` will hold the lists
      `height`, `width` (pixels) and `num_boxes` (usable boxes), in record order.
    """
    kept = [{"id": int(c["id"]), "name": str(c["name"])} for c in categories]
    return tfds.core.MetadataDict(categories=kept, index={})


def start_index(info: tfds.core.DatasetInfo, split: str) -> dict[str, list[int]]:
    """Adds an empty index of `split` to the metadata; fill it by `index_image`."""
    index = {"height": [], "width": [], "num_boxes": []}
    cast(tfds.core.MetadataDict, info.metadata)["index"][split] = index
    return index


def index_image(
    index: dict[str, list[int]], height: int, width: int, num_boxes: int
) -> None:
    """Appends an image to an index."""
    index["height"].append(height)
    index["width"].append(width)
    index["num_boxes"].append(num_boxes)


def usable_boxes(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that training can use: clipped to the image, no crowds, no empty ones.

    Args:
      annotations: COCO annotations of one image.
      height: Image height in pixels.
      width: Image width in pixels.

    Returns:
      boxes [M, 4] float32 as x1 y1 x2 y2 in image pixels, category ids [M] int64.

    Source: Detectron's filter (area > 0 and a box that is not empty once clipped).
    """
    boxes, category_ids = [], []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        x1, y1 = min(max(x, 0), width), min(max(y, 0), height)
        x2, y2 = min(max(x + w, 0), width), min(max(y + h, 0), height)
        if annotation["iscrowd"] or annotation["area"] <= 0 or x2 <= x1 or y2 <= y1:
            continue
        boxes.append((x1, y1, x2, y2))
        category_ids.append(annotation["category_id"])
    return (
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(category_ids, np.int64),
    )
