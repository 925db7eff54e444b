"""What training does to images and boxes: small numpy functions.

Images are [H, W, 3] uint8 RGB; sizes are (height, width) in pixels; boxes are
[M, 4] as x1 y1 x2 y2 in pixels of the image they belong to.
"""

import numpy as np
from jaxtyping import Float, UInt8


def scale_boxes(
    boxes: Float[np.ndarray, "M 4"], scale: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "M 4"]:
    """Scales boxes by (y, x) factors: new size / old size."""
    factors = np.asarray(scale, np.float32)[[1, 0, 1, 0]]
    return boxes * factors


def clip_boxes(
    boxes: Float[np.ndarray, "M 4"], size: tuple[int, int]
) -> Float[np.ndarray, "M 4"]:
    """Clips boxes to an image of `size`."""
    height, width = size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes, np.float32(0), limits)


def crop_boxes(
    boxes: Float[np.ndarray, "M 4"], corner: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "M 4"]:
    """Boxes in the window of `size` that begins at `corner`, (top, left)."""
    top, left = corner
    return clip_boxes(boxes - np.array([left, top, left, top], np.float32), size)


def flip_image(image: UInt8[np.ndarray, "H W *c"]) -> UInt8[np.ndarray, "H W *c"]:
    """Mirrors an image or a label map left to right."""
    return image[:, ::-1]


def flip_boxes(boxes: Float[np.ndarray, "M 4"], width: int) -> Float[np.ndarray, "M 4"]:
    """Mirrors boxes left to right in an image of `width`."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)
