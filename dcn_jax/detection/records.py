"""Fixed-shape records that cross the detector's entries.

Shape letters: N images, H W canvas size, M ground-truth boxes of an image (padded),
D detections of an image (padded), S side of ground-truth masks, m side of predicted
ones.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Float32, Int32, Num, UInt8


class Batch(NamedTuple):
    """Images with their ground truth.

    Boxes are x1 y1 x2 y2 in canvas pixels, without +1. A padding row of the ground
    truth has `valid` False; its box and label are ignored.
    """

    images: Num[Array, "N H W 3"]  # uint8 or float32, RGB 0..255, zero-padded
    sizes: Int32[Array, "N 2"]  # (height, width) of the part that is image
    boxes: Float[Array, "N M 4"]
    labels: Int32[Array, "N M"]  # 1..num_classes; 0 in padding rows
    valid: Bool[Array, "N M"]
    # 1 inside of each object, 0 outside; None where masks are not learned.
    masks: UInt8[Array, "N M S S"] | None = None
    # x1 y1 x2 y2 in canvas pixels that the S x S pixels of a mask cover. Of no area
    # where an object has no mask.
    mask_windows: Float32[Array, "N M 4"] | None = None


class Detections(NamedTuple):
    """What a detector found, by falling score."""

    boxes: Float[Array, "N D 4"]  # x1 y1 x2 y2 in canvas pixels
    scores: Float[Array, "N D"]
    labels: Int32[Array, "N D"]  # 1..num_classes
    valid: Bool[Array, "N D"]  # False in the rows that fill up to D
    # Probabilities over the box; None where the network has no masks.
    masks: Float[Array, "N D m m"] | None = None
