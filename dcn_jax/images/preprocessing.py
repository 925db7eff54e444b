"""How images come onto the canvases that a network was trained for."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dcn_jax.images.fit import fit_image
from dcn_jax.images.geometry import Geometry
from dcn_jax.images.headers import MAX_PIXELS
from dcn_jax.quoting import one_line, quoted

# No side is longer, and there are no more canvases.
_MAX_SIDE = 1 << 16
_MAX_CANVASES = 64


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Brings images onto canvases; the defaults are the papers' sizes.

    Args:
      canvases: (height, width) of the arrays that images are fitted into; a network is
        compiled once for each that is used.
      short_side: Pixels that the short side of an image is brought to.
      max_side: Cap of the long side.
      max_pixels: Larger images (height * width) are refused.

    Raises:
      ValueError: An argument is not of its kind, or out of its range; or a canvas has
        more than 64 million pixels.
    """

    canvases: tuple[tuple[int, int], ...] = ((800, 1344), (1344, 800), (1088, 1088))
    short_side: int = 800
    max_side: int = 1333
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        canvases = self.canvases
        if (
            not isinstance(canvases, tuple)
            or not 1 <= len(canvases) <= _MAX_CANVASES
            or not all(map(_is_size, canvases))
        ):
            raise ValueError(
                f"`canvases` is {quoted(canvases)}; expected a tuple of 1 to "
                f"{_MAX_CANVASES} (height, width)"
            )
        if (largest := max(h * w for h, w in canvases)) > MAX_PIXELS:
            raise ValueError(
                f"`canvases` has one of {largest} pixels; expected at most {MAX_PIXELS}"
            )
        for name in ("short_side", "max_side", "max_pixels"):
            value = getattr(self, name)
            most = _MAX_SIDE**2 if name == "max_pixels" else _MAX_SIDE
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(
                    f"`{name}` is {quoted(value)}; expected an integer from 1 to {most}"
                )

    def __call__(
        self, image: UInt8[np.ndarray, "H0 W0 3"]
    ) -> tuple[UInt8[np.ndarray, "H W 3"], Geometry]:
        """Returns an image on its canvas, and how it came there."""
        return fit_image(
            image,
            canvases=self.canvases,
            short_side=self.short_side,
            max_side=self.max_side,
        )

    def to_text(self) -> str:
        """Returns it as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Preprocessing":
        """Reads what `to_text` returned.

        Raises:
          ValueError: The text says something else.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = one_line(str(error), 200)
            raise ValueError(f"its preprocessing is no JSON ({reason})") from None
        if not isinstance(fields, Mapping):
            raise ValueError(f"its preprocessing is {quoted(fields)}; expected names")
        fields = dict(fields)
        if isinstance(fields.get("canvases"), list):
            fields["canvases"] = tuple(
                tuple(canvas) if isinstance(canvas, list) else canvas
                for canvas in fields["canvases"]
            )
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            reason = one_line(str(error), 300)
            raise ValueError(f"its preprocessing: {reason}") from None


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(type(side) is int and 1 <= side <= _MAX_SIDE for side in value)
    )
