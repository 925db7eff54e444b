"""What every neck gives, and what it says of itself.

Shape letters: N images, H W map of a level, C channels.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int


class Levels(NamedTuple):
    """Maps, the finest first; one level is a tuple of one.

    Outside of the valid part of an image, `dcn_jax.padding.map_sizes(sizes, stride)`, a
    map is zero where an operation with an extent will read it.
    """

    rpn: tuple[Float[Array, "N H W C"], ...]
    roi: tuple[Float[Array, "N H2 W2 C2"], ...]


@runtime_checkable
class Neck(Protocol):
    """A module between a backbone and the heads.

    Attributes:
      rpn_strides: Pixels of the image to one step of each level of proposals.
      rpn_features: Channels of these levels, the same for all.
      roi_strides: Pixels of the image to one step of each level of RoIs.
      roi_features: Channels of these levels.
    """

    rpn_strides: tuple[int, ...]
    rpn_features: int
    roi_strides: tuple[int, ...]
    roi_features: int

    def __call__(
        self,
        maps: Mapping[str, Float[Array, "N H W C"]],
        sizes: Int[Array, "N 2"] | None = None,
    ) -> Levels:
        """Makes the levels.

        Args:
          maps: Of the backbone, "c2" to "c5".
          sizes: Valid (height, width) of each image; None means that all is valid.
        """
        ...
