"""Position-sensitive RoI pooling with the maps that it pools, as in R-FCN.

Shape letters: N batch, H W feature map, C channels, B RoIs of an image, k bins along a
side, D channels of the result, K classes of offsets.
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
    check_rngs,
    check_scales,
)
from dcn_jax.modules.fast_forms import pointwise_conv
from dcn_jax.modules.offset_branch import branch_dtype
from dcn_jax.modules.roi_pool import promote
from xla_ops import deform_ps_roi_pool, ps_roi_pool

_zeros = nnx.initializers.zeros


class PSRoIPool(nnx.Module):
    """A 1x1 convolution that makes D maps for each bin, and their pooling.

    Each bin of a RoI is pooled from maps of its own. Deformable, a second convolution
    makes maps of offsets for each bin; they are pooled in the same way, at bins in
    their places, and say how far each bin then moves, in units of the RoI's size. They
    start at zero.

    Args:
      in_features: C.
      out_features: D.
      output_size: k, for both sides.
      spatial_scale: Size of the map over size of the image; one for each pyramid level
        when `features` is a sequence.
      deformable: Bins move, and are means of samples (`xla_ops.deform_ps_roi_pool`);
        else of whole pixels (`xla_ops.ps_roi_pool`).
      offset_classes: K, a divisor of D: bins move for each D / K channels apart.
      samples_per_part: Samples of a bin along each axis, where it is deformable.
      offset_scale: gamma of the paper, a factor of the normalised offsets.
      dtype: Of the computation and the result; None takes that of maps and parameters.
        Offsets are computed in float32 at least.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      maps: The convolution; channel (d * k + i) * k + j is channel d of bin (i, j).
      offset_conv: That of the offsets, whose channels d are offsets [K, (dy, dx)]; only
        when deformable.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.

    Source: Dai et al. 2016 (arXiv:1605.06409) section 2; Dai et al. 2017
    (arXiv:1703.06211) section 2.2, whose released code has offsets as (dx, dy).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        output_size: int,
        *,
        spatial_scale: float | Sequence[float],
        deformable: bool = True,
        offset_classes: int = 1,
        samples_per_part: int = 4,
        offset_scale: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        out_features = check_integer("out_features", out_features)
        bins = check_integer("output_size", output_size)
        self.output_size = (bins, bins)
        self.spatial_scale = check_scales(spatial_scale)
        self.deformable = deformable
        self.offset_classes = check_integer("offset_classes", offset_classes)
        if out_features % self.offset_classes:
            raise ValueError(
                f"`offset_classes` is {offset_classes}; expected a divisor of "
                f"`out_features`, which is {out_features}"
            )
        self.samples_per_part = check_integer("samples_per_part", samples_per_part)
        self.offset_scale = check_number("offset_scale", offset_scale)
        self.dtype = dtype
        pointwise: dict[str, Any] = dict(
            kernel_size=(1, 1),
            conv_general_dilated=pointwise_conv,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.maps = nnx.Conv(
            in_features,
            bins**2 * out_features,
            kernel_init=nnx.initializers.normal(0.01),
            dtype=dtype,
            **pointwise,
        )
        if deformable:
            self.offset_conv = nnx.Conv(
                in_features,
                bins**2 * 2 * self.offset_classes,
                kernel_init=_zeros,
                bias_init=_zeros,
                dtype=branch_dtype(dtype, param_dtype),
                **pointwise,
            )

    def __call__(
        self,
        features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
        rois: Float[Array, "N B 4"],
        map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
        levels: Int[Array, "N B"] | None = None,
    ) -> Float[Array, "N B k k D"]:
        """Makes the maps, and pools each RoI; see `RoIPooling`."""
        features, rois = promote(features, rois, self.dtype)
        maps = jax.tree.map(self.maps, features)
        pool: dict[str, Any] = dict(
            output_size=self.output_size,
            spatial_scale=self.spatial_scale,
            levels=levels,
            map_sizes=map_sizes,
        )
        if not self.deformable:
            return ps_roi_pool(maps, rois, **pool)
        pool |= dict(
            group_size=self.output_size[0], samples_per_part=self.samples_per_part
        )
        offset = deform_ps_roi_pool(
            jax.tree.map(self.offset_conv, features), rois, **pool
        )
        offset = offset.reshape(*offset.shape[:4], self.offset_classes, 2)
        return deform_ps_roi_pool(
            maps, rois, offset, **pool, offset_scale=self.offset_scale
        )
