"""Masks of an instances JSON: none but sound ones of a sane length are kept."""

import copy
import json
import resource
import time
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.support import coco_folder
from train.data.sets import coco_annotations, coco_masks

HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("coco")
    return coco_folder.write_coco_folder(folder, "val")


def _read_with(tmp_path, content, segmentation, *, area=True):
    """Reads the JSON with another mask in the first annotation; returns both."""
    changed = copy.deepcopy(content)
    changed["annotations"][0]["segmentation"] = segmentation
    if not area:
        del changed["annotations"][0]["area"]
    path = coco_folder.write_instances(tmp_path, "val", changed)
    read = coco_annotations.read_instances(path)
    return read.annotations[139][0], read.bad_masks


@pytest.mark.parametrize(
    "counts",
    [
        *([12289], [-1, 12289], ["a"], [12288.0], [10**400], [True] * 12288),
        *(None, "", "zzz", "o", "\u20ac", "\x01", "~"),
    ],
)
def test_crafted_runs_do_not_reach_pycocotools(tmp_path, content, counts):
    runs = {"size": [HEIGHT, WIDTH], "counts": counts}
    for area in (True, False):
        annotation, bad = _read_with(tmp_path, content, runs, area=area)
        assert annotation["segmentation"] == []
        assert bad == {"its runs do not add up to the pixels of its image": 1}
        if not area:
            width, height = annotation["bbox"][2:]
            assert annotation["area"] == width * height


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 2, 3, 4]], "a polygon is not [x1, y1, x2, y2, x3, ...]"),
        ([[1, 2, 3, 4, 5]], "a polygon is not [x1, y1, x2, y2, x3, ...]"),
        ([1, 2, 3, 4, 5, 6], "a polygon is not [x1, y1, x2, y2, x3, ...]"),
        ([[[1, 2], [3, 4], [5, 6]]], "a polygon is not [x1, y1, x2, y2, x3, ...]"),
        ([[1, 2, 3, 4, 5, None]], "a polygon is not [x1, y1, x2, y2, x3, ...]"),
        ([[1, 2, 3, 4, 5, 10**400]], "a polygon is not [x1, y1, x2, y2, x3, ...]"),
        ([[1, 2, 3, 4, 5, float("nan")]], "a polygon is not [x1, y1, x2, y2, x3, ...]"),
        ([[1, 2, 3, 4, 5, 1e9]], "a polygon lies far outside of its image"),
        ({"size": [5, 5], "counts": [25]}, "its size is not that of its image"),
        ({}, ""),
        ("abc", "it is neither polygons nor an RLE mask"),
        (7, "it is neither polygons nor an RLE mask"),
    ],
)
def test_what_the_detector_never_reads_refuses_nothing(
    tmp_path, content, segmentation, reason
):
    annotation, bad = _read_with(tmp_path, content, segmentation)
    assert annotation["segmentation"] == []
    assert bad == ({reason: 1} if reason else {})
    assert annotation["bbox"] == content["annotations"][0]["bbox"]


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 128, 0, 128, 96]],
        [[-5, 3.5, 60, 3.5, 60, 180]],
        [[10, 10, 10, 10, 10, 10]],
        [[1, 1, 9, 1, 9, 9], [30, 30, 50, 30, 50, 60, 30, 60]],
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": [0, 5, 0, HEIGHT * WIDTH - 5]},
    ],
)
def test_odd_but_sound_masks_are_kept(tmp_path, content, segmentation: Any):
    annotation, bad = _read_with(tmp_path, content, segmentation, area=False)
    assert annotation["segmentation"] == segmentation and not bad
    rle = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
    if isinstance(rle, list):
        rle = coco_mask.merge(rle)
    assert annotation["area"] == coco_mask.area(rle)


def test_area_of_many_polygons():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (500, 1, 2)) + rng.uniform(0, 9, (500, 4, 2))
    polygons: Any = corners.reshape(500, 8).tolist()
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, 70, 70))
    assert coco_masks.mask_area(polygons, 70, 70) == coco_mask.area(merged)


@pytest.mark.parametrize(
    ("points", "side"), [(40_000, 8000), (1_000_000, 64), (100_000, 640)]
)
def test_long_outlines_do_not_reach_pycocotools(points, side):
    rng = np.random.default_rng(0)
    polygon = (rng.random(2 * points) * side).tolist()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    reason = coco_masks.flaw([polygon], side, side)
    assert reason == "its outline is longer than 1048576 pixels"
    assert time.process_time() - start < 2
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200_000  # kB


def test_outlines_that_together_are_long():
    polygon = [0, 0, 8000, 0, 8000, 8000, 0, 8000]
    assert coco_masks.flaw([polygon] * 32, 8000, 8000) is None
    assert "outline is longer" in str(coco_masks.flaw([polygon] * 33, 8000, 8000))
    # Many points close together are short.
    dense = np.repeat(np.arange(0, 60_000) / 100, 2).tolist()
    assert coco_masks.outline_length(dense) < 62_000
    assert coco_masks.flaw([dense] * 16, 8000, 8000) is None


def test_a_long_outline_has_the_area_of_its_box(tmp_path, content):
    polygon = [0, 0, WIDTH, HEIGHT] * 10_000
    annotation, bad = _read_with(tmp_path, content, [polygon], area=False)
    assert annotation["segmentation"] == [] and len(bad) == 1
    width, height = content["annotations"][0]["bbox"][2:]
    assert annotation["area"] == width * height
    assert len(json.dumps(annotation)) < 1000


def test_compressed_runs_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.3, 0.99, 1.0):
        mask = (rng.random((63, 70)) < density).astype(np.uint8, order="F")
        counts: Any = coco_mask.encode(mask)["counts"]
        runs = coco_masks.decode_counts(counts.decode())
        assert runs is not None
        assert runs.tolist() == coco_folder.plain_runs(mask)


def test_pixels_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (100, 1, 2)) + rng.uniform(0, 9, (100, 4, 2))
    polygons: Any = corners.reshape(100, 8).tolist()
    expected = coco_mask.decode(
        coco_mask.merge(coco_mask.frPyObjects(polygons, 63, 70))
    )
    assert 0 < expected.mean() < 1
    encoded: Any = coco_mask.encode(expected)
    counts = encoded["counts"].decode()
    for segmentation in (
        polygons,
        {"size": [63, 70], "counts": counts},
        {"size": [63, 70], "counts": coco_folder.plain_runs(expected)},
    ):
        np.testing.assert_array_equal(coco_masks.pixels(segmentation, 63, 70), expected)
    assert not coco_masks.pixels([], 63, 70).any()
