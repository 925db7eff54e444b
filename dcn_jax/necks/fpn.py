"""Feature pyramid network.

Shape letters: N images, H W map of a level, C channels.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dcn_jax.modules.arguments import check_integer, check_rngs
from dcn_jax.modules.fast_forms import pointwise_conv
from dcn_jax.modules.spatial_conv import spatial_conv
from dcn_jax.necks.levels import Levels
from dcn_jax.padding import clear_padding, map_sizes

_MAPS = ("c2", "c3", "c4", "c5")
# Every input has as much to say, whatever their number (Caffe2's Xavier).
_init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nnx.Module):
    """P2 to P6 for proposals, P2 to P5 for RoIs, all of the same channels.

    A 1x1 convolution of each map, the coarser level added to it, enlarged, then a 3x3
    convolution.

    Args:
      channels: Channels of the backbone's maps.
      strides: Their strides, each twice the one before.
      features: Channels of every level.
      convolved_p6: Whether P6 is a 3x3 convolution of c5 at stride 2, as MSRA's, in
        place of every other pixel of P5.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      rpn_strides, rpn_features, roi_strides, roi_features: See `Neck`.
      lateral: 1x1 convolutions of c2 to c5.
      output: 3x3 convolutions that make P2 to P5.
      p6: That of P6; only when it is convolved.

    Raises:
      TypeError: `features` is no integer, or `rngs` no `nnx.Rngs`.
      ValueError: A stride is not twice the one before, or `features` is less than 1.

    Source: Lin et al. 2017 (arXiv:1612.03144), as in torchvision, detectron2 and
    mmdetection: nearest pixels, no norms, no ReLU.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        strides: Mapping[str, int],
        *,
        features: int = 256,
        convolved_p6: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        features = check_integer("features", features)
        steps = tuple(strides[name] for name in _MAPS)
        if any(coarse != 2 * fine for fine, coarse in pairwise(steps)):
            raise ValueError(
                f"`strides` is {dict(strides)}; expected each to be twice the one "
                "before (`output_stride=32` of the backbone)"
            )
        self.roi_strides = steps
        self.rpn_strides = (*steps, 2 * steps[-1])
        self.rpn_features = self.roi_features = features
        types: dict[str, Any] = dict(
            kernel_init=_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.lateral = nnx.List(
            nnx.Conv(
                channels[name],
                features,
                (1, 1),
                conv_general_dilated=pointwise_conv,
                **types,
            )
            for name in _MAPS
        )
        three: dict[str, Any] = dict(
            padding=1, conv_general_dilated=spatial_conv, **types
        )
        self.output = nnx.List(
            nnx.Conv(features, features, (3, 3), **three) for _ in _MAPS
        )
        self.convolved_p6 = convolved_p6
        if convolved_p6:
            self.p6 = nnx.Conv(channels["c5"], features, (3, 3), strides=2, **three)

    def __call__(
        self,
        maps: Mapping[str, Float[Array, "N H W C"]],
        sizes: Int[Array, "N 2"] | None = None,
    ) -> Levels:
        """The levels, see `Neck`; they are zero on the padding."""
        valid = [
            None if sizes is None else map_sizes(sizes, s) for s in self.roi_strides
        ]
        levels = []
        above = None
        for i in reversed(range(len(_MAPS))):
            x = self.lateral[i](maps[_MAPS[i]])
            if above is not None:
                x += _enlarge(above)[:, : x.shape[1], : x.shape[2]]
            above = x
            # The bias of the 1x1 convolution stands on the padding too.
            x = self.output[i](clear_padding(x, valid[i]))
            levels.append(clear_padding(x, valid[i]))
        levels = tuple(reversed(levels))
        p6 = levels[-1][:, ::2, ::2]
        if self.convolved_p6:
            last = None if sizes is None else map_sizes(sizes, self.rpn_strides[-1])
            p6 = clear_padding(self.p6(maps["c5"]), last)
        return Levels((*levels, p6), levels)


def _enlarge(x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 C"]:
    """Every pixel four times; row i of the result is row i // 2."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)
