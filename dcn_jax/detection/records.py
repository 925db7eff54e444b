"""Fixed-shape records that cross the detector's entries.

Shape letters: N images, H W canvas size, M ground-truth boxes of an image (padded),
D detections of an image (padded), S side of a ground-truth mask, m of a detected one.
"""

from typing import NamedTuple

from jax import export
from jaxtyping import Array, Bool, Float, Float32, Int32, Num, UInt8


class Batch(NamedTuple):
    """Images with their ground truth.

    Boxes are x1 y1 x2 y2 in canvas pixels, without +1. A padding row of the ground
    truth has `valid` False; its box and label are ignored.

    A mask lies in a window, a rectangle in canvas pixels that is divided into S x S
    equal cells: pixel (i, j) of the mask covers cell (i, j). The middle S - 2 rows and
    columns of cells cover the object's box; those around them are 0. An object without
    a mask, as a padding row, has a window of zeros.
    """

    images: Num[Array, "N H W 3"]  # uint8 or float32, RGB 0..255, zero-padded
    sizes: Int32[Array, "N 2"]  # (height, width) of the part that is image
    boxes: Float[Array, "N M 4"]
    labels: Int32[Array, "N M"]  # 1..num_classes; 0 in padding rows
    valid: Bool[Array, "N M"]
    # 1 inside of the object, 0 outside; None where no masks are learned.
    masks: UInt8[Array, "N M S S"] | None = None
    mask_windows: Float32[Array, "N M 4"] | None = None  # x1 y1 x2 y2


class Detections(NamedTuple):
    """What a detector found, by falling score."""

    boxes: Float[Array, "N D 4"]  # x1 y1 x2 y2 in canvas pixels
    scores: Float[Array, "N D"]
    labels: Int32[Array, "N D"]  # 1..num_classes
    valid: Bool[Array, "N D"]  # False in the rows that fill up to D
    # Probabilities of the detection's class over its box; None where a network has no
    # masks.
    masks: Float[Array, "N D m m"] | None = None


# So that a program that returns them can be exported, and loaded elsewhere.
export.register_namedtuple_serialization(
    Detections, serialized_name="dcn_jax.Detections"
)
