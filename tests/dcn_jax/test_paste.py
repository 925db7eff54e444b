"""Pasting of masks against mmdetection, detectron2 and a plain loop; its edges."""

import math
import tracemalloc

import jaxtyping
import numpy as np
import pytest

from dcn_jax.detection.paste import paste_mask
from tests.support.golden import GOLDEN


@pytest.mark.parametrize("peer", ["mmdet", "detectron2"])
def test_masks_are_the_peers(peer):
    golden = np.load(GOLDEN / f"paste_mask_{peer}.npz")
    size = golden["pasted"].shape[1:]
    for mask, box, pasted, unsure in zip(
        *(golden[name] for name in ("masks", "boxes", "pasted", "unsure")), strict=True
    ):
        found = paste_mask(mask, box, size)
        assert found.shape == size and found.dtype == bool
        np.testing.assert_array_equal(found[unsure == 0], pasted[unsure == 0] == 1)
    # Most of the boxes are small, and random weights leave few of them empty.
    assert golden["pasted"].any((1, 2)).sum() > 15


def sampled(mask, box, size):
    """The probability at every pixel's centre, one after the other."""
    x1, y1, x2, y2 = (float(v) for v in box)
    values = np.zeros(size)
    count = len(mask)
    for i, j in np.ndindex(*size):
        y = (i + 0.5 - y1) / (y2 - y1) * count - 0.5
        x = (j + 0.5 - x1) / (x2 - x1) * count - 0.5
        for r in (math.floor(y), math.floor(y) + 1):
            for c in (math.floor(x), math.floor(x) + 1):
                if 0 <= r < count and 0 <= c < count:
                    values[i, j] += mask[r, c] * (1 - abs(y - r)) * (1 - abs(x - c))
    return values


@pytest.mark.parametrize(
    "box",
    [
        *([3.2, 4.1, 17.7, 11.3], [0, 0, 24, 20], [5, 6, 15, 16], [5.5, 6.5, 14.5, 12]),
        *([-9.5, -3, 7.3, 30], [20.2, 15.1, 60, 90], [-40, -30, 70, 60]),
        *(
            [7.1, 8.2, 7.9, 19],
            [7.4, 3, 7.6, 9],
            [7.6, 3, 8.4, 9],
            [-1e4, -1e3, 1e4, 1e3],
        ),
        *([-30, 2, -5, 9], [30, 2, 50, 9], [24, 0, 30, 20], [-6, 0, 0, 20]),
    ],
)
@pytest.mark.parametrize("count", [1, 5, 28])
def test_it_is_bilinear_at_the_centres_of_pixels(box, count):
    rng = np.random.default_rng(0)
    for mask in (rng.random((count, count)), np.ones((count, count))):
        mask, corners = mask.astype(np.float32), np.float32(box)
        values = sampled(mask, corners, (20, 24))
        sure = np.abs(values - 0.5) > 1e-4
        found = paste_mask(mask, corners, (20, 24))
        np.testing.assert_array_equal(found[sure], values[sure] >= 0.5)


def test_a_full_mask_fills_the_pixels_with_centres_in_the_box():
    mask = np.ones((28, 28), np.float32)
    found = paste_mask(mask, np.float32([2.3, 1.2, 6.7, 3.9]), (8, 9))
    expected = np.zeros((8, 9), bool)
    expected[1:4, 2:7] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "box",
    [
        *([4, 4, 4, 9], [4, 4, 9, 4], [9, 4, 5, 8], [4, 4, 4, 4], [np.nan, 4, 9, 9]),
        *([4, 4, 9, np.nan], [4, -np.inf, 9, 9], [-np.inf, -np.inf, np.inf, np.inf]),
        *([50, 4, 60, 9], [4, -9, 9, -1], [1e30, 1e30, 3e38, 3e38]),
    ],
)
def test_what_holds_nothing(box):
    found = paste_mask(np.ones((28, 28), np.float32), np.float32(box), (20, 30))
    assert found.shape == (20, 30) and not found.any()


def test_a_box_beyond_all_bounds_shows_the_middle_of_its_mask():
    mask = np.zeros((3, 3), np.float32)
    mask[1, 1] = 1
    found = paste_mask(mask, np.float32([-3e38, -3e38, 3e38, 3e38]), (20, 30))
    assert found.all()


def test_undefined_probabilities_are_outside():
    mask = np.full((4, 4), np.nan, np.float32)
    assert not paste_mask(mask, np.float32([1, 1, 9, 9]), (10, 10)).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(dtype):
    mask = (np.arange(16).reshape(4, 4) / 16).astype(np.float32)
    box = np.float32([1, 1, 9, 9])
    np.testing.assert_array_equal(
        paste_mask(mask.astype(dtype), box.astype(np.float64), (10, 10)),
        paste_mask(mask, box, (10, 10)),
    )


def test_a_large_image_takes_little_beside_its_mask():
    mask, size = np.ones((28, 28), np.float32), (5000, 6000)
    tracemalloc.start()
    try:
        found = paste_mask(mask, np.float32([-1e6, -1e6, 1e6, 1e6]), size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.all() and found.T.flags.c_contiguous
    assert peak < 30e6 + 40e6


@pytest.mark.parametrize(
    ("mask", "box", "message"),
    [
        ((3, 4), (4,), r"`mask` has shape \(3, 4\); expected \(m, m\)"),
        ((0, 0), (4,), r"`mask` has shape \(0, 0\); expected \(m, m\)"),
        ((1, 3, 3), (4,), r"`mask` has shape \(1, 3, 3\); expected \(m, m\)"),
        ((3, 3), (1, 4), r"`box` has shape \(1, 4\); expected \(4,\): x1 y1 x2 y2"),
    ],
)
def test_wrong_shapes(mask, box, message, monkeypatch):
    # As for users, whose calls no type checker looks at.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        paste_mask(np.zeros(mask, np.float32), np.zeros(box, np.float32), (9, 9))
