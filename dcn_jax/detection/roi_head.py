"""What a two-stage detector asks of the head that sees its RoIs.

Shape letters: N images, B RoIs of an image, h w bins, C channels, F features of a
representation, L foreground classes.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dcn_jax.boxes import BoxCode, levels_of_rois
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
      code: Of its boxes.
      loss_beta: Bend of the smooth L1 loss of its boxes.
    """

    num_classes: int
    strides: tuple[int, ...]
    code: BoxCode
    loss_beta: float

    def __call__(self, features: Features, rois: Float[Array, "N B 4"]) -> RoIOutput:
        """Says what the RoIs (x1 y1 x2 y2 in pixels of the image) hold."""
        ...


@runtime_checkable
class RepresentingHead(RoIHead, Protocol):
    """A head that has one vector for a RoI before it classifies it: it can mimic.

    Attributes:
      num_features: F.
      canonical_size: See `levels_of_rois`.
    """

    num_features: int
    canonical_size: float

    def represent(
        self, features: Features, rois: Float[Array, "N B 4"]
    ) -> Float[Array, "N B F"]:
        """The vectors, as in `RoIOutput.representation`."""
        ...


def check_pool(pool: RoIPooling, strides: Sequence[int]) -> None:
    """Refuses a pooling layer for other maps.

    Raises:
      ValueError: Its scales are not 1 over the strides.
    """
    scales = pool.spatial_scale
    scales = scales if isinstance(scales, tuple) else (scales,)
    if len(scales) != len(strides) or not np.allclose([1 / s for s in scales], strides):
        raise ValueError(
            f"`pool` has spatial_scale {pool.spatial_scale}; expected 1 over each "
            f"of `strides`, {tuple(strides)}"
        )


def pool_rois(
    pool: RoIPooling,
    features: Features,
    rois: Float[Array, "N B 4"],
    strides: Sequence[int],
    canonical_size: float = 224.0,
) -> Float[Array, "N B h w C"]:
    """Pools RoIs from the level that each of them reads, without the padding.

    Args:
      pool: For maps at `strides`.
      features: Its `levels.roi` are those maps.
      rois: x1 y1 x2 y2 in pixels of the image.
      strides: Of the levels.
      canonical_size: See `levels_of_rois`.
    """
    maps = features.levels.roi
    double = maps[0].dtype == jnp.float64
    rois = rois.astype(jnp.float64 if double else jnp.float32)
    sizes = None
    if features.sizes is not None:
        sizes = tuple(map_sizes(features.sizes, stride) for stride in strides)
    if len(maps) == 1:
        return pool(maps[0], rois, None if sizes is None else sizes[0])
    return pool(maps, rois, sizes, levels_of_rois(rois, strides, canonical_size))
