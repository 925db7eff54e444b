"""ResNet and ResNeXt with deformable stages.

Stages are named as in the papers: conv1 is the stem, conv2 to conv5 are the four groups
of bottleneck blocks (`layer1` to `layer4`), whose outputs are "c2" to "c5".

Shape letters: N batch, H W input map, P Q output map, C channels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dcn_jax.modules.arguments import check_integer, check_number, check_rngs
from dcn_jax.modules.deform_conv import DeformConv
from dcn_jax.modules.fast_forms import max_pool_3x3, pointwise_conv
from dcn_jax.modules.norm import NORMS, make_norm
from dcn_jax.modules.spatial_conv import spatial_conv
from dcn_jax.padding import clear_padding, map_sizes

_EXPANSION = 4  # output channels of a bottleneck over its planes
_MAP_NAMES = ("c2", "c3", "c4", "c5")

# He et al. 2015 (arXiv:1502.01852), by the fan-out, as torchvision's ResNet.
_conv_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Bottleneck(nnx.Module):
    """1x1, 3x3 (regular or deformable), 1x1, with a shortcut.

    The stride is on the 3x3 convolution (torchvision, "V1.5"), or on the first 1x1
    (the first ResNets, Caffe's).
    """

    def __init__(
        self,
        in_features: int,
        planes: int,
        width: int,
        *,
        strides: int,
        kernel_dilation: int,
        stride_in_1x1: bool,
        groups: int,
        norm: str,
        norm_epsilon: float,
        deformable: bool,
        modulated: bool,
        offset_groups: int,
        max_offset: float,
        border: str,
        mask_scale: int,
        dtype,
        param_dtype,
        rngs: nnx.Rngs,
    ):
        out_features = planes * _EXPANSION
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        conv: dict[str, Any] = dict(use_bias=False, kernel_init=_conv_init, **types)
        pointwise: dict[str, Any] = dict(
            kernel_size=(1, 1), conv_general_dilated=pointwise_conv, **conv
        )

        statistics: dict[str, Any] = dict(epsilon=norm_epsilon, param_dtype=param_dtype)
        self.strides, self.stride_in_1x1 = strides, stride_in_1x1
        first, second = (strides, 1) if stride_in_1x1 else (1, strides)
        self.conv1 = nnx.Conv(in_features, width, strides=first, padding=0, **pointwise)
        self.norm1 = make_norm(norm, width, **statistics)
        three: dict[str, Any] = dict(
            strides=second,
            padding=kernel_dilation,
            kernel_dilation=kernel_dilation,
            feature_group_count=groups,
            **conv,
        )
        if deformable:
            self.conv2 = DeformConv(
                width,
                width,
                (3, 3),
                offset_groups=offset_groups,
                max_offset=max_offset,
                border=border,
                modulated=modulated,
                mask_scale=mask_scale,
                **three,
            )
        else:
            self.conv2 = nnx.Conv(
                width, width, (3, 3), conv_general_dilated=spatial_conv, **three
            )
        self.norm2 = make_norm(norm, width, **statistics)
        self.conv3 = nnx.Conv(width, out_features, **pointwise)
        self.norm3 = make_norm(norm, out_features, **statistics)
        self.has_downsample = strides != 1 or in_features != out_features
        if self.has_downsample:
            self.downsample_conv = nnx.Conv(
                in_features, out_features, strides=strides, padding=0, **pointwise
            )
            self.downsample_norm = make_norm(norm, out_features, **statistics)

    def __call__(
        self, x: Float[Array, "N H W C"], sizes: Int[Array, "N 2"] | None = None
    ) -> Float[Array, "N P Q C2"]:
        """`sizes` are the valid sizes of `x`; None means that all of it is valid."""
        out_sizes = None if sizes is None else map_sizes(sizes, self.strides)
        middle = out_sizes if self.stride_in_1x1 else sizes
        y = jax.nn.relu(self.norm1(self.conv1(x), middle))
        y = clear_padding(y, middle)
        if isinstance(self.conv2, DeformConv):
            y = self.conv2(y, map_sizes=middle)
        else:
            y = self.conv2(y)
        y = jax.nn.relu(self.norm2(y, out_sizes))
        y = self.norm3(self.conv3(y), out_sizes)
        if self.has_downsample:
            x = self.downsample_norm(self.downsample_conv(x), out_sizes)
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """ResNet (He et al. 2016) or ResNeXt (Xie et al. 2017) with deformable stages.

    Equal to torchvision's `ResNet(Bottleneck, depths, groups, width_per_group)` where
    no block is deformable and no stage dilated. The input size may be anything.

    Args:
      depths: Blocks of conv2, conv3, conv4 and conv5; (3, 4, 6, 3) is ResNet-50.
      groups: Cardinality of the 3x3 convolutions (ResNeXt).
      width_per_group: Channels of a group of conv2's 3x3 convolutions, for
        `stem_features` 64; 64 is ResNet.
      stem_features: Channels of the stem. Every other width is in proportion; less
        than 64 makes a thin network.
      norm: "frozen_bn" (fixed statistics, wants pretrained weights) or
        "group_norm" (for training from scratch).
      norm_epsilon: Added to the variances. 1e-5 everywhere but in torchvision's first
        detectors, which have 0.
      stride_in_1x1: Whether the stride of a stage is on its first 1x1 convolution
        (MSRA's and Caffe's weights) in place of the 3x3 (torchvision's).
      deform_blocks: How many blocks of conv2, ..., conv5, counted from the last one,
        have a deformable 3x3 convolution; -1 is all of them. DCNv2 deforms conv3 to
        conv5, (0, -1, -1, -1); DCNv1 the last three blocks, (0, 0, 0, 3).
      modulated: DCNv2's modulated convolution, else DCNv1's.
      offset_groups: Deformable groups.
      max_offset: Bound of the offsets in pixels of their map, see `DeformConv`; 0 has
        none.
      border: "zeros", or "v1" for the first release's weights, see `DeformConv`.
      mask_scale: 1 (sigmoid) or 2 (twice the sigmoid, which starts at 1).
      output_stride: Of conv5: 32, or 16: no stride, and its 3x3 convolutions dilated
        (the papers' networks without a pyramid).
      dilation: Of these 3x3 convolutions. DCNv1's Table 3 has 2, 4, 6 and 8.
      first_dilation: That of the first block of a dilated conv5; 1 in torchvision.
      frozen_stages: How many stages, counted from conv1, get no gradient, and for
        which no backward pass is computed; 2 freezes conv1 and conv2.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      frozen_names: Names of the children that `frozen_stages` freezes.

    Raises:
      ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        groups: int = 1,
        width_per_group: int = 64,
        stem_features: int = 64,
        norm: str = "frozen_bn",
        norm_epsilon: float = 1e-5,
        stride_in_1x1: bool = False,
        deform_blocks: Sequence[int] = (0, 0, 0, 0),
        modulated: bool = True,
        offset_groups: int = 1,
        max_offset: float = 0.0,
        border: str = "zeros",
        mask_scale: int = 1,
        output_stride: int = 32,
        dilation: int = 2,
        first_dilation: int = 2,
        frozen_stages: int = 0,
        dtype=None,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        if len(depths) != 4:
            raise ValueError(
                f"`depths` is {tuple(depths)}; expected 4 positive block counts"
            )
        depths = tuple(check_integer("depths", depth) for depth in depths)
        groups = check_integer("groups", groups)
        width_per_group = check_integer("width_per_group", width_per_group)
        stem_features = check_integer("stem_features", stem_features)
        frozen_stages = check_integer("frozen_stages", frozen_stages, 0)
        if frozen_stages > 5:
            raise ValueError(f"`frozen_stages` is {frozen_stages}; expected 0 to 5")
        if norm not in NORMS:
            raise ValueError(f"`norm` is {norm!r}; expected one of {tuple(NORMS)}")
        if output_stride not in (16, 32):
            raise ValueError(f"`output_stride` is {output_stride!r}; expected 16 or 32")
        dilation = check_integer("dilation", dilation)
        first_dilation = check_integer("first_dilation", first_dilation)
        norm_epsilon = check_number("norm_epsilon", norm_epsilon)
        if norm_epsilon < 0:
            raise ValueError(f"`norm_epsilon` is {norm_epsilon}; expected at least 0")
        deformed = _deformed(deform_blocks, depths)

        self.dtype = dtype
        self.param_dtype = param_dtype
        self.norm = norm
        self.frozen_stages = frozen_stages
        names = [("conv1", "norm1"), *((f"layer{i}",) for i in range(1, 5))]
        self.frozen_names = sum(names[:frozen_stages], ())

        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.conv1 = nnx.Conv(
            3,
            stem_features,
            (7, 7),
            strides=2,
            padding=3,
            use_bias=False,
            kernel_init=_conv_init,
            **types,
        )
        self.norm1 = make_norm(
            norm, stem_features, epsilon=norm_epsilon, param_dtype=param_dtype
        )

        map_strides, map_channels = [], []
        in_features, stride = stem_features, 4
        for i, name in enumerate(_MAP_NAMES):
            dilated = output_stride == 16 and name == "c5"
            first_stride = 1 if i == 0 or dilated else 2
            planes = stem_features * 2**i
            blocks = []
            for j in range(depths[i]):
                block_dilation = 1
                if dilated:
                    block_dilation = first_dilation if j == 0 else dilation
                blocks.append(
                    Bottleneck(
                        in_features,
                        planes,
                        max(1, planes * width_per_group // 64) * groups,
                        strides=first_stride if j == 0 else 1,
                        kernel_dilation=block_dilation,
                        stride_in_1x1=stride_in_1x1,
                        groups=groups,
                        norm=norm,
                        norm_epsilon=norm_epsilon,
                        deformable=j >= depths[i] - deformed[i],
                        modulated=modulated,
                        offset_groups=offset_groups,
                        max_offset=max_offset,
                        border=border,
                        mask_scale=mask_scale,
                        **types,
                    )
                )
                in_features = planes * _EXPANSION
            setattr(self, f"layer{i + 1}", nnx.List(blocks))
            stride *= first_stride
            map_strides.append(stride)
            map_channels.append(in_features)
        # Tuples: NNX wants hashable static attributes.
        self._map_strides = tuple(map_strides)
        self._map_channels = tuple(map_channels)

    @property
    def strides(self) -> dict[str, int]:
        """Pixels of the image to one step of each map."""
        return dict(zip(_MAP_NAMES, self._map_strides, strict=True))

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        return dict(zip(_MAP_NAMES, self._map_channels, strict=True))

    def __call__(
        self, x: Float[Array, "N H W 3"], sizes: Int[Array, "N 2"] | None = None
    ) -> dict[str, Float[Array, "N P Q C"]]:
        """Computes the maps.

        Args:
          x: Normalised images.
          sizes: Valid (height, width) of each image; the rest of the canvas does not
            change the valid part of any map. None means that all of it is valid.

        Returns:
          {"c2", "c3", "c4", "c5"}, at strides `self.strides`. Outside the valid part,
          `map_sizes(sizes, stride)`, a map is zero.
        """
        if sizes is not None:
            # An image of no pixels (a filler row) keeps one, for finite statistics.
            sizes = jnp.maximum(sizes, 1)
        x = x.astype(self.dtype if self.dtype is not None else self.param_dtype)
        x = self.conv1(clear_padding(x, sizes))
        sizes = _halve(sizes)
        x = jax.nn.relu(self.norm1(x, sizes))
        # After the ReLU a cleared position never wins against a valid one.
        x = clear_padding(x, sizes)
        x = max_pool_3x3(x)
        sizes = _halve(sizes)
        x = self._stop_if_frozen(x, 1)
        maps = {}
        for i, name in enumerate(_MAP_NAMES):
            for block in getattr(self, f"layer{i + 1}"):
                x = block(x, sizes)
                sizes = _halve(sizes) if block.strides == 2 else sizes
            x = self._stop_if_frozen(clear_padding(x, sizes), i + 2)
            maps[name] = x
        return maps

    def _stop_if_frozen(self, x, stage):
        return jax.lax.stop_gradient(x) if stage <= self.frozen_stages else x


def _deformed(deform_blocks: Sequence[int], depths: Sequence[int]) -> tuple[int, ...]:
    """How many blocks of each stage deform."""
    if len(deform_blocks) != 4:
        raise ValueError(
            f"`deform_blocks` is {tuple(deform_blocks)}; expected 4 integers, for "
            "conv2 to conv5"
        )
    counts = []
    for count, depth in zip(deform_blocks, depths, strict=True):
        count = check_integer("deform_blocks", count, -1)
        if count > depth:
            raise ValueError(
                f"`deform_blocks` is {tuple(deform_blocks)}; expected at most "
                f"`depths`, which is {tuple(depths)}, or -1 for all"
            )
        counts.append(depth if count == -1 else count)
    return tuple(counts)


def _halve(sizes):
    return None if sizes is None else map_sizes(sizes, 2)


def resnet50(**kwargs) -> ResNet:
    """ResNet-50; the arguments are those of `ResNet` without `depths`."""
    return ResNet((3, 4, 6, 3), **kwargs)


def resnet101(**kwargs) -> ResNet:
    """ResNet-101; the arguments are those of `ResNet` without `depths`."""
    return ResNet((3, 4, 23, 3), **kwargs)
