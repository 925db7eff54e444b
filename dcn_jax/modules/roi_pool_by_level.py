"""Deformable RoI pooling with a branch for each pyramid level, as in mmdetection.

Shape letters: N batch, H W feature map, C channels, B RoIs of an image, h w bins.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from dcn_jax.modules.arguments import (
    check_integer,
    check_number,
    check_pair,
    check_rngs,
    check_scales,
)
from dcn_jax.modules.deform_conv import branch_dtype
from dcn_jax.modules.roi_pool import flatten, promote
from xla_ops import deform_roi_pool

_zeros = nnx.initializers.zeros


class LevelBranch(nnx.Module):
    """Offsets of the bins, and factors when modulated, from what a level's RoIs hold.

    Attributes:
      offset_fc1, offset_fc2, offset_fc3: Layers with a ReLU between; the last one's
        outputs are offsets [h, w, (dy, dx)] and start at zero.
      mask_fc1, mask_fc2: Likewise, for factors [h, w]; only when modulated.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        output_size: tuple[int, int],
        *,
        modulated: bool,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.output_size, self.modulated = output_size, modulated
        bins = output_size[0] * output_size[1]
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        last: dict[str, Any] = dict(
            kernel_init=_zeros,
            bias_init=_zeros,
            **(types | dict(dtype=branch_dtype(dtype, param_dtype))),
        )
        self.offset_fc1 = nnx.Linear(bins * in_features, hidden_features, **types)
        self.offset_fc2 = nnx.Linear(hidden_features, hidden_features, **types)
        self.offset_fc3 = nnx.Linear(hidden_features, 2 * bins, **last)
        if modulated:
            self.mask_fc1 = nnx.Linear(bins * in_features, hidden_features, **types)
            self.mask_fc2 = nnx.Linear(hidden_features, bins, **last)

    def __call__(
        self, x: Float[Array, "N B hwC"]
    ) -> tuple[Float[Array, "N B h w 2"], Float[Array, "N B h w"] | None]:
        """Normalised offsets (dy, dx) and factors of the bins (None in v1)."""
        y = jax.nn.relu(self.offset_fc1(x))
        y = self.offset_fc3(jax.nn.relu(self.offset_fc2(y)))
        offset = y.reshape(*y.shape[:2], *self.output_size, 2)
        if not self.modulated:
            return offset, None
        y = self.mask_fc2(jax.nn.relu(self.mask_fc1(x)))
        return offset, jax.nn.sigmoid(y).reshape(*y.shape[:2], *self.output_size)


class DeformRoIPoolByLevel(nnx.Module):
    """`DeformRoIPool` as mmdetection has it: a branch of its own for each level.

    Four times the parameters; every RoI goes through all branches, of which its level
    chooses one.

    Args:
      in_features: C.
      output_size: (h, w), or one integer for both.
      spatial_scale: Size of each level's map over size of the image.
      hidden_features: Width of the branches' hidden layers.
      modulated: Whether each bin gets a factor too.
      sampling_ratio: Samples of a bin along each axis; 0 takes as many as the size of
        the RoI wants.
      offset_scale: gamma of the paper, a factor of the normalised offsets.
      dtype: Of the computation; None takes that of maps and parameters. The last layers
        compute in float32 at least.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      branches: `LevelBranch` of each level.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.

    Source: `DeformRoIPoolPack` and `ModulatedDeformRoIPoolPack` of mmcv.
    """

    def __init__(
        self,
        in_features: int,
        output_size: int | Sequence[int],
        *,
        spatial_scale: float | Sequence[float],
        hidden_features: int = 1024,
        modulated: bool = True,
        sampling_ratio: int = 0,
        offset_scale: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        hidden_features = check_integer("hidden_features", hidden_features)
        self.output_size = check_pair("output_size", output_size)
        self.spatial_scale = check_scales(spatial_scale)
        self.modulated = modulated
        self.sampling_ratio = check_integer("sampling_ratio", sampling_ratio, 0)
        self.offset_scale = check_number("offset_scale", offset_scale)
        self.dtype = dtype
        levels = 1
        if isinstance(self.spatial_scale, tuple):
            levels = len(self.spatial_scale)
        self.branches = nnx.List(
            LevelBranch(
                in_features,
                hidden_features,
                self.output_size,
                modulated=modulated,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for _ in range(levels)
        )

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
        offset, mask = self._branch(deform_roi_pool(features, rois, **pool), levels)
        return deform_roi_pool(features, rois, offset, mask, **pool)

    def _branch(self, pooled, levels):
        x = flatten(pooled)
        offset, mask = self.branches[0](x)
        for level, branch in enumerate(self.branches[1:], start=1):
            here = (levels == level)[..., None, None]
            others, factors = branch(x)
            offset = jnp.where(here[..., None], others, offset)
            if mask is not None and factors is not None:
                mask = jnp.where(here, factors, mask)
        return offset, mask
