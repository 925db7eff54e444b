"""What training does to boxes and images against values worked out by hand."""

import numpy as np

from train.data import transforms


def test_boxes_by_hand():
    boxes = np.array([[1, 2, 5, 8], [0, 0, 20, 10]], np.float32)
    flipped = transforms.flip_boxes(boxes, 20)
    np.testing.assert_array_equal(flipped, [[15, 2, 19, 8], [0, 0, 20, 10]])
    scaled = transforms.scale_boxes(boxes, np.array([2.0, 0.5]))
    np.testing.assert_array_equal(scaled, [[0.5, 4, 2.5, 16], [0, 0, 10, 20]])
    clipped = transforms.clip_boxes(np.array([[-3, 1, 25, 12.5]], np.float32), (10, 20))
    np.testing.assert_array_equal(clipped, [[0, 1, 20, 10]])
    for result in (flipped, scaled, clipped):
        assert result.dtype == np.float32
    assert transforms.flip_boxes(boxes[:0], 20).shape == (0, 4)


def test_flipping_twice_changes_nothing():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (9, 13, 3)).astype(np.uint8)
    twice = transforms.flip_image(transforms.flip_image(image))
    np.testing.assert_array_equal(twice, image)
    boxes = rng.integers(0, 13, (5, 4)).astype(np.float32)
    twice = transforms.flip_boxes(transforms.flip_boxes(boxes, 13), 13)
    np.testing.assert_array_equal(twice, boxes)


def test_a_flipped_box_covers_the_same_pixels():
    image = np.zeros((10, 16, 3), np.uint8)
    image[2:5, 3:9] = 7
    box = transforms.flip_boxes(np.array([[3, 2, 9, 5]], np.float32), 16)
    x1, y1, x2, y2 = box[0].astype(int)
    flipped = transforms.flip_image(image)
    assert (flipped[y1:y2, x1:x2] == 7).all() and (flipped > 0).sum() == 3 * 6 * 3
