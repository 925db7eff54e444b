"""RoI pooling layers: quantised, aligned, deformable. All are called alike.

Shape letters: N batch, H W feature map, C channels, B RoIs of an image, h w bins.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from dcn_jax.modules.arguments import (
    check_integer,
    check_number,
    check_pair,
    check_rngs,
    check_scales,
)
from dcn_jax.modules.batch_split import dot_general, split_by_batch
from dcn_jax.modules.offset_branch import branch_dtype
from xla_ops import deform_roi_pool, roi_align, roi_pool

_zeros = nnx.initializers.zeros
_gaussian = nnx.initializers.normal(0.01)


class Bins(nnx.Intermediate):
    """Where a layer pools its RoIs, recorded under `nnx.capture(..., Bins)`.

    A dict of `rois` [N, B, 4], x1 y1 x2 y2 in pixels of the image; `levels` [N, B] that
    they read, or None for one map; `offset` [N, B, h, w, 2], how far each of their bins
    moves, as (dy, dx) in units of the RoI's size, or None; and `mask` [N, B, h, w], or
    None.
    """


@runtime_checkable
class RoIPooling(Protocol):
    """A layer of this file.

    Attributes:
      output_size: (h, w).
      spatial_scale: Size of the map over size of the image; of a pyramid, of each map.
    """

    output_size: tuple[int, int]
    spatial_scale: float | tuple[float, ...]

    def __call__(
        self,
        features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
        rois: Float[Array, "N B 4"],
        map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
        levels: Int[Array, "N B"] | None = None,
    ) -> Float[Array, "N B h w C"]:
        """Pools each RoI.

        Args:
          features: A map, or the levels of a pyramid.
          rois: x1 y1 x2 y2 in pixels of the image.
          map_sizes: (height, width) of the part of each image's map that is not
            padding, for each level of a pyramid; None means all of it.
          levels: Level that each RoI reads, for a pyramid.
        """
        ...


class RoIPool(nnx.Module):
    """The maximum of each bin, whose borders are rounded to pixels: `xla_ops.roi_pool`.

    Args:
      output_size: (h, w), or one integer for both.
      spatial_scale: Size of the map over size of the image; one for each pyramid level
        when `features` is a sequence.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.

    Source: Girshick 2015 (arXiv:1504.08083) section 2.1.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        *,
        spatial_scale: float | Sequence[float],
    ):
        self.output_size = check_pair("output_size", output_size)
        self.spatial_scale = check_scales(spatial_scale)

    def __call__(
        self,
        features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
        rois: Float[Array, "N B 4"],
        map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
        levels: Int[Array, "N B"] | None = None,
    ) -> Float[Array, "N B h w C"]:
        """Pools each RoI, see `RoIPooling`."""
        return roi_pool(
            features,
            rois,
            output_size=self.output_size,
            spatial_scale=self.spatial_scale,
            levels=levels,
            map_sizes=map_sizes,
        )


class RoIAlign(nnx.Module):
    """The mean of bilinear samples of each bin: `xla_ops.roi_align`.

    Args:
      output_size: (h, w), or one integer for both.
      spatial_scale: Size of the map over size of the image; one for each pyramid level
        when `features` is a sequence.
      sampling_ratio: Samples of a bin along each axis; 0 takes as many as the size of
        the RoI wants.
      aligned: Whether pixels are points at half a pixel, as in all but the first
        releases; torchvision's detectors have False.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.

    Source: He et al. 2017 (arXiv:1703.06870) section 3.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        *,
        spatial_scale: float | Sequence[float],
        sampling_ratio: int = 2,
        aligned: bool = True,
    ):
        self.output_size = check_pair("output_size", output_size)
        self.spatial_scale = check_scales(spatial_scale)
        self.sampling_ratio = check_integer("sampling_ratio", sampling_ratio, 0)
        self.aligned = aligned

    def __call__(
        self,
        features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
        rois: Float[Array, "N B 4"],
        map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
        levels: Int[Array, "N B"] | None = None,
    ) -> Float[Array, "N B h w C"]:
        """Pools each RoI, see `RoIPooling`."""
        # Costs nothing unless somebody captures them.
        if any(type(v) is Bins for v in getattr(self, "__captures__", ())):
            bins = dict(rois=rois, levels=levels, offset=None, mask=None)
            self.sow(Bins, "bins", bins)
        return roi_align(
            features,
            rois,
            output_size=self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            levels=levels,
            map_sizes=map_sizes,
        )


class DeformRoIPooling(nnx.Module):
    """What layers whose bins move have in common: RoIs are pooled twice.

    A layer has a `branch`, which reads what was pooled at bins in their places and
    tells where to pool again. Arguments are those of `DeformRoIPool`.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        *,
        spatial_scale: float | Sequence[float],
        modulated: bool,
        sampling_ratio: int,
        offset_scale: float,
        dtype: Any,
    ):
        self.output_size = check_pair("output_size", output_size)
        self.spatial_scale = check_scales(spatial_scale)
        self.modulated = modulated
        self.sampling_ratio = check_integer("sampling_ratio", sampling_ratio, 0)
        self.offset_scale = check_number("offset_scale", offset_scale)
        self.dtype = dtype

    def __call__(
        self,
        features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
        rois: Float[Array, "N B 4"],
        map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
        levels: Int[Array, "N B"] | None = None,
    ) -> Float[Array, "N B h w C"]:
        """Pools each RoI, see `RoIPooling`."""
        features, rois = promote(features, rois, self.dtype)
        pool: dict[str, Any] = dict(
            output_size=self.output_size,
            spatial_scale=self.spatial_scale,
            levels=levels,
            map_sizes=map_sizes,
            sampling_ratio=self.sampling_ratio,
            offset_scale=self.offset_scale,
        )
        offset, mask = self.branch(deform_roi_pool(features, rois, **pool), levels)
        # Costs nothing unless somebody captures them.
        if any(type(v) is Bins for v in getattr(self, "__captures__", ())):
            moved = self.offset_scale * offset
            bins = dict(rois=rois, levels=levels, offset=moved, mask=mask)
            self.sow(Bins, "bins", bins)
        return deform_roi_pool(features, rois, offset, mask, **pool)

    @abc.abstractmethod
    def branch(
        self,
        pooled: Float[Array, "N B h w C"],
        levels: Int[Array, "N B"] | None = None,
    ) -> tuple[Float[Array, "N B h w 2"], Float[Array, "N B h w"] | None]:
        """Normalised offsets (dy, dx) and factors of the bins (None in v1)."""


class DeformRoIPool(DeformRoIPooling):
    """RoI pooling whose bins move to where a branch of its own says.

    Each RoI is pooled without offsets; the branch reads the result and gives each bin
    an offset, normalised by the size of the RoI, and, when modulated, a factor in
    (0, 1); then the RoI is pooled again at the moved bins. The branch ends in a layer
    of zeros: the first result is aligned RoI pooling, halved when modulated. With
    several pyramid levels all share the branch.

    Args:
      in_features: C.
      output_size: (h, w), or one integer for both.
      spatial_scale: Size of the map over size of the image; one for each pyramid level
        when `features` is a sequence.
      hidden_features: Width of the two hidden layers of the modulated branch.
      modulated: The branch of DCNv2: fully connected, ReLU, twice, then offsets and
        masks; else that of DCNv1: one fully connected layer.
      sampling_ratio: Samples of a bin along each axis; 0 takes as many as the size of
        the RoI wants.
      offset_scale: gamma of the paper, a factor of the normalised offsets.
      dtype: Of the computation and the result; None pools in the type of the maps, and
        takes that of maps and parameters for the branch. The last layer of the branch
        computes in float32 at least.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      fc1, fc2: Hidden layers; only when modulated.
      offset_fc: Last layer, whose outputs are all offsets [h, w, (dy, dx)] and then,
        when modulated, all masks [h, w].

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.

    Source: Dai et al. 2017 (arXiv:1703.06211) section 2.2; Zhu et al. 2019
    (arXiv:1811.11168) section 3.2.
    """

    def __init__(
        self,
        in_features: int,
        output_size: int | Sequence[int],
        *,
        spatial_scale: float | Sequence[float],
        hidden_features: int = 1024,
        modulated: bool = True,
        sampling_ratio: int = 2,
        offset_scale: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        hidden_features = check_integer("hidden_features", hidden_features)
        super().__init__(
            output_size,
            spatial_scale=spatial_scale,
            modulated=modulated,
            sampling_ratio=sampling_ratio,
            offset_scale=offset_scale,
            dtype=dtype,
        )
        bins = self.output_size[0] * self.output_size[1]
        features = bins * in_features
        if modulated:
            hidden: dict[str, Any] = dict(
                kernel_init=_gaussian,
                dtype=dtype,
                param_dtype=param_dtype,
                dot_general=dot_general,
                rngs=rngs,
            )
            self.fc1 = nnx.Linear(features, hidden_features, **hidden)
            self.fc2 = nnx.Linear(hidden_features, hidden_features, **hidden)
            features = hidden_features
        self.offset_fc = nnx.Linear(
            features,
            (3 if modulated else 2) * bins,
            kernel_init=_zeros,
            bias_init=_zeros,
            dtype=branch_dtype(dtype, param_dtype),
            param_dtype=param_dtype,
            dot_general=dot_general,
            rngs=rngs,
        )

    def branch(
        self,
        pooled: Float[Array, "N B h w C"],
        levels: Int[Array, "N B"] | None = None,
    ) -> tuple[Float[Array, "N B h w 2"], Float[Array, "N B h w"] | None]:
        """Normalised offsets (dy, dx) and factors of the bins (None in v1)."""
        del levels  # All share the branch.
        y = flatten(pooled)
        if self.modulated:
            y = jax.nn.relu(self.fc1(y))
            y = jax.nn.relu(self.fc2(y))
        return split_branch(self.offset_fc(y), self.output_size, self.modulated)


def promote(features, rois, dtype) -> tuple[Any, Any]:
    """Maps in the layer's type, and RoIs in one that may stand beside it.

    Args:
      features: A map, or the levels of a pyramid.
      rois: [N, B, 4].
      dtype: None leaves both as they are.
    """
    if dtype is None:
        return features, rois
    dtype = jnp.dtype(dtype)
    if isinstance(features, list | tuple):
        features = [_as_type(x, dtype) for x in features]
    else:
        features = _as_type(features, dtype)
    if dtype.itemsize < 8 and getattr(rois, "dtype", None) == jnp.float64:
        rois = _as_type(rois, jnp.float32)
    return features, rois


def _as_type(x, dtype):
    # What is no array is left to the checks of the operator.
    return x.astype(dtype) if isinstance(x, jax.Array | np.ndarray) else x


def flatten(pooled: Float[Array, "N B h w C"]) -> Float[Array, "N B hwC"]:
    """The values of each RoI in one row; there may be no RoI."""
    return pooled.reshape(*pooled.shape[:2], math.prod(pooled.shape[2:]))


def split_branch(
    y: Float[Array, "N B L"], output_size: tuple[int, int], modulated: bool
) -> tuple[Float[Array, "N B h w 2"], Float[Array, "N B h w"] | None]:
    """Offsets and factors out of the branch's features: all offsets, then all masks."""
    y = split_by_batch(y)
    split = 2 * output_size[0] * output_size[1]
    offset = y[..., :split].reshape(*y.shape[:-1], *output_size, 2)
    if not modulated:
        return offset, None
    logits = y[..., split:].reshape(*y.shape[:-1], *output_size)
    return offset, jax.nn.sigmoid(logits)
