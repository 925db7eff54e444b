"""Reads and checks an instances JSON as COCO writes it.

Nothing of the file reaches pycocotools' C code unchecked: a crafted mask makes that
write outside its buffers.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np
from pycocotools import mask as coco_mask


class Instances(NamedTuple):
    """Content of an instances JSON."""

    images: list[dict[str, Any]]  # id, height, width, file_name
    categories: list[dict[str, Any]]  # id, name; by rising id
    annotations: dict[int, list[dict[str, Any]]]  # by image id


def read_instances(path: str | Path) -> Instances:
    """Reads an instances JSON.

    Crowds, annotations of zero area and images without annotations are kept. Missing
    `iscrowd` becomes 0, and a missing `area` that of the mask, or else of the box.

    Raises:
      ValueError: One line that names the file, the entry and what is wrong with it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    try:
        return _check(content)
    except _Wrong as error:
        raise ValueError(f"{path}: {error}") from None


class _Wrong(Exception):
    """What is wrong with the file."""


def _check(content: Any) -> Instances:
    if not isinstance(content, dict):
        raise _Wrong("expected an object with `images`, `annotations`, `categories`")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list):
            raise _Wrong(f"`{key}` is missing or not a list")
        seen = set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or not _is_int(entry.get("id")):
                raise _Wrong(f"`{key}[{position}]` has no integer `id`")
            if entry["id"] in seen:
                raise _Wrong(f"two of `{key}` have the id {entry['id']}")
            seen.add(entry["id"])
    for image in content["images"]:
        # The loader marks the rows that complete a batch by -1.
        if image["id"] < 0:
            raise _Wrong(f"an image has the id {image['id']}; expected 0 or more")
    categories = sorted(
        ({"id": c["id"], "name": str(c.get("name"))} for c in content["categories"]),
        key=lambda category: category["id"],
    )
    if not categories:
        raise _Wrong("`categories` is empty")
    names = set()
    for category in categories:
        if category["name"] in names:
            raise _Wrong(f"two of `categories` have the name {category['name']!r}")
        names.add(category["name"])
    images = [_image(image) for image in content["images"]]
    if not images:
        raise _Wrong("`images` is empty")
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    category_ids = {category["id"] for category in categories}
    annotations = {image_id: [] for image_id in sizes}
    for annotation in content["annotations"]:
        checked = _annotation(annotation, sizes, category_ids)
        annotations[checked["image_id"]].append(checked)
    return Instances(images, categories, annotations)


def _image(image: dict[str, Any]) -> dict[str, Any]:
    what = f"image {image['id']}"
    for key in ("height", "width"):
        if not _is_int(image.get(key)) or image[key] < 1:
            raise _Wrong(f"{what}: `{key}` is {image.get(key)!r}; expected pixels")
    name = image.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise _Wrong(f"{what}: `file_name` is {name!r}; expected a file name")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise _Wrong(f"{what}: `file_name` {name!r} leads out of the image folder")
    return {key: image[key] for key in ("id", "height", "width", "file_name")}


def _annotation(
    annotation: dict[str, Any],
    sizes: dict[int, tuple[int, int]],
    category_ids: set[int],
) -> dict[str, Any]:
    what = f"annotation {annotation['id']}"
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    if not _is_int(image_id) or image_id not in sizes:
        raise _Wrong(f"{what}: unknown image id {image_id!r}")
    if not _is_int(category_id) or category_id not in category_ids:
        raise _Wrong(f"{what}: unknown category id {category_id!r}")
    height, width = sizes[image_id]
    bbox = annotation.get("bbox")
    if (
        not isinstance(bbox, list)
        or not _are_numbers(bbox)
        or len(bbox) != 4
        or min(bbox[2:]) < 0
    ):
        raise _Wrong(f"{what}: `bbox` is {bbox!r}; expected [x, y, width, height]")
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _Wrong(f"{what}: `iscrowd` is {crowd!r}; expected 0 or 1")
    segmentation = annotation.get("segmentation") or []
    _check_segmentation(segmentation, height, width, what)
    area = annotation.get("area")
    if area is None:
        area = bbox[2] * bbox[3]
        if segmentation:
            area = _mask_area(segmentation, height, width)
    elif not _are_numbers([area]):
        raise _Wrong(f"{what}: `area` is {area!r}; expected a number")
    return {
        "id": annotation["id"],
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


def _check_segmentation(segmentation: Any, height: int, width: int, what: str) -> None:
    """Checks polygons or a run-length encoded mask."""
    if isinstance(segmentation, dict):
        size, runs = segmentation.get("size"), _runs(segmentation.get("counts"))
        if size != [height, width]:
            raise _Wrong(
                f"{what}: `segmentation` has the size {size!r}; the image has"
                f" {[height, width]}"
            )
        if runs is None or (runs < 0).any() or runs.sum() != height * width:
            raise _Wrong(
                f"{what}: the runs of `segmentation` do not add up to"
                f" {height} x {width} pixels"
            )
        return
    if not isinstance(segmentation, list):
        raise _Wrong(f"{what}: `segmentation` is neither polygons nor an RLE mask")
    for polygon in segmentation:
        if not _is_outline(polygon):
            raise _Wrong(
                f"{what}: a polygon of `segmentation` is not [x1, y1, x2, y2, x3, ...]"
            )
        # Generous, but rasterising takes time and memory by the length of the outline.
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            if min(values) < -side or max(values) > 2 * side:
                raise _Wrong(f"{what}: a polygon lies far outside of its image")


def _mask_area(segmentation: list | dict, height: int, width: int) -> float:
    """Area in pixels of a mask that `_check_segmentation` passed."""
    if isinstance(segmentation, dict):
        runs = cast(np.ndarray, _runs(segmentation["counts"]))
        return float(runs[1::2].sum())
    rles = coco_mask.frPyObjects(segmentation, height, width)
    return float(coco_mask.area(coco_mask.merge(rles)))


def _runs(counts: Any) -> np.ndarray | None:
    """Lengths [n] of the runs of 0 and 1, or None if `counts` is no such thing."""
    if isinstance(counts, str):
        return decode_counts(counts)
    if isinstance(counts, list) and all(_is_int(run) for run in counts):
        return np.array(counts, np.float64)
    return None


def decode_counts(counts: str) -> np.ndarray | None:
    """Runs of a compressed RLE mask.

    Each number is written in groups of 5 bits, lowest first, one character (48 + value)
    a group; bit 5 says that more follow, bit 4 of the last group is the sign. From the
    fourth number on, each stands for the difference to the last but one.

    Returns:
      [n] float64, or None if `counts` is not such a string.

    Source: pycocotools `rleFrString`.
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        return None
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 7:  # 2^34 and more: no image has so many pixels
        return None
    place = np.arange(len(codes)) - np.repeat(first, length)
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    values -= np.where(codes[last] & 16, 1 << (5 * length), 0)
    runs = values.astype(np.float64)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _is_outline(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and _are_numbers(polygon)
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _are_numbers(values: list[Any]) -> bool:
    # The bound, as in _is_int, refuses NaN and integers that no float holds too.
    return all(
        isinstance(value, int | float) and abs(value) < 2**62 for value in values
    )
