"""The loader: whole batches of one canvas, exact resume, disjoint shares."""

import functools
import json

import numpy as np
import pytest

from dcn_jax.images.fit import place, resize
from dcn_jax.images.geometry import Geometry
from train.data import Example, eval_loader, make_source, train_loader, transforms
from train.data.loader import plan_batches
from train.tasks.detection import padded_boxes

CANVASES = ((48, 80), (80, 48), (64, 64))
SETTINGS = {
    "batch_size": 4,
    "canvases": CANVASES,
    "short_sides": (40,),
    "max_side": 80,
    "flip": False,
    "seed": 7,
}
EVAL = {"batch_size": 4, "canvases": CANVASES, "short_side": 40, "max_side": 80}


# Rows of at most three boxes.
TARGETS = functools.partial(padded_boxes, max_boxes=3)


def usable(source) -> np.ndarray:
    return np.flatnonzero(source.num_boxes > 0)


def open_loader(source, index=None, targets=TARGETS, **settings):
    """Iterates over the pictures, by default those with boxes."""
    index = usable(source) if index is None else index
    return train_loader(source, targets, index=index, **settings)


class Pictures:
    """Stands in for a `Source`: image i is gray i, and its box i % 4 is white."""

    def __init__(self, count: int):
        shapes = np.array([(30, 50), (50, 30), (40, 40), (20, 90)])
        self.sizes = shapes[np.arange(count) % 4]
        self.num_boxes = np.arange(count) % 5

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        height, width = self.sizes[index]
        image = np.full((height, width, 3), index, np.uint8)
        image[2:10, 4:16] = 255
        boxes = np.array([[4, 2, 16, 10]] * self.num_boxes[index], np.float32)
        labels = np.arange(1, len(boxes) + 1, dtype=np.int32)
        masks = [[[4, 2, 16, 2, 16, 10, 4, 10]]] * len(boxes)
        return Example(image, 1000 + int(index), boxes.reshape(-1, 4), labels, masks)


@pytest.fixture
def pictures() -> Pictures:
    return Pictures(37)


def _images_shown(batches: list[dict]) -> list[int]:
    """Which pictures batches show: the gray of the last valid pixel."""
    return [
        int(image[height - 1, width - 1, 0])
        for batch in batches
        for image, (height, width) in zip(batch["images"], batch["sizes"], strict=True)
    ]


def _assert_equal(left: list[dict], right: list[dict]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype


def test_shapes_and_types(pictures):
    batch = next(open_loader(pictures, **SETTINGS))
    shapes = {key: (value.shape[1:], str(value.dtype)) for key, value in batch.items()}
    canvas = batch["images"].shape[1:3]
    assert canvas in CANVASES
    assert shapes == {
        "images": ((*canvas, 3), "uint8"),
        "sizes": ((2,), "int32"),
        "boxes": ((3, 4), "float32"),
        "labels": ((3,), "int32"),
        "valid": ((3,), "bool"),
    }
    assert all(len(value) == 4 for value in batch.values())


def test_an_epoch_shows_every_usable_image(pictures):
    for index in (usable(pictures), np.arange(37)):
        batches = list(open_loader(pictures, index, **SETTINGS, num_epochs=1))
        wanted = set(index.tolist())
        shown = _images_shown(batches)
        assert set(shown) == wanted
        # Only the last batch of each canvas repeats images to be whole.
        assert len(shown) - len(wanted) < 4 * len(CANVASES)


def test_a_batch_has_one_canvas_and_zero_padding(pictures):
    for batch in open_loader(pictures, **SETTINGS, num_epochs=1):
        shown = _images_shown([batch])
        for image, size, index in zip(
            batch["images"], batch["sizes"], shown, strict=True
        ):
            height, width = size
            assert (image[height:] == 0).all() and (image[:, width:] == 0).all()
            # 30 x 50 -> 40 x 67, 40 x 40 stays, 20 x 90 -> 18 x 80 (max_side).
            expected = [(40, 67), (67, 40), (40, 40), (18, 80)][index % 4]
            assert tuple(size) == expected
            smallest = [(48, 80), (80, 48), (48, 80), (48, 80)][index % 4]
            assert image.shape[:2] == smallest


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_lie_on_what_they_mark(pictures, flip):
    settings = {**SETTINGS, "flip": flip}
    sides = set()
    for batch in open_loader(pictures, **settings, num_epochs=2):
        for row, image in enumerate(batch["images"]):
            x1, y1, x2, y2 = batch["boxes"][row, 0]
            height, width = batch["sizes"][row]
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            middle = image[int((y1 + y2) / 2), int((x1 + x2) / 2)]
            assert (middle > 250).all()
            ys, xs = np.nonzero(image[..., 0] > 140)
            found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_allclose(found, batch["boxes"][row, 0], atol=1.1)
            sides.add(bool(x1 > width - x2))
    assert sides == ({False, True} if flip else {False})


def test_boxes_are_padded_and_cut(pictures):
    for batch in open_loader(pictures, **SETTINGS, num_epochs=1):
        for row, index in enumerate(_images_shown([batch])):
            count = min(index % 5, 3)
            assert batch["valid"][row].tolist() == [i < count for i in range(3)]
            labels = [1, 2, 3][:count] + [0] * (3 - count)
            assert batch["labels"][row].tolist() == labels
            assert (batch["boxes"][row, count:] == 0).all()


def test_short_sides_are_drawn_from_the_list(pictures):
    settings = {**SETTINGS, "short_sides": (20, 30), "canvases": ((80, 80),)}
    shorts = set()
    for batch in open_loader(pictures, **settings, num_epochs=2):
        square = batch["sizes"][:, 0] == batch["sizes"][:, 1]
        shorts |= set(batch["sizes"][square, 0].tolist())
    assert shorts == {20, 30}


def test_the_seed_fixes_the_order_and_epochs_differ(pictures):
    settings = {**SETTINGS, "flip": True, "short_sides": (30, 40)}
    runs = [list(open_loader(pictures, **settings, num_epochs=3)) for _ in range(2)]
    _assert_equal(*runs)
    other = list(open_loader(pictures, **{**settings, "seed": 8}, num_epochs=3))
    assert _images_shown(other) != _images_shown(runs[0])
    third = len(runs[0]) // 3
    assert _images_shown(runs[0][:third]) != _images_shown(runs[0][third : 2 * third])


@pytest.mark.parametrize("taken", [0, 1, 5, 11, 26])
def test_resume_reads_the_same_batches(pictures, taken):
    settings = {**SETTINGS, "flip": True, "short_sides": (20, 30, 40)}
    loader = open_loader(pictures, **settings)
    for _ in range(taken):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    rest = [next(loader) for _ in range(6)]
    resumed = open_loader(pictures, **settings)
    resumed.set_state(state)
    _assert_equal([next(resumed) for _ in range(6)], rest)
    # An iterator can also be set back.
    loader.set_state(state)
    _assert_equal([next(loader) for _ in range(6)], rest)


def test_resume_with_worker_processes(tmp_path):
    source = make_source(
        "deformed_digits", "train", tmp_path, train_images=6, test_images=1
    )
    settings = {**SETTINGS, "batch_size": 2, "flip": True}
    settings["targets"] = functools.partial(padded_boxes, max_boxes=3, mask_size=16)
    expected = open_loader(source, **settings)
    assert next(expected)["masks"].any()
    # With another number of workers than it had.
    resumed = open_loader(source, **settings, workers=1)
    resumed.set_state(json.loads(json.dumps(expected.get_state())))
    _assert_equal([next(resumed) for _ in range(3)], [next(expected) for _ in range(3)])
    assert resumed.get_state() == expected.get_state()
    resumed.close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_with_workers(pictures, workers):
    for read, settings in (
        (open_loader, {**SETTINGS, "flip": True, "num_epochs": 2}),
        (eval_loader, EVAL),
    ):
        loader = read(pictures, **settings, workers=workers)
        _assert_equal(list(loader), list(read(pictures, **settings)))
        loader.close()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_batch(pictures, count):
    settings = {**SETTINGS, "flip": True, "num_epochs": 1}
    whole = list(open_loader(pictures, **settings))
    shares = [
        list(open_loader(pictures, **settings, process_index=i, process_count=count))
        for i in range(count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    _assert_equal(joined, whole)


def test_evaluation_has_ground_truth_where_it_is_asked_for(pictures):
    targets = functools.partial(padded_boxes, max_boxes=3)
    plain, full = (list(eval_loader(pictures, t, **EVAL)) for t in (None, targets))
    for without, with_boxes in zip(plain, full, strict=True):
        _assert_equal([{name: with_boxes[name] for name in without}], [without])
        for row, image_id in enumerate(with_boxes["image_id"]):
            if image_id < 0:
                continue
            boxes = pictures[image_id - 1000].boxes[:3]
            scale = with_boxes["sizes"][row] / with_boxes["original_sizes"][row]
            valid = with_boxes["valid"][row]
            np.testing.assert_allclose(
                with_boxes["boxes"][row][valid], boxes * scale[[1, 0, 1, 0]], rtol=1e-6
            )


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_shows_every_image_once(pictures, count):
    shares = [
        list(eval_loader(pictures, **EVAL, process_index=i, process_count=count))
        for i in range(count)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    ids = np.concatenate([batch["image_id"] for batch in batches])
    assert sorted(ids[ids >= 0]) == list(range(1000, 1037))
    for batch in batches:
        assert batch["images"].shape[0] == 4 // count
        for row, image_id in enumerate(batch["image_id"]):
            if image_id >= 0:
                assert _images_shown([batch])[row] == image_id - 1000
                original = pictures.sizes[image_id - 1000]
                assert (batch["original_sizes"][row] == original).all()


def test_targets_are_told_where_the_image_lies(pictures):
    """A label map, made by the loader's own steps, lies on its image to the pixel."""

    def label_map(example: Example, geometry: Geometry) -> dict[str, np.ndarray]:
        assert geometry.original == example.image.shape[:2]
        image = resize(example.image, geometry.size)
        image = transforms.flip_image(image) if geometry.flip else image
        return {"truth": place(image, geometry.canvas)[..., 0]}

    settings = {**SETTINGS, "flip": True, "short_sides": (30, 40), "num_epochs": 1}
    for batch in train_loader(pictures, label_map, index=np.arange(37), **settings):
        assert batch.keys() == {"images", "sizes", "truth"}
        np.testing.assert_array_equal(batch["truth"], batch["images"][..., 0])


def test_mirrored_boxes_stay_in_32_bits():
    """In more, boxes without a width in 32 would pass for some."""
    boxes = np.float32([[0.01, 1, np.nextafter(np.float32(0.01), np.float32(1)), 5]])
    example = Example(np.zeros((8, 64, 3), np.uint8), 1, boxes, np.int32([1]), [[]])
    for flip, seen in ((False, True), (True, False)):
        size = np.array([8, 64])
        geometry = Geometry.of(example.image.shape[:2], size, size, flip=flip)
        assert padded_boxes(example, geometry, 3)["valid"][0] == seen


def test_plan_keeps_order_and_marks_what_it_repeats():
    index = np.array([5, 6, 7, 8, 9])
    canvas = np.array([1, 0, 1, 1, 0])
    size = np.stack([index, index], 1)
    plan = plan_batches(index, canvas, size, index > 7, 2)
    assert plan.index.tolist() == [[6, 9], [5, 7], [8, 5]]
    assert plan.canvas.tolist() == [0, 1, 1]
    assert plan.filler.tolist() == [[False, False], [False, False], [False, True]]
    assert plan.flip.tolist() == [[False, True], [False, False], [True, False]]
    assert plan.size[..., 0].tolist() == plan.index.tolist()


def test_wrong_arguments(pictures):
    with pytest.raises(ValueError, match=r"`batch_size` is 4; .* of the 3 processes"):
        open_loader(pictures, **SETTINGS, process_index=0, process_count=3)
    with pytest.raises(ValueError, match="`batch_size` is 0; expected a positive"):
        eval_loader(pictures, **{**EVAL, "batch_size": 0})
    with pytest.raises(ValueError, match="`index` is empty; expected images to train"):
        open_loader(Pictures(1), **SETTINGS)
    with pytest.raises(ValueError, match="`canvases` is"):
        next(open_loader(pictures, **{**SETTINGS, "canvases": ((0, 4),)}))
    with pytest.raises(ValueError, match="`short_sides` is"):
        open_loader(pictures, **{**SETTINGS, "short_sides": ()})
