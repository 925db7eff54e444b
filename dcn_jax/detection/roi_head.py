"""What a two-stage detector asks of the head that sees its RoIs.

Shape letters: N images, B RoIs of an image, h w bins, C channels, F features of a
representation, L foreground classes.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dcn_jax.boxes import levels_of_rois
from dcn_jax.modules.roi_pool import RoIPooling
from dcn_jax.padding import map_sizes
from dcn_jax.trunk import Features


class RoIOutput(NamedTuple):
    """What a head says of every RoI."""

    logits: Float[Array, "N B classes"]  # L + 1, the background first
    deltas: Float[Array, "N B boxes 4"]  # for each foreground class, or one for all
    representation: Float[Array, "N B F"] | None  # what `logits` were made of


@runtime_checkable
class RoIHead(Protocol):
    """A module that classifies RoIs and refines their boxes.

    Attributes:
      num_classes: L.
      strides: Pixels of the image to one step of each level that it reads.
      box_weights: Multipliers of the code of a box.
    """

    num_classes: int
    strides: tuple[int, ...]
    box_weights: tuple[float, float, float, float]

    def __call__(self, features: Features, rois: Float[Array, "N B 4"]) -> RoIOutput:
        """Says what the RoIs (x1 y1 x2 y2 in pixels of the image) hold."""
        ...


@runtime_checkable
class RepresentingHead(RoIHead, Protocol):
    """A head that has one vector for a RoI before it classifies it: it can mimic.

    Attributes:
      num_features: F.
    """

    num_features: int

    def represent(
        self, features: Features, rois: Float[Array, "N B 4"]
    ) -> Float[Array, "N B F"]:
        """The vectors, as in `RoIOutput.representation`."""
        ...


def pool_rois(
    pool: RoIPooling,
    features: Features,
    rois: Float[Array, "N B 4"],
    strides: Sequence[int],
) -> Float[Array, "N B h w C"]:
    """Pools RoIs from the level that each of them reads, without the padding.

    Args:
      pool: For maps at `strides`.
      features: Its `levels.roi` are those maps.
      rois: x1 y1 x2 y2 in pixels of the image.
      strides: Of the levels.
    """
    maps = features.levels.roi
    double = maps[0].dtype == jnp.float64
    rois = rois.astype(jnp.float64 if double else jnp.float32)
    sizes = None
    if features.sizes is not None:
        sizes = tuple(map_sizes(features.sizes, stride) for stride in strides)
    if len(maps) == 1:
        return pool(maps[0], rois, None if sizes is None else sizes[0])
    return pool(maps, rois, sizes, levels_of_rois(rois, strides))
