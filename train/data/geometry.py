"""Where an image lies on its canvas: what the loader decides, and a task is told."""

from collections.abc import Iterable
from typing import NamedTuple


class Geometry(NamedTuple):
    """How an image came onto its canvas; every size is (height, width) in pixels.

    It was resized from `original` to `size`, mirrored where `flip` says so, and put
    into the top left corner.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    canvas: tuple[int, int]
    flip: bool = False

    @classmethod
    def of(
        cls,
        original: Iterable[int],
        size: Iterable[int],
        canvas: Iterable[int],
        *,
        flip: bool = False,
    ) -> "Geometry":
        """Returns the record of any three pairs, arrays too."""
        return cls(_pair(original), _pair(size), _pair(canvas), bool(flip))

    @property
    def scale(self) -> tuple[float, float]:
        """Resized over original size, (y, x)."""
        (old_height, old_width), (height, width) = self.original, self.size
        return height / old_height, width / old_width


def _pair(size: Iterable[int]) -> tuple[int, int]:
    height, width = size
    # Arithmetic of arrays with NumPy's integers would take 64 bits.
    return int(height), int(width)
