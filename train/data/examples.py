"""The one record format that every data set of this project is stored in.

A record keeps the COCO annotations of one image, its label map where the data set has
those, and the encoded image where it is made and no file of the user's. What the loader
must know of every image before it reads any (size, whether it has usable ground truth)
stands in the data set's metadata, in record order.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow_datasets as tfds

from train.data.label_maps import IGNORE

# Shorter sides, in pixels, vanish among the digits of a coordinate.
MIN_SIDE = 0.01


def features(
    *, images: bool = False, label_maps: bool = False
) -> tfds.features.FeaturesDict:
    """Features of a record; `annotations` is the JSON text of a list of COCO dicts.

    Args:
      images: Whether there is an `image`; else the configuration of the data set says
        which file `file_name` is.
      label_maps: Whether there is a `label_map`, see `train.data.label_maps`.
    """
    fields: dict[str, Any] = {
        "image_id": np.int64,
        "height": np.int64,
        "width": np.int64,
        "file_name": tfds.features.Text(),
        "annotations": tfds.features.Text(),
    }
    if images:
        fields["image"] = tfds.features.Image(shape=(None, None, 3))
    if label_maps:
        fields["label_map"] = tfds.features.Image(shape=(None, None, 1))
    return tfds.features.FeaturesDict(fields)


def metadata(categories: Sequence[Mapping[str, Any]]) -> tfds.core.MetadataDict:
    """Metadata of a data set: its categories, and an index that building fills.

    Args:
      categories: `{"id": int, "name": str}` each.

    Returns:
      `{"categories": [...], "index": {}}`; `index[split]` will hold the lists `height`,
      `width` (pixels) and `num_boxes` (usable boxes), in record order, and with label
      maps `image_id` and `labelled` (pixels of a category). Where something is not
      used, `note` adds how much.
    """
    kept = [{"id": int(c["id"]), "name": str(c["name"])} for c in categories]
    return tfds.core.MetadataDict(categories=kept, index={}, notes={})


def start_index(
    info: tfds.core.DatasetInfo, split: str, *, label_maps: bool = False
) -> dict[str, list[int]]:
    """Adds an empty index of `split` to the metadata.

    Fill it by `index_image`, and with label maps by `index_label_map` too.
    """
    index = {"height": [], "width": [], "num_boxes": []}
    if label_maps:
        index |= {"image_id": [], "labelled": []}
    cast(tfds.core.MetadataDict, info.metadata)["index"][split] = index
    return index


def note(
    info: tfds.core.DatasetInfo,
    split: str,
    *,
    left_out: Mapping[str, int],
    bad_masks: Mapping[str, int],
    without_mask: int,
    tagged: int,
) -> None:
    """Adds what is not used of `split`, or not there, to the metadata.

    Args:
      info: Of the data set.
      split: The split.
      left_out: Annotations that training does not use, counted by the reason.
      bad_masks: Masks that were not kept, likewise.
      without_mask: Annotations that training uses and that have no mask.
      tagged: How many images have an orientation tag that is not "upright".
    """
    cast(tfds.core.MetadataDict, info.metadata)["notes"][split] = {
        "left_out": dict(left_out),
        "bad_masks": dict(bad_masks),
        "without_mask": without_mask,
        "tagged": tagged,
    }


def index_image(
    index: dict[str, list[int]], height: int, width: int, num_boxes: int
) -> None:
    """Appends an image to an index."""
    index["height"].append(height)
    index["width"].append(width)
    index["num_boxes"].append(num_boxes)


def index_label_map(
    index: dict[str, list[int]], image_id: int, label_map: np.ndarray
) -> None:
    """Appends the label map of an image, [H, W] uint8, to an index."""
    index["image_id"].append(image_id)
    index["labelled"].append(int((label_map != IGNORE).sum()))


class Objects(NamedTuple):
    """What training can use of an image's annotations, M of them."""

    boxes: np.ndarray  # [M, 4] float32, x1 y1 x2 y2 in pixels, clipped to the image
    category_ids: np.ndarray  # [M] int64
    # COCO's: polygons, or a run-length encoded mask; [] where there is none.
    segmentations: list[Any]


def usable_objects(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int
) -> Objects:
    """Keeps what training can use; see `why_left_out`.

    Args:
      annotations: COCO annotations of one image.
      height: Image height in pixels.
      width: Image width in pixels.
    """
    used = [a for a in annotations if why_left_out(a, height, width) is None]
    boxes = [_clipped(a["bbox"], height, width) for a in used]
    return Objects(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray([a["category_id"] for a in used], np.int64),
        [a["segmentation"] for a in used],
    )


def why_left_out(annotation: Mapping[str, Any], height: int, width: int) -> str | None:
    """Says why training cannot use an annotation, or None where it can.

    Source: Detectron's filter (no crowd, area > 0, a box that is not empty once
    clipped); `ignore` as mmdetection reads it, `difficult` as VOC means it.
    """
    if annotation["iscrowd"]:
        return "crowds"
    if annotation.get("ignore"):
        return "marked `ignore`"
    if annotation.get("difficult"):
        return "marked `difficult`"
    x1, y1, x2, y2 = _clipped(annotation["bbox"], height, width)
    if min(annotation["bbox"][2:]) < MIN_SIDE:
        return "boxes without width or height"
    if min(x2 - x1, y2 - y1) < MIN_SIDE:
        return "boxes outside of the image"
    if annotation["area"] <= 0:
        return "`area` of 0 or less"
    return None


def _clipped(
    bbox: Sequence[float], height: int, width: int
) -> tuple[float, float, float, float]:
    x, y, w, h = bbox
    x1, y1 = min(max(x, 0), width), min(max(y, 0), height)
    x2, y2 = min(max(x + w, 0), width), min(max(y + h, 0), height)
    return x1, y1, x2, y2
