"""Fixed-shape records that cross a segmentation network's entries.

Shape letters: N images, H W canvas size.
"""

from typing import NamedTuple

from jax import export
from jaxtyping import Array, Int32, Integer, Num, UInt8

# A pixel that is not judged, as in the files of VOC and Cityscapes' training labels.
IGNORED = 255


class Batch(NamedTuple):
    """Images with the label of every pixel."""

    images: Num[Array, "N H W 3"]  # uint8 or float32, RGB 0..255, zero-padded
    sizes: Int32[Array, "N 2"]  # (height, width) of the part that is image
    labels: Integer[Array, "N H W"]  # from 0; IGNORED counts not


class LabelMaps(NamedTuple):
    """What a network says of every pixel."""

    labels: UInt8[Array, "N H W"]  # from 0; IGNORED on the padding


# So that a program that returns them can be exported, and loaded elsewhere.
export.register_namedtuple_serialization(LabelMaps, serialized_name="dcn_jax.LabelMaps")
