"""Draws and reads instances JSON files."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dcn_jax.images.geometry import Geometry
from scripts.fuzz_files.bounded import Bounds
from train.data import examples, masks
from train.data.sets import coco_annotations

SUFFIXES = (".json",)
REFUSALS = (ValueError,)

_MOST = 5 * 10**6
_MASK_SIDE = 112
# Every field of the format may hold one of these.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1.0, 0.5, -0.0, 1e-300, 1e300, 2**31, 2**62),
    *(-(2**63), 10**19, 10**400, 10**4000, -(10**4000)),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "a", "0", "\0", "\x1b[31m", "\n", "\u202e", "\ud800", "x" * 10**5),
    *("../../etc/passwd", "/etc/passwd", "a/../../b", "~", "%s{}"),
    *(
        [],
        [[]],
        [[[]]],
        {},
        {"id": 1},
        [None],
        [1, 2, 3, 4],
        [0.0] * 10**5,
        ["\x1b"] * 9,
    ),
)


def bounds(size: int) -> Bounds:
    """What reading a file of `size` bytes may take: Python's objects are large."""
    return Bounds(3 + size / 10**6, (250 << 20) + 25 * size)


def read(path: Path) -> None:
    """Reads the file, and uses all that is kept of it."""
    instances = coco_annotations.read_instances(path)
    for image in instances.images:
        height, width = image["height"], image["width"]
        annotations = instances.annotations[image["id"]]
        boxes, labels, segmentations = examples.usable_objects(
            annotations, height, width
        )
        assert boxes.shape == (len(labels), 4)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
        size = (height, width)
        geometry = Geometry(original=size, size=size, canvas=size, flip=True)
        windows = masks.windows_around(boxes, _MASK_SIDE)
        for segmentation, window in zip(segmentations, windows, strict=True):
            masks.draw_mask(segmentation, window, geometry, _MASK_SIDE)
        json.dumps(annotations)
        for annotation in annotations:
            segmentation = annotation["segmentation"]
            if segmentation:
                _use_mask(segmentation, height, width)


def _use_mask(segmentation: Any, height: int, width: int) -> None:
    """As pycocotools' COCO.annToRLE."""
    encoded = segmentation
    if isinstance(segmentation, list):
        encoded = coco_mask.frPyObjects(segmentation[:99], height, width)
        encoded = coco_mask.merge(encoded)
    elif isinstance(segmentation["counts"], list):
        encoded = coco_mask.frPyObjects(segmentation, height, width)
    assert 0 <= coco_mask.area(encoded) <= height * width


def write(rng: np.random.Generator, path: Path) -> str:
    """Writes the file of a case; returns what it is."""
    content = _sound(rng)
    done = []
    for _ in range(int(rng.integers(0, 4))):
        change = _CHANGES[rng.integers(len(_CHANGES))]
        content = change(rng, content)
        done.append(change.__name__.strip("_"))
    text = json.dumps(content, ensure_ascii=bool(rng.integers(2)))
    # Changes multiply; many small files find more than a few large ones.
    data = text.encode(errors="surrogatepass")[:_MOST]
    if rng.random() < 0.2:
        change = _BYTES[rng.integers(len(_BYTES))]
        data = change(rng, data)
        done.append(change.__name__.strip("_"))
    path.write_bytes(data)
    return " + ".join(done) or "sound"


def _sound(rng: np.random.Generator) -> dict[str, Any]:
    images, annotations = [], []
    for image_id in range(int(rng.integers(1, 6))):
        height, width = (int(side) for side in rng.integers(1, 900, 2))
        name = f"{image_id}.jpg"
        images.append(
            {"id": image_id, "file_name": name, "height": height, "width": width}
        )
        for _ in range(int(rng.integers(0, 5))):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 4)),
                    "bbox": (rng.random(4) * min(height, width)).tolist(),
                    "area": float(rng.random() * 99),
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": _segmentation(rng, height, width),
                }
            )
    categories = [{"id": i, "name": f"c{i}"} for i in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _segmentation(rng: np.random.Generator, height: int, width: int) -> Any:
    kind = rng.integers(4)
    if kind == 0:
        return []
    if kind == 1:
        counts = rng.integers(3, 20, rng.integers(1, 4))
        return [(rng.random((n, 2)) * [width, height]).ravel().tolist() for n in counts]
    if kind == 2:
        mask = np.asfortranarray(rng.random((height, width)) < 0.1, np.uint8)
        counts: Any = coco_mask.encode(mask)["counts"]
        return {"size": [height, width], "counts": counts.decode()}
    cuts = np.sort(rng.integers(0, height * width + 1, rng.integers(0, 9)))
    runs = np.diff([0, *cuts, height * width]).tolist()
    return {"size": [height, width], "counts": runs}


def _places(content: Any, places: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a structure."""
    if isinstance(content, dict | list):
        keys = content if isinstance(content, dict) else range(min(len(content), 50))
        for key in keys:
            places.append((content, key))
            _places(content[key], places)
    return places


def _any_value(rng: np.random.Generator, content: Any) -> Any:
    places = _places(content, [])
    if not places:
        return content
    container, key = places[rng.integers(len(places))]
    container[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
    return content


def _missing(rng: np.random.Generator, content: Any) -> Any:
    places = _places(content, [])
    if places:
        container, key = places[rng.integers(len(places))]
        del container[key]
    return content


def _exchanged(rng: np.random.Generator, content: Any) -> Any:
    places = _places(content, [])
    if places:
        (one, a), (other, b) = (places[i] for i in rng.integers(0, len(places), 2))
        one[a] = copy.deepcopy(other[b])
    return content


def _annotations(rng: np.random.Generator, content: Any) -> list[Any]:
    """The annotations, one of which is there in any case."""
    if not isinstance(content, dict) or not isinstance(
        content.get("annotations"), list
    ):
        return [{}]
    kept = [a for a in content["annotations"] if isinstance(a, dict)]
    if not kept:
        kept = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 5, 5]}]
        content["annotations"] += kept
    rng.shuffle(kept)
    return kept


def _long_outline(rng: np.random.Generator, content: Any) -> Any:
    annotation = _annotations(rng, content)[0]
    count, side = 10 ** rng.uniform(1, 5.5), 10 ** rng.uniform(0, 4.2)
    polygon = (rng.random(2 * int(count)) * side).round(1).tolist()
    annotation["segmentation"] = [polygon] * int(rng.integers(1, 3))
    annotation.pop("area", None)
    return content


def _many_polygons(rng: np.random.Generator, content: Any) -> Any:
    annotation = _annotations(rng, content)[0]
    count = int(10 ** rng.uniform(1, 4.7))
    points = rng.random((count, int(rng.integers(2, 6)) * 2)) * 60
    annotation["segmentation"] = points.round(2).tolist()
    annotation.pop("area", None)
    return content


def _large_image(rng: np.random.Generator, content: Any) -> Any:
    for image in content.get("images", []) if isinstance(content, dict) else []:
        if isinstance(image, dict):
            image["height"], image["width"] = (
                int(10 ** rng.uniform(2, rng.choice([3.9, 10]))) for _ in range(2)
            )
    for annotation in _annotations(rng, content):
        annotation.pop("area", None)
    return content


def _odd_runs(rng: np.random.Generator, content: Any) -> Any:
    annotation = _annotations(rng, content)[0]
    annotation.pop("area", None)
    mask: Any = annotation.get("segmentation")
    if not isinstance(mask, dict):
        annotation["segmentation"] = mask = {"size": [5, 5]}
    length = int(10 ** rng.uniform(0, 5.5))
    if rng.random() < 0.5:
        codes = rng.integers(
            rng.choice([0, 48, 80]), rng.choice([96, 112, 128]), length
        )
        mask["counts"] = bytes(codes.tolist()).decode("ascii")
    else:
        runs = rng.integers(-3, 10 ** int(rng.integers(1, 12)), length)
        mask["counts"] = runs.tolist()
    return content


def _many_entries(rng: np.random.Generator, content: Any) -> Any:
    if isinstance(content, dict):
        key = str(rng.choice(["images", "annotations", "categories"]))
        entries = content.get(key)
        if isinstance(entries, list) and entries:
            count = int(10 ** rng.uniform(1, 4))
            last = entries[-1]
            if isinstance(last, dict):
                content[key] = entries + [{**last, "id": 50 + i} for i in range(count)]
    return content


def _nested(rng: np.random.Generator, content: Any) -> Any:
    value: Any = 1
    for _ in range(int(rng.integers(10, 400))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    places = _places(content, [])
    if places:
        container, key = places[rng.integers(len(places))]
        container[key] = value
    return content


_CHANGES: tuple[Callable[[np.random.Generator, Any], Any], ...] = (
    *(_any_value, _any_value, _any_value, _missing, _exchanged, _long_outline),
    *(_many_polygons, _large_image, _odd_runs, _many_entries, _nested),
)


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(0, len(data) + 1)]


def _flipped(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
        changed[place] = rng.integers(256)
    return bytes(changed)


def _long_number(rng: np.random.Generator, data: bytes) -> bytes:
    digit = bytes([int(rng.integers(48, 58))])
    return data.replace(digit, b"9" * int(10 ** rng.uniform(1, 5.5)), 1)


def _deep(rng: np.random.Generator, data: bytes) -> bytes:
    return rng.choice([b"[", b'{"a":']) * int(rng.integers(1000, 10**6))


def _other_encoding(rng: np.random.Generator, data: bytes) -> bytes:
    text = data.decode(errors="replace")
    return text.encode(str(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"])))


def _twice(rng: np.random.Generator, data: bytes) -> bytes:
    return data + b" " * int(rng.integers(0, 9)) + data


_BYTES = (_cut, _flipped, _long_number, _deep, _other_encoding, _twice)
