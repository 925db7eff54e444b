"""Deformable convolution layer, DCNv1 and modulated (DCNv2).

Shape letters: N batch, H W input map, P Q output map, C in channels, F channels of what
the branch reads, K out channels, R S kernel taps, G offset groups; `*N` any axes, such
as that of the batch, or none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jaxtyping import Array, Float, Num

from dcn_jax.modules.arguments import check_integer, check_rngs
from dcn_jax.modules.batch_split import conv_general_dilated
from dcn_jax.modules.deform_conv_arguments import (
    Arguments,
    check_arguments,
    check_groups,
    check_map,
    check_places,
)
from dcn_jax.modules.offset_branch import branch_dtype, branch_features, read_branch
from dcn_jax.modules.sampled_conv import sampled_conv, samples
from dcn_jax.modules.torch_state_dict import read_layer

_lecun_normal = nnx.initializers.lecun_normal()
_zeros = nnx.initializers.zeros


class Samples(nnx.Intermediate):
    """Where a `DeformConv` samples, recorded under `nnx.capture(..., Samples)`.

    A dict of `offset` [N, P, Q, G, R*S, 2] as (dy, dx), `mask` [N, P, Q, G, R*S] or
    None, `position` [N, P, Q, G, R*S, 2] as (y, x), `undeformed` [P, Q, R*S, 2], where
    that is without offsets, `map_size` [2], (H, W), and `map_sizes` [N, 2], where the
    border "v1" ends the maps, or None, all in pixels of the input map. N is of all axes
    before (H, W). Positions are not moved back onto a map that
    "CIRCULAR" or "REFLECT" continues.
    """


class DeformConv(nnx.Module):
    """Convolution that samples where a branch of its own says.

    An ordinary convolution of the same input, or of features beside it, with the same
    kernel size, stride, padding and dilation, gives each sample an offset and, when
    modulated, a factor `mask_scale * sigmoid(.)`. It starts at zero: offsets are 0 and
    all factors `mask_scale / 2`, so an unmodulated layer, or one with `mask_scale=2`,
    starts as `nnx.Conv` with the same kernel.

    Arguments are those of `nnx.Conv` where they have its names. Integers stand for
    (vertical, horizontal) pairs.

    Args:
      in_features: C.
      out_features: K.
      kernel_size: (R, S).
      strides: Of kernel and branch.
      padding: "SAME", "VALID", an integer, a pair, or ((top, bottom), (left, right)),
        with zeros around the map; or "CIRCULAR" or "REFLECT": the map goes on without
        end, by itself or by its mirror image, however far offsets reach.
      kernel_dilation: Spacing of the undeformed taps.
      feature_group_count: Groups of channels that are convolved apart.
      offset_groups: Groups of input channels with offsets of their own.
      modulated: DCNv2, else DCNv1.
      max_offset: Bound of |dy| and |dx| in pixels of the input map, reached smoothly:
        max_offset * tanh(offset / max_offset), which has slope 1 at 0 (BasicVSR++, Chan
        et al. 2022, arXiv:2104.13371, has max_offset * tanh(offset)); 0 has none.
      border: What lies around the map, see `xla_ops.deform_conv2d`: "zeros", or "v1",
        as in the first release's weights.
      offset_in_features: F, if the branch reads other features than the input; None: C.
      mask_scale: 1, as in mmdetection, detectron2 and the text of the paper; or 2, as
        in the authors' example, which leaves the scale of a pretrained layer as it is.
      use_bias: Whether to add a bias.
      dtype: Of the computation; None takes that of input and parameters. The branch
        computes in float32 at least: half precision has no sub-pixel places on a large
        map.
      param_dtype: Of the parameters.
      precision: Of the products, as in `nnx.Conv`.
      implementation: Of the operator, see `xla_ops.deform_conv2d`.
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
        offset_in_features: int | None = None,
        mask_scale: int = 1,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        implementation: str | None = None,
        kernel_init: nnx.Initializer = _lecun_normal,
        bias_init: nnx.Initializer = _zeros,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        out_features = check_integer("out_features", out_features)
        if offset_in_features is not None:
            check_integer("offset_in_features", offset_in_features)
        arguments = check_arguments(
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            offset_groups=offset_groups,
            modulated=modulated,
            max_offset=max_offset,
            border=border,
            mask_scale=mask_scale,
            precision=precision,
            implementation=implementation,
        )
        check_groups(in_features, out_features, arguments)
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
        self.precision = precision
        self.implementation = implementation

        groups = self.feature_group_count
        shape = (*self.kernel_size, in_features // groups, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias: nnx.Param | None = nnx.data(None)
        if use_bias:
            self.bias = nnx.Param(
                bias_init(rngs.params(), (out_features,), param_dtype)
            )
        self.offset_conv = nnx.Conv(
            in_features if offset_in_features is None else int(offset_in_features),
            branch_features(self.kernel_size, self.offset_groups, modulated),
            self.kernel_size,
            self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            kernel_init=_zeros,
            bias_init=_zeros,
            dtype=branch_dtype(dtype, param_dtype),
            param_dtype=param_dtype,
            precision=precision,
            conv_general_dilated=conv_general_dilated,
            rngs=rngs,
        )

    @classmethod
    def from_torch(
        cls,
        state_dict: Mapping[str, Any],
        *,
        conv: str = "",
        offset_conv: str | None = None,
        mask_conv: str | None = None,
        padding: str | int | Sequence[Any],
        feature_group_count: int = 1,
        offset_groups: int = 1,
        **arguments: Any,
    ) -> "DeformConv":
        """Makes a layer with weights of torch, whose branch is in the state dict too.

        It does what mmcv's `DeformConv2dPack` and `ModulatedDeformConv2dPack` do, and a
        `torchvision.ops.DeformConv2d` that is given what ordinary convolutions of the
        same kernel size, stride, padding and dilation compute. Whether it is modulated
        follows from the branch's channels, which are all offsets and then all masks, or
        from `mask_conv`.

        Args:
          state_dict: Tensors by name, of torch or arrays (`weights.read_state_dict`).
          conv: Name of the layer in it: what stands before ".weight" and ".bias"; "":
            it is the layer's own.
          offset_conv: Name of the branch; None: CONV.conv_offset, as in mmcv.
          mask_conv: Name of a branch of its own for the masks.
          padding: As the layer was made with.
          feature_group_count: torch's `groups`.
          offset_groups: mmcv's `deform_groups`.
          **arguments: Further ones of the constructor that no tensor tells, such as
            `strides`, `kernel_dilation`, `mask_scale` (2 where the code multiplies the
            sigmoid by 2), `dtype` and `param_dtype`.

        Raises:
          TypeError: An argument is not of its kind.
          ValueError: A tensor is not there, or does not fit; the message names it.
        """
        offset_groups = check_integer("offset_groups", offset_groups)
        groups = check_integer("feature_group_count", feature_group_count)
        found = read_layer(state_dict, conv, offset_conv, mask_conv, offset_groups)
        *kernel_size, channels, out_features = found.kernel.shape
        layer = cls(
            channels * groups,
            out_features,
            kernel_size,
            padding=padding,
            feature_group_count=groups,
            offset_groups=offset_groups,
            offset_in_features=found.branch_kernel.shape[2],
            modulated=found.modulated,
            use_bias=found.bias is not None,
            rngs=nnx.Rngs(0),
            **arguments,
        )
        for variable, value in (
            (layer.kernel, found.kernel),
            (layer.bias, found.bias),
            (layer.offset_conv.kernel, found.branch_kernel),
            (layer.offset_conv.bias, found.branch_bias),
        ):
            if variable is not None:
                variable.set_value(jnp.array(value, variable.get_value().dtype))
        return layer

    def __call__(
        self,
        x: Float[Array, "*N H W C"],
        offset_features: Float[Array, "*N H W F"] | None = None,
        *,
        base_offset: Num[Array, "*N P Q 2"] | Num[Array, "*N P Q G 2"] | None = None,
        map_sizes: Num[Array, "*N 2"] | None = None,
    ) -> Float[Array, "*N P Q K"]:
        """Applies the layer.

        Args:
          x: The map; its padding is zero. One image, or any axes of them.
          offset_features: What the branch reads instead, such as features of two frames
            that are to be aligned (EDVR, Wang et al. 2019, arXiv:1905.02716).
          base_offset: Added to the offsets of all taps, behind `max_offset`, such as an
            optical flow (BasicVSR++, Chan et al. 2022, arXiv:2104.13371): (dy, dx) in
            pixels of `x`, for each output pixel, or for each of its offset groups.
          map_sizes: (height, width) of what is no padding, where the border "v1" ends;
            None: all of it.

        Raises:
          ValueError: A shape does not fit.
        """
        arguments = self._arguments()
        check_map("x", x, self.kernel[...].shape[2] * self.feature_group_count)
        if offset_features is None:
            offset_features = x
        else:
            check_places(x, offset_features)
        offset, mask = self.sampling(offset_features, base_offset)
        # Costs nothing unless somebody captures them.
        if any(type(v) is Samples for v in getattr(self, "__captures__", ())):
            self.sow(Samples, "samples", samples(x, offset, mask, map_sizes, arguments))
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = dtypes.promote_dtype(
            (x, self.kernel[...], bias), dtype=self.dtype
        )
        return sampled_conv(x, offset, kernel, mask, bias, map_sizes, arguments)

    def sampling(
        self,
        offset_features: Float[Array, "*N H W F"],
        base_offset: Num[Array, "*N P Q 2"] | Num[Array, "*N P Q G 2"] | None = None,
    ) -> tuple[Float[Array, "*N P Q G RS 2"], Float[Array, "*N P Q G RS"] | None]:
        """Offsets (dy, dx) in input pixels, and factors of the samples (None in v1).

        Args:
          offset_features: What the branch reads: the layer's input, or what is given
            in its place.
          base_offset: As given to the layer.
        """
        check_map("offset_features", offset_features, self.offset_conv.in_features)
        return read_branch(
            self.offset_conv(offset_features),
            base_offset,
            offset_groups=self.offset_groups,
            modulated=self.modulated,
            mask_scale=self.mask_scale,
            max_offset=self.max_offset,
        )

    def _arguments(self) -> Arguments:
        return Arguments(*(getattr(self, name) for name in Arguments._fields))
