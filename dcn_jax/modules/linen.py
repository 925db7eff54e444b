"""The deformable layers for Flax Linen, with the parameter names of the NNX ones.

So `nnx.to_pure_dict(nnx.state(layer, nnx.Param))` are parameters of its twin here.

Shape letters: N batch, H W input or feature map, P Q output map, C in channels, F
channels of what the branch reads, K out channels, R S kernel taps, G offset groups,
B RoIs of an image, h w bins; `*N` any axes, such as that of the batch, or none.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from jaxtyping import Array, Float, Int, Num

from dcn_jax.modules import (
    arguments,
    batch_split,
    offset_branch,
    roi_pool,
    sampled_conv,
)
from dcn_jax.modules.deform_conv_arguments import (
    Arguments,
    check_arguments,
    check_groups,
    check_map,
    check_places,
)
from xla_ops import deform_roi_pool

_zeros = nn.initializers.zeros
_gaussian = nn.initializers.normal(0.01)


class DeformConv(nn.Module):
    """Deformable convolution: `dcn_jax.modules.DeformConv` for Linen.

    Parameters: kernel [R, S, C/feature_group_count, K], bias [K], and
    offset_conv/{kernel, bias}, of the branch. Where "intermediates" is mutable,
    `samples` there holds what `modules.deform_conv.Samples` does.

    Attributes:
      features: K.
      kernel_size: (R, S), or one number for both, as for all pairs.
      strides: Of kernel and branch.
      padding: "SAME", "VALID", an integer, a pair, or ((top, bottom), (left, right)),
        with zeros around the map; or "CIRCULAR" or "REFLECT": the map goes on without
        end, by itself or by its mirror image, however far offsets reach.
      kernel_dilation: Spacing of the undeformed taps.
      feature_group_count: Groups of channels that are convolved apart.
      offset_groups: Groups of input channels with offsets of their own.
      modulated: DCNv2, else DCNv1.
      max_offset: Bound of |dy| and |dx| in pixels of the input map, reached smoothly:
        max_offset * tanh(offset / max_offset); 0 has none.
      border: What lies around the map, see `xla_ops.deform_conv2d`: "zeros", or "v1",
        as in the first release's weights.
      mask_scale: 1, as in mmdetection, detectron2 and the text of the paper; or 2, as
        in the authors' example, which leaves the scale of a pretrained layer as it is.
      use_bias: Whether to add a bias.
      dtype: Of the computation; None takes that of input and parameters. The branch
        computes in float32 at least.
      param_dtype: Of the parameters.
      precision: Of the products, as in `flax.linen.Conv`.
      implementation: Of the operator, see `xla_ops.deform_conv2d`.
      kernel_init: Initialiser of the kernel.
      bias_init: Initialiser of the bias.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range, or groups do not divide channels.
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
    precision: Any = None
    implementation: str | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = _zeros

    def __post_init__(self):
        arguments.check_integer("features", self.features)
        _checked(self)
        super().__post_init__()

    def setup(self):
        """Makes the branch."""
        checked = _checked(self)
        self.offset_conv = nn.Conv(
            offset_branch.branch_features(
                checked.kernel_size, checked.offset_groups, self.modulated
            ),
            checked.kernel_size,
            strides=checked.strides,
            padding=checked.padding,
            kernel_dilation=checked.kernel_dilation,
            kernel_init=_zeros,
            bias_init=_zeros,
            dtype=offset_branch.branch_dtype(self.dtype, self.param_dtype),
            param_dtype=self.param_dtype,
            precision=self.precision,
            conv_general_dilated=batch_split.conv_general_dilated,
        )

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*N H W C"],
        offset_features: Float[Array, "*N H W F"] | None = None,
        *,
        base_offset: Num[Array, "*N P Q 2"] | Num[Array, "*N P Q G 2"] | None = None,
        map_sizes: Num[Array, "*N 2"] | None = None,
    ) -> Float[Array, "*N P Q K"]:
        """Applies the layer: arguments are those of `modules.DeformConv`'s."""
        checked = _checked(self)
        groups = checked.feature_group_count
        features = arguments.check_integer("features", self.features)
        in_features = x.shape[-1]
        if self.has_variable("params", "kernel"):
            in_features = self.get_variable("params", "kernel").shape[2] * groups
        check_map("x", x, in_features)
        check_groups(in_features, features, checked)
        shape = (*checked.kernel_size, in_features // groups, features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (features,), self.param_dtype)
        if offset_features is None:
            offset_features = x
        else:
            check_places(x, offset_features)
        offset, mask = self.sampling(offset_features, base_offset)
        # Else it would be computed in vain.
        if self.is_mutable_collection("intermediates"):
            record = sampled_conv.samples(x, offset, mask, map_sizes, checked)
            self.sow("intermediates", "samples", record)
        x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return sampled_conv.sampled_conv(
            x, offset, kernel, mask, bias, map_sizes, checked
        )

    def sampling(
        self,
        offset_features: Float[Array, "*N H W F"],
        base_offset: Num[Array, "*N P Q 2"] | Num[Array, "*N P Q G 2"] | None = None,
    ) -> tuple[Float[Array, "*N P Q G RS 2"], Float[Array, "*N P Q G RS"] | None]:
        """Offsets and factors of the samples, as `modules.DeformConv.sampling`.

        `layer.apply(variables, x, method="sampling")`, or of a bound layer.

        Raises:
          ValueError: A shape does not fit.
        """
        checked = _checked(self)
        if self.has_variable("params", "offset_conv"):
            kernel = self.get_variable("params", "offset_conv")["kernel"]
            check_map("offset_features", offset_features, kernel.shape[2])
        return offset_branch.read_branch(
            self.offset_conv(offset_features),
            base_offset,
            offset_groups=checked.offset_groups,
            modulated=self.modulated,
            mask_scale=checked.mask_scale,
            max_offset=checked.max_offset,
        )


class DeformRoIPool(nn.Module):
    """Deformable RoI pooling: `dcn_jax.modules.DeformRoIPool` for Linen.

    Parameters: offset_fc/{kernel, bias} and, when modulated, fc1 and fc2 alike. Where
    "intermediates" is mutable, `bins` there holds what `modules.roi_pool.Bins` does.

    Attributes:
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

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.
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
            dtype=offset_branch.branch_dtype(self.dtype, self.param_dtype),
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


def _checked(layer: DeformConv) -> Arguments:
    """The arguments of a layer, its fields; no method of it, as Flax wraps those."""
    return check_arguments(**{name: getattr(layer, name) for name in Arguments._fields})
