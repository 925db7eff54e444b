"""Class scores of every pixel, from a coarse map by fixed bilinear upsampling.

Source: Chen et al. 2015 (arXiv:1412.7062); the upsampling is that of the released code
of Dai et al. 2017 (arXiv:1703.06211), a fixed transposed convolution.

Shape letters: N images, H W map or canvas, C channels, L classes.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dcn_jax.modules.arguments import check_integer, check_rngs
from dcn_jax.modules.fast_forms import pointwise_conv
from dcn_jax.padding import clear_padding, map_sizes
from dcn_jax.segmentation.records import IGNORED
from dcn_jax.trunk import Features


class PixelHead(nnx.Module):
    """A 1x1 convolution, and its scores enlarged to the size of the image.

    Args:
      in_features: Channels of the map.
      num_classes: Labels, the background among them; at most 255.
      strides: Pixels of the image to one step of the map: one even number.
      dtype: Of the convolution; None takes the parameters'. Scores are enlarged in
        float32 at least.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Raises:
      TypeError: A number is not an integer, or `rngs` is no `nnx.Rngs`.
      ValueError: A number is out of its range, or there are several strides.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        strides: Sequence[int],
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        self.num_classes = check_integer("num_classes", num_classes)
        if num_classes > IGNORED:
            raise ValueError(
                f"`num_classes` is {num_classes}; expected at most {IGNORED}, which "
                "is no label"
            )
        self.strides = tuple(check_integer("strides", stride) for stride in strides)
        if len(self.strides) != 1 or self.strides[0] % 2:
            raise ValueError(f"`strides` is {self.strides}; expected one even number")
        self.score = nnx.Conv(
            check_integer("in_features", in_features),
            num_classes,
            (1, 1),
            kernel_init=nnx.initializers.normal(0.01),
            conv_general_dilated=pointwise_conv,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, features: Features) -> Float[Array, "N H W L"]:
        """Logits of every pixel of the canvas."""
        (x,), (stride,) = features.levels.roi, self.strides
        x = self.score(x)
        if x.dtype.itemsize < 4:
            x = x.astype(jnp.float32)
        # Beyond the border of an image is nothing, also where its canvas goes on.
        valid = None
        if features.sizes is not None:
            valid = map_sizes(features.sizes, stride)
        x = enlarge(clear_padding(x, valid), stride)
        height, width = features.images.shape[1:3]
        return x[:, :height, :width]


def enlarge(x: Float[Array, "N H W C"], factor: int) -> Float[Array, "N H2 W2 C"]:
    """Bilinear upsampling by an even factor; beyond the border of the map are zeros.

    The transposed convolution with the bilinear kernel of 2 * `factor` pixels and
    stride `factor`, of which `factor` / 2 pixels are cut from each side: pixel p of the
    result is at (p + 1/2) / `factor` - 1/2 on the map. It is computed as one matrix
    product for each axis, columns innermost: a few classes fill no vector. A score that
    is not finite makes its row and column of the result NaN.
    """
    rows, columns = (_weights(size, factor, x.dtype) for size in x.shape[1:3])
    x = jnp.einsum("nhwc,ph->npcw", x, rows, precision="highest")
    x = jnp.einsum("npcw,qw->npcq", x, columns, precision="highest")
    return x.transpose(0, 1, 3, 2)


def _weights(size: int, factor: int, dtype) -> Float[Array, "{size*factor} {size}"]:
    place = (np.arange(size * factor) + 0.5) / factor - 0.5
    distance = np.abs(place[:, None] - np.arange(size))
    return jnp.asarray(np.maximum(1 - distance, 0), dtype)
