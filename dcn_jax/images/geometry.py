"""Where an image lies on its canvas: what the loader decides, and a task is told."""

from collections.abc import Iterable
from typing import NamedTuple, SupportsInt

import numpy as np


class Geometry(NamedTuple):
    """How an image came onto its canvas; every size is (height, width) in pixels.

    It was resized from `original` to `size`, and mirrored where `flip` says so. What
    begins at its pixel `corner`, (top, left), was put into the top left corner of the
    canvas, as far as that reaches.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    canvas: tuple[int, int]
    flip: bool = False
    corner: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls,
        original: Iterable[SupportsInt],
        size: Iterable[SupportsInt],
        canvas: Iterable[SupportsInt],
        *,
        flip: bool | np.bool_ = False,
        corner: Iterable[SupportsInt] = (0, 0),
    ) -> "Geometry":
        """Returns the record of any pairs, arrays too."""
        return cls(
            _pair(original), _pair(size), _pair(canvas), bool(flip), _pair(corner)
        )

    @property
    def scale(self) -> tuple[float, float]:
        """Resized over original size, (y, x)."""
        (old_height, old_width), (height, width) = self.original, self.size
        return height / old_height, width / old_width

    @property
    def shown(self) -> tuple[int, int]:
        """What of the canvas is image."""
        height, width = (
            min(side - start, most)
            for side, start, most in zip(
                self.size, self.corner, self.canvas, strict=True
            )
        )
        return height, width


def _pair(values: Iterable[SupportsInt]) -> tuple[int, int]:
    vertical, horizontal = values
    # Arithmetic of arrays with NumPy's integers would take 64 bits.
    return int(vertical), int(horizontal)
