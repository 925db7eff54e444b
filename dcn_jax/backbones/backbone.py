"""What a trunk asks of its backbone.

Shape letters: N images, H W canvas, P Q map, C channels.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int


@runtime_checkable
class Backbone(Protocol):
    """A module that makes maps "c2" to "c5" of images.

    Attributes:
      frozen_names: Names of the children that are not trained.
      param_dtype: Type of the parameters, and of the normalised images.
    """

    frozen_names: tuple[str, ...]
    param_dtype: Any

    @property
    def strides(self) -> dict[str, int]:
        """Pixels of the image to one step of each map."""
        ...

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        ...

    def __call__(
        self, x: Float[Array, "N H W 3"], sizes: Int[Array, "N 2"] | None = None
    ) -> dict[str, Float[Array, "N P Q C"]]:
        """Computes the maps of normalised images, zero outside their valid parts."""
        ...
