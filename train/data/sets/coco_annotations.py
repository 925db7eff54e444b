"""Reads and checks an instances JSON as COCO writes it.

All that is wrong with a file is said at once. Masks that are no masks refuse nothing,
for boxes are all that a detector reads: such annotations lose them, which is counted.
"""

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from dcn_jax.images.headers import MAX_PIXELS
from dcn_jax.quoting import one_line, quoted
from dcn_jax.regular_file import open_regular
from train.data.sets import coco_masks
from train.data.sets.mistakes import SHOWN, listed

# No published file comes near; all of a file is held in memory.
_MAX_BYTES = 2**33


class Instances(NamedTuple):
    """Content of an instances JSON."""

    images: list[dict[str, Any]]  # id, height, width, file_name
    categories: list[dict[str, Any]]  # id, name; by rising id
    annotations: dict[int, list[dict[str, Any]]]  # by image id
    bad_masks: dict[str, int]  # what was wrong with masks, and how many were left out


def read_instances(path: str | Path, max_pixels: int = MAX_PIXELS) -> Instances:
    """Reads an instances JSON.

    Crowds, ignored annotations, those of zero area, and images without annotations are
    kept. Missing `iscrowd` and `ignore` become 0, and a missing `area` that of the
    mask, or else of the box.

    Args:
      path: The file.
      max_pixels: Images that are larger (height * width) are refused.

    Raises:
      ValueError: One line that names the file, the entries and what is wrong with each.
    """
    path = Path(path)
    with open_instances(path) as file:
        # A file of holes is not read to its end.
        head = file.read(64)
        content = _parsed(head + file.read() if head.strip(b"\0") else head, path)
    checks = _Checks(max_pixels)
    try:
        instances = checks.content(content)
    except _Wrong as error:
        raise ValueError(f"{_shown(path)}: {error}") from None
    if checks.count:
        text = listed(checks.mistakes, checks.count, "mistakes")
        raise ValueError(f"{_shown(path)}: {text}")
    return instances


def open_instances(path: Path) -> BinaryIO:
    """Opens an instances JSON; see `open_regular`."""
    return open_regular(path, max_bytes=_MAX_BYTES)


def _parsed(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except MemoryError:
        reason = "it does not fit into the memory"
    except (ValueError, RecursionError) as error:
        reason = one_line(str(error), 200)
    raise ValueError(f"{_shown(path)} is not valid JSON: {reason}")


class _Wrong(ValueError):
    """What is wrong with the file, or an entry of it."""


class _Checks:
    """Checks the parts of a file, and collects what is wrong with them."""

    def __init__(self, max_pixels: int):
        self._max_pixels = max_pixels
        self.count = 0
        self.mistakes: list[str] = []  # the first
        self._bad_masks = Counter()

    def _note(self, error: _Wrong) -> None:
        self.count += 1
        if len(self.mistakes) < SHOWN:
            self.mistakes.append(str(error))

    def content(self, content: Any) -> Instances:
        if not isinstance(content, dict):
            raise _Wrong(
                "expected an object with `images`, `annotations`, `categories`"
            )
        entries = {}
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise _Wrong(f"`{key}` is missing or not a list")
            entries[key] = self._with_ids(key, content[key])
            if not content[key] and key != "annotations":
                raise _Wrong(f"`{key}` is empty")
        categories = self._categories(entries["categories"])
        category_ids = {category["id"] for category in categories}
        images, sizes = [], {}
        for image in entries["images"]:
            # What lies in an image that is wrong is checked as far as that goes.
            sizes[image["id"]] = None
            try:
                images.append(_image(image, self._max_pixels))
                sizes[image["id"]] = image["height"], image["width"]
            except _Wrong as error:
                self._note(error)
        annotations = {image_id: [] for image_id in sizes}
        for annotation in entries["annotations"]:
            try:
                checked = self._annotation(annotation, sizes, category_ids)
                annotations[checked["image_id"]].append(checked)
            except _Wrong as error:
                self._note(error)
        return Instances(images, categories, annotations, dict(self._bad_masks))

    def _with_ids(self, key: str, entries: list[Any]) -> list[dict[str, Any]]:
        """The entries that have an id of their own."""
        kept, seen = [], set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or not _is_int(entry.get("id")):
                self._note(_Wrong(f"`{key}[{position}]` has no integer `id`"))
            elif entry["id"] in seen:
                self._note(_Wrong(f"two of `{key}` have the id {entry['id']}"))
            else:
                seen.add(entry["id"])
                kept.append(entry)
        return kept

    def _categories(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        categories, names = [], set()
        for entry in sorted(entries, key=lambda entry: entry["id"]):
            name = entry.get("name")
            name = name if isinstance(name, str) else quoted(name)
            if name in names:
                self._note(_Wrong(f"two of `categories` have the name {quoted(name)}"))
            names.add(name)
            categories.append({"id": entry["id"], "name": name})
        return categories

    def _annotation(
        self,
        annotation: dict[str, Any],
        sizes: dict[int, tuple[int, int] | None],
        category_ids: set[int],
    ) -> dict[str, Any]:
        what = f"annotation {annotation['id']}"
        image_id, category_id = (
            annotation.get(key) for key in ("image_id", "category_id")
        )
        if not _is_int(image_id) or image_id not in sizes:
            raise _Wrong(f"{what}: unknown image id {quoted(image_id)}")
        if not _is_int(category_id) or category_id not in category_ids:
            raise _Wrong(f"{what}: unknown category id {quoted(category_id)}")
        bbox = annotation.get("bbox")
        if (
            not isinstance(bbox, list)
            or len(bbox) != 4
            or not _are_numbers(bbox)
            or min(bbox[2:]) < 0
        ):
            raise _Wrong(
                f"{what}: `bbox` is {quoted(bbox)}; expected [x, y, width, height]"
            )
        marks = {key: annotation.get(key) or 0 for key in ("iscrowd", "ignore")}
        for key, mark in marks.items():
            if mark not in (0, 1):
                raise _Wrong(f"{what}: `{key}` is {quoted(mark)}; expected 0 or 1")
        segmentation = annotation.get("segmentation") or []
        size = sizes[image_id]
        if segmentation and size is not None:
            flaw = coco_masks.flaw(segmentation, *size)
            if flaw is not None:
                self._bad_masks[flaw] += 1
                segmentation = []
        area = annotation.get("area")
        if area is None:
            area = bbox[2] * bbox[3]
            if segmentation and size is not None:
                area = coco_masks.mask_area(segmentation, *size)
        elif not _are_numbers([area]):
            raise _Wrong(f"{what}: `area` is {quoted(area)}; expected a number")
        checked = {
            "id": annotation["id"],
            "image_id": image_id,
            "category_id": category_id,
            "bbox": bbox,
            "area": area,
            "iscrowd": int(marks["iscrowd"]),
            "segmentation": segmentation,
        }
        return {**checked, "ignore": 1} if marks["ignore"] else checked


def _image(image: dict[str, Any], max_pixels: int) -> dict[str, Any]:
    what = f"image {image['id']}"
    # The loader marks the rows that complete a batch by -1.
    if image["id"] < 0:
        raise _Wrong(f"an image has the id {image['id']}; expected 0 or more")
    name = image.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise _Wrong(f"{what}: `file_name` is {quoted(name)}; expected a file name")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise _Wrong(
            f"{what}: `file_name` {quoted(name)} leads out of the image folder"
        )
    for key in ("height", "width"):
        if not _is_int(image.get(key)) or image[key] < 1:
            raise _Wrong(
                f"{what}: `{key}` is {quoted(image.get(key))}; expected pixels"
            )
    if image["height"] * image["width"] > max_pixels:
        raise _Wrong(
            f"{one_line(name, 200)} has {image['height']} x {image['width']} pixels;"
            f" at most {max_pixels} are allowed (`max_pixels`)"
        )
    return {key: image[key] for key in ("id", "height", "width", "file_name")}


def _shown(path: Path) -> str:
    return one_line(str(path), 300)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**62


def _are_numbers(values: list[Any]) -> bool:
    # The bound, as in _is_int, refuses NaN and integers that no float holds too.
    return all(
        isinstance(value, int | float) and abs(value) < 2**62 for value in values
    )
