"""Deformable convolution layer, DCNv1 and modulated (DCNv2).

Shape letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

import functools
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jaxtyping import Array, Float, Num

from dcn_jax.modules.arguments import (
    check_integer,
    check_number,
    check_padding,
    check_pair,
    check_rngs,
)
from dcn_jax.modules.batch_split import conv_general_dilated, split_by_batch
from xla_ops import deform_conv2d, sampling_positions
from xla_ops.deform_conv.border import BORDERS

_lecun_normal = nnx.initializers.lecun_normal()
_zeros = nnx.initializers.zeros


class Samples(nnx.Intermediate):
    """Where a `DeformConv` samples, recorded under `nnx.capture(..., Samples)`.

    A dict of `offset` [N, P, Q, G, R*S, 2] as (dy, dx), `mask` [N, P, Q, G, R*S] or
    None, `position` [N, P, Q, G, R*S, 2] as (y, x), `undeformed` [P, Q, R*S, 2], where
    that is without offsets, `map_size` [2], (H, W), and `map_sizes` [N, 2], where the
    border "v1" ends the maps, or None, all in pixels of the input map.
    """


class DeformConv(nnx.Module):
    """Convolution that samples where a branch of its own says.

    An ordinary convolution of the same input, with the same kernel size, stride,
    padding and dilation, gives each sample an offset and, when modulated, a factor
    `mask_scale * sigmoid(.)`. It starts at zero: offsets are 0 and all factors
    `mask_scale / 2`, so an unmodulated layer, or one with `mask_scale=2`, starts as
    `nnx.Conv` with the same kernel.

    Arguments are those of `nnx.Conv` where they have its names. Integers stand for
    (vertical, horizontal) pairs.

    Args:
      in_features: C.
      out_features: K.
      kernel_size: (R, S).
      strides: Of kernel and branch.
      padding: "SAME", "VALID", an integer, a pair, or ((top, bottom), (left, right)).
      kernel_dilation: Spacing of the undeformed taps.
      feature_group_count: Groups of channels that are convolved apart.
      offset_groups: Groups of input channels with offsets of their own.
      modulated: DCNv2, else DCNv1.
      max_offset: Bound of |dy| and |dx| in pixels of the input map, reached smoothly:
        max_offset * tanh(offset / max_offset), as in BasicVSR++ (Chan et al. 2022,
        arXiv:2104.13371, section 3.2); 0 has none.
      border: What lies around the map, see `xla_ops.deform_conv2d`: "zeros", or "v1",
        as in the first release's weights.
      mask_scale: 1, as in mmdetection, detectron2 and the text of the paper; or 2, as
        in the authors' example, which leaves the scale of a pretrained layer as it is.
      use_bias: Whether to add a bias.
      dtype: Of the computation; None takes that of input and parameters. The branch
        computes in float32 at least: half precision has no sub-pixel places on a large
        map.
      param_dtype: Of the parameters.
      kernel_init: Initialiser of the kernel.
      bias_init: Initialiser of the bias.
      rngs: Initialisation.

    Attributes:
      kernel: [R, S, C/feature_group_count, K].
      bias: [K], or None.
      offset_conv: The branch, an `nnx.Conv` whose output channels are all offsets
        [G, R*S, (dy, dx)] and then, when modulated, all masks [G, R*S].

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range, or groups do not divide channels.

    Source: Dai et al. 2017 (arXiv:1703.06211) section 2.1; Zhu et al. 2019
    (arXiv:1811.11168) section 3.2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[Any] = "SAME",
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        offset_groups: int = 1,
        modulated: bool = True,
        max_offset: float = 0.0,
        border: str = "zeros",
        mask_scale: int = 1,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer = _lecun_normal,
        bias_init: nnx.Initializer = _zeros,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        out_features = check_integer("out_features", out_features)
        arguments = check_arguments(
            in_features,
            out_features,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            offset_groups=offset_groups,
            max_offset=max_offset,
            border=border,
            mask_scale=mask_scale,
        )
        self.kernel_size = arguments.kernel_size
        self.strides = arguments.strides
        self.kernel_dilation = arguments.kernel_dilation
        self.padding = arguments.padding
        self.feature_group_count = arguments.feature_group_count
        self.offset_groups = arguments.offset_groups
        self.modulated = modulated
        self.max_offset = arguments.max_offset
        self.border = arguments.border
        self.mask_scale = arguments.mask_scale
        self.dtype = dtype

        groups = self.feature_group_count
        shape = (*self.kernel_size, in_features // groups, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias: nnx.Param | None = nnx.data(None)
        if use_bias:
            self.bias = nnx.Param(
                bias_init(rngs.params(), (out_features,), param_dtype)
            )
        self.offset_conv = nnx.Conv(
            in_features,
            branch_features(self.kernel_size, self.offset_groups, modulated),
            self.kernel_size,
            self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            kernel_init=_zeros,
            bias_init=_zeros,
            dtype=branch_dtype(dtype, param_dtype),
            param_dtype=param_dtype,
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "N H W C"], map_sizes: Num[Array, "N 2"] | None = None
    ) -> Float[Array, "N P Q K"]:
        """Applies the layer.

        Args:
          x: The map; its padding is zero.
          map_sizes: (height, width) of what is no padding, where the border "v1" ends;
            None: all of it.
        """
        offset, mask = self.sampling(x)
        if self.border != "v1":
            map_sizes = None
        # Costs nothing unless somebody captures them.
        if any(type(v) is Samples for v in getattr(self, "__captures__", ())):
            self.sow(Samples, "samples", self._samples(x, offset, mask, map_sizes))
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = dtypes.promote_dtype(
            (x, self.kernel[...], bias), dtype=self.dtype
        )
        return deform_conv2d(
            x,
            offset,
            kernel,
            mask,
            bias,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            border=self.border,
            map_sizes=map_sizes,
        )

    def sampling(
        self, x: Float[Array, "N H W C"]
    ) -> tuple[Float[Array, "N P Q G RS 2"], Float[Array, "N P Q G RS"] | None]:
        """Offsets (dy, dx) in input pixels, and factors of the samples (None in v1)."""
        offset, mask = split_branch(
            self.offset_conv(x), self.offset_groups, self.modulated, self.mask_scale
        )
        return bound(offset, self.max_offset), mask

    def _samples(
        self, x: Array, offset: Array, mask: Array | None, map_sizes: Array | None
    ) -> dict[str, Any]:
        """What `Samples` holds."""
        positions = functools.partial(
            sampling_positions,
            input_size=(x.shape[1], x.shape[2]),
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
        )
        _, p, q, _, taps, _ = offset.shape
        still = jnp.zeros((1, p, q, 1, taps, 2), offset.dtype)
        return {
            "offset": offset,
            "mask": mask,
            "position": positions(offset),
            "undeformed": positions(still)[0, :, :, 0],
            "map_size": jnp.asarray(x.shape[1:3], jnp.int32),
            "map_sizes": map_sizes,
        }


class Arguments(NamedTuple):
    """Numbers of a layer, as `check_arguments` returns them."""

    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: str | tuple[tuple[int, int], tuple[int, int]]
    kernel_dilation: tuple[int, int]
    feature_group_count: int
    offset_groups: int
    max_offset: float
    border: str
    mask_scale: int


def check_arguments(
    in_features: int,
    out_features: int,
    *,
    kernel_size: Any,
    strides: Any,
    padding: Any,
    kernel_dilation: Any,
    feature_group_count: Any,
    offset_groups: Any,
    max_offset: Any,
    border: Any,
    mask_scale: Any,
) -> Arguments:
    """Checks what the layer's arguments must satisfy.

    Raises:
      TypeError: One is not of its kind.
      ValueError: One is out of its range, or groups do not divide channels.
    """
    groups = {
        "feature_group_count": check_integer(
            "feature_group_count", feature_group_count
        ),
        "offset_groups": check_integer("offset_groups", offset_groups),
    }
    for name, channels, count in (
        ("feature_group_count", "in_features", in_features),
        ("feature_group_count", "out_features", out_features),
        ("offset_groups", "in_features", in_features),
    ):
        if count % groups[name]:
            raise ValueError(
                f"`{name}` is {groups[name]}; expected a divisor of `{channels}`, "
                f"which is {count}"
            )
    if not isinstance(mask_scale, numbers.Real) or mask_scale not in (1, 2):
        raise ValueError(f"`mask_scale` is {mask_scale!r}; expected 1 or 2")
    if border not in BORDERS:
        raise ValueError(f"`border` is {border!r}; expected one of {BORDERS}")
    max_offset = check_number("max_offset", max_offset)
    if max_offset < 0:
        raise ValueError(f"`max_offset` is {max_offset}; expected at least 0")
    return Arguments(
        kernel_size=check_pair("kernel_size", kernel_size),
        strides=check_pair("strides", strides),
        padding=check_padding(padding),
        kernel_dilation=check_pair("kernel_dilation", kernel_dilation),
        max_offset=max_offset,
        border=border,
        mask_scale=1 if mask_scale == 1 else 2,
        **groups,
    )


def branch_features(
    kernel_size: tuple[int, int], offset_groups: int, modulated: bool
) -> int:
    """Output channels of the branch: 2 (v1) or 3 for each sample."""
    return (3 if modulated else 2) * offset_groups * kernel_size[0] * kernel_size[1]


def branch_dtype(dtype: Any, param_dtype: Any) -> np.dtype:
    """Type that a branch computes in: that of the layer, but float32 at least."""
    wanted = jnp.dtype(param_dtype if dtype is None else dtype)
    return wanted if wanted.itemsize > 4 else jnp.dtype(jnp.float32)


def bound(offset: Float[Array, "*s"], max_offset: float) -> Float[Array, "*s"]:
    """Offsets within [-max_offset, max_offset], with slope 1 at 0; 0 bounds none."""
    if max_offset == 0:
        return offset
    return max_offset * jnp.tanh(offset / max_offset)


def split_branch(
    y: Float[Array, "N P Q L"], offset_groups: int, modulated: bool, mask_scale: int
) -> tuple[Float[Array, "N P Q G RS 2"], Float[Array, "N P Q G RS"] | None]:
    """Offsets and factors out of the branch's channels: all offsets, then all masks."""
    y = split_by_batch(y)
    taps = y.shape[-1] // ((3 if modulated else 2) * offset_groups)
    split = 2 * offset_groups * taps
    offset = y[..., :split].reshape(*y.shape[:-1], offset_groups, taps, 2)
    if not modulated:
        return offset, None
    logits = y[..., split:].reshape(*y.shape[:-1], offset_groups, taps)
    return offset, mask_scale * jax.nn.sigmoid(logits)
