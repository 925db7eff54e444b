"""The deformable layers for Flax Linen, with the parameter names of the NNX ones.

Shape letters: N batch, H W input or feature map, P Q output map, C in channels, K out
channels, R S kernel taps, B RoIs of an image, h w bins.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jaxtyping import Array, Float, Int, Num

from dcn_jax.modules import arguments, batch_split, deform_conv, roi_pool
from xla_ops import deform_conv2d, deform_roi_pool

_zeros = nn.initializers.zeros
_gaussian = nn.initializers.normal(0.01)


class DeformConv(nn.Module):
    """Deformable convolution: `dcn_jax.modules.DeformConv`, with its arguments.

    Parameters: kernel, bias, and offset_conv/{kernel, bias}. Where "intermediates" is
    mutable, `samples` there holds `offset`, `mask` and `map_sizes` as
    `modules.deform_conv.Samples`.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: str | int | Sequence[Any] = "SAME"
    kernel_dilation: int | Sequence[int] = 1
    feature_group_count: int = 1
    offset_groups: int = 1
    modulated: bool = True
    max_offset: float = 0.0
    border: str = "zeros"
    mask_scale: int = 1
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = _zeros

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], map_sizes: Num[Array, "N 2"] | None = None
    ) -> Float[Array, "N P Q K"]:
        """Applies the layer."""
        in_features = x.shape[-1]
        features = arguments.check_integer("features", self.features)
        checked = deform_conv.check_arguments(
            in_features,
            features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            offset_groups=self.offset_groups,
            max_offset=self.max_offset,
            border=self.border,
            mask_scale=self.mask_scale,
        )
        kernel_size, groups = checked.kernel_size, checked.feature_group_count
        window: dict[str, Any] = dict(
            strides=checked.strides,
            padding=checked.padding,
            kernel_dilation=checked.kernel_dilation,
        )
        shape = (*kernel_size, in_features // groups, features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (features,), self.param_dtype)
        y = nn.Conv(
            deform_conv.branch_features(
                kernel_size, checked.offset_groups, self.modulated
            ),
            kernel_size,
            kernel_init=_zeros,
            bias_init=_zeros,
            dtype=deform_conv.branch_dtype(self.dtype, self.param_dtype),
            param_dtype=self.param_dtype,
            conv_general_dilated=batch_split.conv_general_dilated,
            name="offset_conv",
            **window,
        )(x)
        offset, mask = deform_conv.split_branch(
            y, checked.offset_groups, self.modulated, checked.mask_scale
        )
        offset = deform_conv.bound(offset, checked.max_offset)
        if checked.border != "v1":
            map_sizes = None
        samples = dict(offset=offset, mask=mask, map_sizes=map_sizes)
        self.sow("intermediates", "samples", samples)
        x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return deform_conv2d(
            x,
            offset,
            kernel,
            mask,
            bias,
            feature_group_count=groups,
            border=checked.border,
            map_sizes=map_sizes,
            **window,
        )


class DeformRoIPool(nn.Module):
    """Deformable RoI pooling: `dcn_jax.modules.DeformRoIPool`, with its arguments.

    Parameters: offset_fc/{kernel, bias} and, when modulated, fc1 and fc2 alike. Where
    "intermediates" is mutable, `bins` there holds what `modules.roi_pool.Bins` does.
    """

    output_size: int | Sequence[int]
    spatial_scale: float | Sequence[float]
    hidden_features: int = 1024
    modulated: bool = True
    sampling_ratio: int = 2
    offset_scale: float = 0.1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "N H W C"] | Sequence[Float[Array, "N _ _ C"]],
        rois: Float[Array, "N B 4"],
        map_sizes: Num[Array, "N 2"] | Sequence[Num[Array, "N 2"]] | None = None,
        levels: Int[Array, "N B"] | None = None,
    ) -> Float[Array, "N B h w C"]:
        """Pools each RoI."""
        output_size = arguments.check_pair("output_size", self.output_size)
        hidden_features = arguments.check_integer(
            "hidden_features", self.hidden_features
        )
        features, rois = roi_pool.promote(features, rois, self.dtype)
        pool: dict[str, Any] = dict(
            output_size=output_size,
            spatial_scale=arguments.check_scales(self.spatial_scale),
            levels=levels,
            map_sizes=map_sizes,
            sampling_ratio=self.sampling_ratio,
            offset_scale=self.offset_scale,
        )
        y = deform_roi_pool(features, rois, **pool)
        y = roi_pool.flatten(y)
        if self.modulated:
            for name in ("fc1", "fc2"):
                hidden = nn.Dense(
                    hidden_features,
                    kernel_init=_gaussian,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    dot_general=batch_split.dot_general,
                    name=name,
                )
                y = jax.nn.relu(hidden(y))
        y = nn.Dense(
            (3 if self.modulated else 2) * output_size[0] * output_size[1],
            kernel_init=_zeros,
            bias_init=_zeros,
            dtype=deform_conv.branch_dtype(self.dtype, self.param_dtype),
            param_dtype=self.param_dtype,
            dot_general=batch_split.dot_general,
            name="offset_fc",
        )(y)
        offset, mask = roi_pool.split_branch(y, output_size, self.modulated)
        if self.is_mutable_collection("intermediates"):
            moved = self.offset_scale * offset
            bins = dict(rois=rois, levels=levels, offset=moved, mask=mask)
            self.sow("intermediates", "bins", bins)
        return deform_roi_pool(features, rois, offset, mask, **pool)
