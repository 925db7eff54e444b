"""The one level of the papers' networks without a pyramid.

Shape letters: N images, H W map, C channels.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dcn_jax.modules.arguments import check_integer, check_rngs
from dcn_jax.modules.fast_forms import pointwise_conv
from dcn_jax.necks.levels import Levels
from dcn_jax.padding import clear_padding, map_sizes


class DilatedConv5(nnx.Module):
    """Proposals from conv4, RoIs from a 1x1 reduction of conv5 at the same stride.

    The reduction has a ReLU. The papers' text has 1024 channels; the released code has
    these in R-FCN and DeepLab, and 256 in Faster R-CNN.

    Args:
      channels: Channels of the backbone's maps.
      strides: Their strides; those of "c4" and "c5" are equal.
      features: Channels of the reduced map.
      rpn_on_conv5: Whether proposals come from the reduced map too, as those of a
        network that is nothing but an RPN.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      rpn_strides, rpn_features, roi_strides, roi_features: See `Neck`.

    Raises:
      TypeError: `features` is no integer, or `rngs` no `nnx.Rngs`.
      ValueError: The strides differ, or `features` is less than 1.

    Source: Dai et al. 2017 (arXiv:1703.06211) section 3 and its released code; Zhu et
    al. 2019 (arXiv:1811.11168) section 5.1.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        strides: Mapping[str, int],
        *,
        features: int = 256,
        rpn_on_conv5: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        features = check_integer("features", features)
        if strides["c4"] != strides["c5"]:
            raise ValueError(
                f"`strides` is {dict(strides)}; expected one stride for c4 and c5 "
                "(`output_stride=16` of the backbone)"
            )
        self.rpn_strides = self.roi_strides = (strides["c4"],)
        self.rpn_on_conv5 = rpn_on_conv5
        self.rpn_features = features if rpn_on_conv5 else channels["c4"]
        self.roi_features = features
        self.reduction = nnx.Conv(
            channels["c5"],
            features,
            (1, 1),
            kernel_init=nnx.initializers.normal(0.01),
            conv_general_dilated=pointwise_conv,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        maps: Mapping[str, Float[Array, "N H W C"]],
        sizes: Int[Array, "N 2"] | None = None,
    ) -> Levels:
        """The levels; RoI pooling reads no padding, so for it none is cleared."""
        reduced = jax.nn.relu(self.reduction(maps["c5"]))
        if not self.rpn_on_conv5:
            return Levels((maps["c4"],), (reduced,))
        # The bias of the reduction stands on the padding too.
        valid = None if sizes is None else map_sizes(sizes, self.rpn_strides[0])
        reduced = clear_padding(reduced, valid)
        return Levels((reduced,), (reduced,))
