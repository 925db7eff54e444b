"""Ground-truth masks in their windows, against pycocotools on a finer grid."""

import functools
import json
import time
import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dcn_jax.images.geometry import Geometry
from tests.support import coco_folder
from train.data import Example, make_source, masks, train_loader
from train.tasks.detection import padded_boxes

SIDE, FINE = 28, 9

SQUARE = [20.0, 15, 50, 15, 50, 45, 20, 45]
SHAPES: dict[str, list[list[float]]] = {
    "square": [SQUARE],
    "triangle": [[11.3, 7.9, 93.2, 30.1, 25.7, 71.4]],
    "concave": [[10, 10, 90, 12, 88, 70, 50, 25, 14, 66]],
    # Inside where an odd number of edges lies to the left.
    "star": [[50, 5, 75, 75, 8, 30, 92, 30, 25, 75]],
    "apart": [[10, 10, 30, 12, 20, 40], [60, 50, 95, 50, 95, 75, 60, 75]],
    "overlapping": [[10, 10, 60, 10, 60, 60, 10, 60], [40, 30, 95, 30, 95, 70, 40, 70]],
    "cut by the border": [[-30, 20, 60, -40, 140, 60, 40, 110]],
}
GEOMETRIES = [
    Geometry((80, 100), (80, 100), (128, 128)),
    Geometry((80, 100), (80, 100), (128, 128), flip=True),
    Geometry((80, 100), (133, 71), (160, 160)),
    Geometry((80, 100), (37, 117), (128, 128), flip=True),
]


def extent(polygons, geometry):
    """The box of polygons on the canvas, clipped to the image."""
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    points = points.clip(0, geometry.original[::-1]) * geometry.scale[::-1]
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    if geometry.flip:
        x1, x2 = geometry.size[1] - x2, geometry.size[1] - x1
    return np.float32([[x1, y1, x2, y2]])


def finely(polygons, window, geometry):
    """What pycocotools draws into the window, on a grid of FINE pixels a cell."""
    corner, cell = window[:2], (window[2:] - window[:2]) / SIDE
    scaled = []
    for polygon in polygons:
        points = np.reshape(polygon, (-1, 2)) * geometry.scale[::-1]
        if geometry.flip:
            points[:, 0] = geometry.size[1] - points[:, 0]
        scaled.append(((points - corner) / cell * FINE).ravel().tolist())
    runs: Any = coco_mask.frPyObjects(scaled, SIDE * FINE, SIDE * FINE)
    return coco_mask.decode(coco_mask.merge(runs))


def assert_right_to_half_a_cell(mask, fine):
    """Cells are as all the fine pixels under them, where these agree."""
    edge = np.ones((FINE + 2, FINE + 2), np.uint8)
    middle = slice(FINE // 2, None, FINE)
    full = cv2.erode(fine, edge)[middle, middle][1:-1, 1:-1]
    some = cv2.dilate(fine, edge)[middle, middle][1:-1, 1:-1]
    inner = mask[1:-1, 1:-1]
    assert (inner[full == 1] == 1).all()
    assert (inner[some == 0] == 0).all()
    # Which are most of the cells.
    assert (full == some).mean() > 0.6


def assert_framed(mask):
    assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    assert not mask[[0, -1]].any() and not mask[:, [0, -1]].any()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", SHAPES)
def test_polygons_as_pycocotools_draws_them(name, geometry):
    polygons = SHAPES[name]
    (window,) = masks.windows_around(extent(polygons, geometry), SIDE)
    mask = masks.draw_mask(polygons, window, geometry, SIDE)
    assert_framed(mask)
    assert_right_to_half_a_cell(mask, finely(polygons, window, geometry))


def encoded(fine_mask, *, plain):
    """A mask as runs, written out or compressed."""
    size = list(fine_mask.shape)
    if plain:
        return {"size": size, "counts": coco_folder.plain_runs(fine_mask)}
    counts: Any = coco_mask.encode(np.asfortranarray(fine_mask))["counts"]
    return {"size": size, "counts": counts.decode()}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", SHAPES)
def test_runs_as_the_polygons_they_come_from(name, geometry):
    """In an image of ten times the sides, whose pixels are less than half a cell."""
    polygons = [[10 * v for v in polygon] for polygon in SHAPES[name]]
    large = geometry._replace(original=(800, 1000))
    runs: Any = coco_mask.frPyObjects(polygons, *large.original)
    pixels = coco_mask.decode(coco_mask.merge(runs))
    (window,) = masks.windows_around(extent(polygons, large), SIDE)
    found = [
        masks.draw_mask(encoded(pixels, plain=plain), window, large, SIDE)
        for plain in (True, False)
    ]
    np.testing.assert_array_equal(*found)
    assert_framed(found[0])
    assert_right_to_half_a_cell(found[0], finely(polygons, window, large))


@pytest.mark.parametrize("flip", [False, True])
def test_each_cell_has_the_pixel_under_its_centre(flip):
    rng = np.random.default_rng(0)
    pixels = (rng.random((9, 13)) < 0.5).astype(np.uint8)
    geometry = Geometry((9, 13), (18, 39), (40, 40), flip=flip)
    box = np.float32([[6, 4, 30, 16]])
    (window,) = masks.windows_around(box, 26)
    # In a box of 24 x 12 canvas pixels a cell is 1 x 1/2 of them.
    mask = masks.draw_mask(encoded(pixels, plain=True), window, geometry, 26)
    assert mask is not None
    shown = np.repeat(np.repeat(pixels, 4, 0), 3, 1)
    shown = shown[:, ::-1] if flip else shown
    np.testing.assert_array_equal(mask[1:-1, 1:-1], shown[8:32, 6:30])


def test_the_middle_of_a_window_is_the_box():
    box = np.float32([[10, 20, 62, 33]])
    np.testing.assert_allclose(masks.windows_around(box, 28), [[8, 19.5, 64, 33.5]])
    (window,) = masks.windows_around(box, 28)
    polygon = [10, 20, 62, 20, 62, 33, 10, 33]
    mask = masks.draw_mask([polygon], window, GEOMETRIES[0], 28)
    assert mask is not None and mask.sum() == 26 * 26 and mask[1:-1, 1:-1].all()


@pytest.mark.parametrize("side", [8, 28, 112])
@pytest.mark.parametrize("size", [1e-3, 0.3, 1.0])
def test_tiny_objects_are_drawn_as_finely_as_large_ones(side, size):
    polygon = (np.array(SQUARE).reshape(-1, 2) / 30 * size + [40.2, 30.7]).ravel()
    corners = polygon.reshape(-1, 2)
    box = np.float32([[*corners.min(0), *corners.max(0)]])
    (window,) = masks.windows_around(box, side)
    geometry = Geometry((80, 100), (80, 100), (128, 128))
    mask = masks.draw_mask([polygon.tolist()], window, geometry, side)
    assert mask is not None and mask[1:-1, 1:-1].mean() > 0.9


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        # Without area, and outside of its box.
        [[12, 12, 12, 12, 12, 12]],
        [[12, 12, 20, 12, 12, 12]],
        [[70, 60, 80, 60, 80, 70]],
        {"size": [80, 100], "counts": [8000]},
        {"size": [80, 100], "counts": [7900, 100]},
    ],
)
def test_nothing_to_draw_is_no_mask(segmentation):
    (window,) = masks.windows_around(np.float32([[10, 10, 30, 40]]), SIDE)
    assert masks.draw_mask(segmentation, window, GEOMETRIES[0], SIDE) is None


def test_what_pycocotools_would_choke_on_takes_little():
    """Outlines of as many pixels as are kept, where the window is one pixel of them."""
    rng = np.random.default_rng(0)
    zigzag = np.stack([np.linspace(0, 8000, 100_000), np.tile([0, 8000.0], 50_000)], 1)
    dust = (rng.random((30_000, 1, 2)) * 8000 + rng.random((30_000, 3, 2))).reshape(
        -1, 6
    )
    runs = {"size": [8000, 8000], "counts": [63, 64_000_000 - 64 * 63] + [63] * 63}
    geometry = Geometry((8000, 8000), (800, 800), (800, 800))
    for box in ([400.0, 400, 400.1, 400.1], [0, 0, 800, 800]):
        (window,) = masks.windows_around(np.float32([box]), 112)
        for drawn in ([zigzag.ravel().tolist()], dust.tolist(), runs):
            tracemalloc.start()
            start = time.process_time()
            masks.draw_mask(drawn, window, geometry, 112)
            seconds = time.process_time() - start
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert seconds < 5 and peak < 150e6, (box, seconds, peak)


SETTINGS = {
    "batch_size": 2,
    "canvases": ((128, 128),),
    "short_sides": (77, 83),
    "max_side": 128,
    "flip": True,
    "seed": 0,
}


def on_canvas(mask, window, size):
    """Which pixels of an image on its canvas have their centres in cells of 1."""
    side = len(mask)
    cells = [
        np.floor((np.arange(n) + 0.5 - low) / (high - low) * side).astype(int)
        for n, low, high in zip(size, window[[1, 0]], window[[3, 2]], strict=True)
    ]
    inside = [(cell >= 0) & (cell < side) for cell in cells]
    rows, columns = (cell.clip(0, side - 1) for cell in cells)
    return mask[rows][:, columns] * np.outer(*inside) > 0


def truth_of(source, index):
    """The masks of the objects that training uses, as pycocotools reads them."""
    coco = COCO()
    coco.dataset = source.ground_truth()
    coco.createIndex()
    (image,) = (coco.imgs[i] for i in [source[index].image_id])
    found = [a for a in coco.imgToAnns[image["id"]] if not a["iscrowd"] and a["area"]]
    return [coco.annToMask(annotation) for annotation in found]


def read(source, mask_size=56, index=None, **settings):
    targets = functools.partial(padded_boxes, max_boxes=4, mask_size=mask_size)
    index = np.arange(len(source)) if index is None else index
    return train_loader(source, targets, index=index, **(SETTINGS | settings))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    coco_folder.write_coco_folder(folder / "coco", "val")
    return make_source(
        "coco_instances", "val", folder / "data", folder=str(folder / "coco")
    )


@pytest.mark.parametrize("flip", [False, True])
def test_masks_of_a_batch_lie_on_their_objects(source, flip):
    """Polygons, compressed and plain runs, at scales that are no whole numbers."""
    sides = set()
    for index in np.flatnonzero(source.num_boxes):
        truth = truth_of(source, index)
        loader = read(source, index=np.array([index]), flip=flip, batch_size=1)
        for _ in range(2):
            batch = next(loader)
            height, width = batch["sizes"][0]
            assert batch["masks"].shape == (1, 4, 56, 56)
            assert batch["mask_windows"].dtype == np.float32
            scale = batch["sizes"][0] / source.sizes[index]
            plain = source[index].boxes * np.tile(scale[::-1], 2)
            flipped = np.abs(batch["boxes"][0, : len(plain)] - plain).max() > 0.1
            sides.add(bool(flipped))
            for row, pixels in enumerate(truth):
                assert_framed(batch["masks"][0, row])
                shown = on_canvas(
                    batch["masks"][0, row],
                    batch["mask_windows"][0, row],
                    (height, width),
                )
                expected = cv2.resize(pixels.astype(np.float32), (width, height)) > 0.5
                expected = expected[:, ::-1] if flipped else expected
                overlap = (shown & expected).sum() / (shown | expected).sum()
                assert overlap > 0.85, (index, row, overlap)
            assert not batch["masks"][0, len(truth) :].any()
            assert not batch["mask_windows"][0, len(truth) :].any()
    assert sides == ({False, True} if flip else {False})


def test_the_same_batches_each_time_and_when_resumed(source):
    loader = read(source)
    first = [next(loader) for _ in range(6)]
    resumed = read(source)
    resumed.set_state(json.loads('{"next_index": 3}'))
    for expected in first[3:]:
        batch = next(resumed)
        assert batch.keys() == expected.keys() >= {"masks", "mask_windows"}
        for name, value in batch.items():
            np.testing.assert_array_equal(value, expected[name])


def test_no_masks_where_none_are_wanted(source):
    assert next(read(source, mask_size=0)).keys().isdisjoint({"masks", "mask_windows"})


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_masks_lie_on_a_photograph_that_is_turned(tmp_path, orientation):
    """Annotations mean the image as it is shown; here, its bright part."""
    content = coco_folder.write_coco_folder(tmp_path / "coco", "val")
    pixels = np.zeros((60, 40), np.uint8)
    pixels[10:24, 5:15] = pixels[10:16, 15:30] = 1
    image = content["images"][0] | {"height": 60, "width": 40}
    annotation = content["annotations"][0] | {
        "bbox": [5, 10, 25, 14],
        "segmentation": encoded(pixels, plain=False),
    }
    content.update(images=[image], annotations=[annotation])
    coco_folder.write_instances(tmp_path / "coco", "val", content)
    path = tmp_path / "coco" / "val" / image["file_name"]
    stored = np.rot90(pixels, {3: 2, 6: 1, 8: -1}[orientation])
    path.write_bytes(cv2.imencode(".jpg", 255 * stored)[1].tobytes())
    coco_folder.tag(path, orientation)
    folder = str(tmp_path / "coco")
    source = make_source(
        "coco_instances", "val", tmp_path / "data", folder=folder, upright=True
    )
    for _, batch in zip(range(4), read(source, index=np.arange(1)), strict=False):
        for row in range(2):
            height, width = batch["sizes"][row]
            window, mask = batch["mask_windows"][row, 0], batch["masks"][row, 0]
            shown = on_canvas(mask, window, (height, width))
            bright = batch["images"][row, :height, :width, 0] > 127
            assert (shown & bright).sum() / (shown | bright).sum() > 0.9


def test_an_object_without_a_mask_has_a_window_without_area():
    empty, bad = [], [[70.0, 60, 80, 60, 80, 70]]
    boxes = np.float32([[5, 5, 30, 30], [10, 10, 40, 40], [20, 15, 50, 45]])
    example = Example(
        np.zeros((80, 100, 3), np.uint8),
        1,
        boxes,
        np.int32([1, 2, 3]),
        [empty, bad, [SQUARE]],
    )
    rows = padded_boxes(example, GEOMETRIES[0], 4, SIDE)
    assert rows["valid"].tolist() == [True, True, True, False]
    assert rows["masks"].any((1, 2)).tolist() == [False, False, True, False]
    assert rows["mask_windows"].any(1).tolist() == [False, False, True, False]
    np.testing.assert_array_equal(rows["boxes"][:3], boxes)


def test_masks_follow_the_boxes_that_are_kept():
    """One has no width when it is mirrored, and one is over the number of rows."""
    thin = [0.01, 1, np.nextafter(np.float32(0.01), np.float32(1)), 5]
    example = Example(
        np.zeros((80, 100, 3), np.uint8),
        1,
        np.float32([thin, [20, 15, 50, 45], [1, 1, 9, 9]]),
        np.int32([1, 2, 3]),
        [[[0.0, 1, 1, 1, 1, 5]], [SQUARE], [[1.0, 1, 9, 1, 9, 9]]],
    )
    rows = padded_boxes(example, GEOMETRIES[1], 1, SIDE)
    assert rows["labels"].tolist() == [2]
    assert rows["masks"][0, 1:-1, 1:-1].all()


class Crowded:
    """Stands in for a `Source`: large images of 100 objects with long outlines."""

    def __init__(self):
        self.sizes = np.array([[3000, 4000]] * 8)
        self._image = np.zeros((3000, 4000, 3), np.uint8)
        angles = np.linspace(0, 2 * np.pi, 500, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], 1)
        self._polygon = (1400 * circle + [2000, 1500]).ravel().tolist()

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        boxes = np.float32([[600, 100, 3400, 2900]] * 100)
        labels = np.ones(100, np.int32)
        return Example(self._image, index, boxes, labels, [[self._polygon]] * 100)


def test_a_full_batch_takes_the_memory_of_its_masks():
    targets = functools.partial(padded_boxes, max_boxes=100, mask_size=112)
    settings = SETTINGS | {"batch_size": 8, "max_side": 64, "canvases": ((64, 64),)}
    source = Crowded()
    loader = train_loader(source, targets, index=np.arange(8), num_epochs=1, **settings)
    tracemalloc.start()
    try:
        batch = next(loader)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        loader.close()
    assert batch["masks"].any((2, 3)).all()
    held = sum(array.nbytes for array in batch.values())
    assert held < 12e6
    # The rows, and the batch that they are stacked to.
    assert peak < 2 * held + 15e6
