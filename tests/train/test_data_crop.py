"""Random crops: fixed by the seed, within the image, and without a trace when off."""

import functools
import json

import numpy as np
import pytest

from dcn_jax.images.fit import fit_canvases, resize, resized_sizes
from dcn_jax.images.geometry import Geometry
from tests.train.test_data_loader import SETTINGS, Pictures
from train.data import Example, label_maps, train_loader
from train.tasks.detection import padded_boxes

CROP = (32, 48)
CROPPED = SETTINGS | {"crop": CROP, "short_sides": (24, 40, 56), "flip": True}
INDEX = np.arange(37)


def everything(example: Example, geometry: Geometry) -> dict[str, np.ndarray]:
    """The image made by hand, its geometry, and its boxes."""
    image = resize(example.image, geometry.size)
    image = image[:, ::-1] if geometry.flip else image
    top, left = geometry.corner
    image = image[top : top + geometry.canvas[0], left : left + geometry.canvas[1]]
    canvas = np.zeros((*geometry.canvas, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    assert geometry.shown == image.shape[:2]
    labels = label_maps.on_canvas(example.image[..., 0] // 2, geometry)
    rows = {"expected": canvas, "corner": np.array(geometry.corner), "map": labels}
    return (
        rows | {"resized": np.array(geometry.size)} | padded_boxes(example, geometry, 3)
    )


def test_an_image_and_what_belongs_to_it_are_cropped_alike():
    batches = train_loader(Pictures(37), everything, index=INDEX, **CROPPED)
    corners = []
    for _, batch in zip(range(20), batches, strict=False):
        assert batch["images"].shape[1:3] == CROP
        np.testing.assert_array_equal(batch["images"], batch["expected"])
        room = np.maximum(batch["resized"] - CROP, 0)
        assert (batch["corner"] >= 0).all() and (batch["corner"] <= room).all()
        shown = np.minimum(batch["resized"] - batch["corner"], CROP)
        np.testing.assert_array_equal(batch["sizes"], shown)
        corners += batch["corner"][room > 8].tolist()
        for image, labels, (height, width) in zip(
            batch["images"], batch["map"], shown, strict=True
        ):
            assert (labels[height:] == 255).all() and (labels[:, width:] == 255).all()
            away = np.abs(labels[:height, :width] - (image[:height, :width, 0] // 2.0))
            # But where the image is interpolated.
            assert (away > 3).mean() < 0.2
    # All along the room that there is.
    assert len(set(corners)) > 15


def test_boxes_are_cut_at_the_window():
    example = Example(
        np.zeros((40, 60, 3), np.uint8),
        1,
        np.float32([[4, 2, 16, 10], [30, 20, 50, 38], [0, 0, 60, 40]]),
        np.int32([1, 2, 3]),
        [[[30.0, 20, 50, 20, 50, 38, 30, 38]]] * 3,
    )
    geometry = Geometry.of((40, 60), (80, 120), CROP, corner=(30, 50))
    rows = padded_boxes(example, geometry, 3, 16)
    # Twice as large, moved, and cut; the first is not seen.
    expected = [[10, 10, 48, 32], [0, 0, 48, 32], [0, 0, 0, 0]]
    np.testing.assert_array_equal(rows["boxes"], np.float32(expected))
    assert rows["labels"].tolist() == [2, 3, 0]
    assert rows["masks"][0, 1:-1, 1:-1].all()
    # In the window of the third, the second's polygon lies where its box does.
    cells = rows["masks"][1]
    assert cells[-2, -2] == 1 and cells[1, 1] == 0 and 0.3 < cells.mean() < 0.7
    mirrored = padded_boxes(example, geometry._replace(flip=True, corner=(30, 0)), 3)
    np.testing.assert_array_equal(mirrored["boxes"][0], [20, 10, 48, 32])


def test_the_seed_fixes_the_crops():
    settings = {**CROPPED, "targets": functools.partial(padded_boxes, max_boxes=3)}
    first, again, other = (
        train_loader(Pictures(37), index=INDEX, **(settings | {"seed": seed}))
        for seed in (1, 1, 2)
    )
    for _ in range(5):
        next(first)
    again.set_state(json.loads(json.dumps(first.get_state())))
    one, two = next(first), next(again)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert (one["images"] != next(other)["images"]).any()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_cropped_batches(count):
    targets = functools.partial(padded_boxes, max_boxes=3)
    whole, *shares = (
        train_loader(
            Pictures(37), targets, index=INDEX, **CROPPED,
            process_index=i, process_count=n,
        )
        for i, n in [(0, 1), *((i, count) for i in range(count))]
    )  # fmt: skip
    parts = [next(share) for share in shares]
    for name, rows in next(whole).items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), rows)


def test_without_a_crop_nothing_is_drawn_for_it():
    """Sizes, mirroring and order of an epoch are those of a plain generator."""
    pictures = Pictures(37)
    settings = SETTINGS | {"short_sides": (30, 40), "flip": True, "num_epochs": 1}
    rng = np.random.default_rng([settings["seed"], 0])
    index = rng.permutation(INDEX)
    short_sides = rng.choice(np.array([30, 40]), 37)
    flip = rng.random(37) < 0.5
    size = resized_sizes(pictures.sizes[index], short_sides, 80)
    _, size = fit_canvases(size, settings["canvases"])
    expected = {
        int(i): (*s.tolist(), bool(f))
        for i, s, f in zip(index, size, flip, strict=True)
    }
    seen = {}

    def note(example, geometry):
        seen[example.image_id - 1000] = (*geometry.size, geometry.flip)
        assert geometry.corner == (0, 0) and geometry.shown == geometry.size
        return {}

    batches = list(train_loader(pictures, note, index=INDEX, **settings))
    assert seen == expected
    order = rng.permutation(len(batches))
    assert sorted(order.tolist()) == list(range(len(batches)))
