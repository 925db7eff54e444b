"""Writes a tiny data set as COCO publishes them, with COCO's rare cases in it."""

import json
import struct
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CATEGORIES = ((1, "disc"), (18, "square"), (90, "triangle"))

# (id, height, width) of landscape, portrait and square images; ids as irregular as
# COCO's. The last three show a crowd (and an empty box), nothing, and gray.
SIZES = (
    (139, 96, 128),
    (285, 128, 96),
    (632, 112, 112),
    (724, 90, 130),
    (776, 130, 90),
    (1000, 100, 140),
    (1268, 96, 128),
    (1296, 120, 88),
)


def write_coco_folder(
    folder: Path, split: str = "train2017", *, empty_box: bool = True
) -> dict:
    """Writes `folder/split/*.jpg` and `folder/annotations/instances_split.json`.

    Args:
      folder: Where to write; other splits may be there already.
      split: Name of the split.
      empty_box: Whether one annotation has a box of zero area. COCO's evaluation counts
        it as an object that nothing can match, so AP stays under 1 with it.

    Returns:
      The content of the JSON.
    """
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    for image_id, height, width in SIZES:
        rng = np.random.default_rng(image_id)
        pixels = rng.normal(128, 20, (height, width, 3)).clip(0, 255).astype(np.uint8)
        if image_id not in (1000, 1268):
            for position, category_id in enumerate((1, 18, 90)):
                outline = _outline(rng, height, width, category_id, position)
                colour = rng.integers(0, 255, 3).tolist()
                cv2.fillPoly(pixels, [outline.astype(np.int32)], colour)
                segmentation = _segmentation(outline, height, width, position)
                annotations.append(
                    _annotation(
                        image_id, category_id, outline, segmentation, height, width
                    )
                )
        if image_id == 1000:
            annotations.append(_crowd(image_id, height, width))
            if empty_box:
                annotations.append(_empty_box(image_id))
        if image_id == 1296:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
        name = f"{image_id:012d}.jpg"
        _, encoded = cv2.imencode(".jpg", pixels)
        (folder / split / name).write_bytes(encoded.tobytes())
        images.append(
            {
                "license": 1,
                "file_name": name,
                "coco_url": f"http://images.example.org/{split}/{name}",
                "height": height,
                "width": width,
                "date_captured": "2013-11-14 17:02:52",
                "flickr_url": "",
                "id": image_id,
            }
        )
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = 1000 * number + 7
    content = {
        "info": {"description": "A tiny set of shapes", "version": "1.0", "year": 2017},
        "licenses": [{"url": "", "id": 1, "name": "Public domain"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": "shape", "id": number, "name": name}
            for number, name in CATEGORIES
        ],
    }
    write_instances(folder, split, content)
    return content


def write_instances(folder: Path, split: str, content: object) -> Path:
    """Writes (again) the JSON of a split; returns its path."""
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def tag(path: Path, orientation: int) -> None:
    """Puts an orientation tag (Exif) into a JPEG file."""
    data = path.read_bytes()
    tiff = struct.pack("<4sIHHHIHHI", b"II*\0", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    size = struct.pack(">H", len(segment) + 2)
    path.write_bytes(data[:2] + b"\xff\xe1" + size + segment + data[2:])


def _outline(
    rng: np.random.Generator, height: int, width: int, category_id: int, position: int
) -> np.ndarray:
    """Corners [n, 2] (x, y) of a shape inside the image."""
    radius = rng.uniform(12, 20)
    centre = rng.uniform(radius, width - radius), (position + 0.5) * height / 3
    corners = {1: 16, 18: 4, 90: 3}[category_id]
    angles = rng.uniform(0, 6) + np.arange(corners) * 2 * np.pi / corners
    outline = np.stack([np.cos(angles), np.sin(angles)], 1) * radius + centre
    return np.round(np.clip(outline, 0, (width, height)), 2)


def _segmentation(
    outline: np.ndarray, height: int, width: int, position: int
) -> list | dict:
    """The outline as polygons, as compressed or as plain run lengths, in turn."""
    polygons = [outline.reshape(-1).tolist()]
    if position == 0:
        return polygons
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if position == 1:
        return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    return {"size": [height, width], "counts": plain_runs(coco_mask.decode(rle))}


def plain_runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of 0 and 1 in a mask, column by column."""
    flat = mask.reshape(-1, order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return np.diff([0, *edges, len(flat)]).tolist()


def _annotation(
    image_id: int,
    category_id: int,
    outline: np.ndarray,
    segmentation: list | dict,
    height: int,
    width: int,
) -> dict:
    rles = coco_mask.frPyObjects([outline.reshape(-1).tolist()], height, width)
    low, high = outline.min(0), outline.max(0)
    return {
        "segmentation": segmentation,
        "area": float(coco_mask.area(coco_mask.merge(rles))),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "category_id": category_id,
    }


def _crowd(image_id: int, height: int, width: int) -> dict:
    crowd = np.zeros((height, width), np.uint8)
    crowd[10:30, 5:90] = 1
    return {
        "segmentation": {"size": [height, width], "counts": plain_runs(crowd)},
        "area": 1700,
        "iscrowd": 1,
        "image_id": image_id,
        "bbox": [5, 10, 85, 20],
        "category_id": 1,
    }


def _empty_box(image_id: int) -> dict:
    return {
        "segmentation": [[40.0, 50.0, 60.0, 50.0, 60.0, 50.0]],
        "area": 0.0,
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [40.0, 50.0, 20.0, 0.0],
        "category_id": 18,
    }
