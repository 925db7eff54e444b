"""The head of R-FCN: every RoI votes with bins of score maps, and no layer follows.

Source: Dai et al. 2016 (arXiv:1605.06409) section 2; deformable as in Dai et al. 2017
(arXiv:1703.06211) sections 2.2 and 3.1.

Shape letters: N images, B RoIs of an image, k bins along a side, L foreground classes.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dcn_jax.boxes import BoxCode
from dcn_jax.detection.box_head import CODE
from dcn_jax.detection.roi_head import RoIOutput, pool_rois
from dcn_jax.modules.arguments import check_integer, check_number
from dcn_jax.modules.psroi_pool import PSRoIPool
from dcn_jax.trunk import Features


class PSRoIHead(nnx.Module):
    """Score maps and box maps of each bin, pooled; the mean of the bins is the result.

    Boxes are the same for all classes. There is no vector of a RoI before its classes,
    so that this head cannot mimic.

    Args:
      in_features: Channels of the map.
      num_classes: Foreground classes, L.
      strides: Pixels of the image to one step of the map.
      bins: k.
      deformable: Whether bins move, those of each class and of the boxes apart.
      background_boxes: Whether there are box maps of the background too, which nothing
        teaches: 8 k^2 as in the released code, in place of 4 k^2.
      samples_per_part: See `PSRoIPool`.
      offset_scale: Likewise.
      code: Of its boxes.
      loss_beta: Bend of the box loss, on codes with these weights.
      dtype: Of the computation; None takes the parameters'.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      scores: Pooling of k^2 (L + 1) maps, the background's first.
      boxes: That of the box maps.

    Raises:
      TypeError: A number is not an integer, or `rngs` is no `nnx.Rngs`.
      ValueError: A number is less than 1.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        strides: Sequence[int],
        bins: int = 7,
        deformable: bool = True,
        background_boxes: bool = False,
        samples_per_part: int = 4,
        offset_scale: float = 0.1,
        code: BoxCode = CODE,
        loss_beta: float = 1.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_classes = check_integer("num_classes", num_classes)
        self.strides = tuple(check_integer("strides", stride) for stride in strides)
        self.code = code
        self.loss_beta = check_number("loss_beta", loss_beta)
        scales = [1 / stride for stride in self.strides]
        pool: dict[str, Any] = dict(
            output_size=check_integer("bins", bins),
            spatial_scale=tuple(scales) if len(scales) > 1 else scales[0],
            deformable=deformable,
            samples_per_part=samples_per_part,
            offset_scale=offset_scale,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        classes = num_classes + 1
        self.scores = PSRoIPool(in_features, classes, offset_classes=classes, **pool)
        self.boxes = PSRoIPool(in_features, 8 if background_boxes else 4, **pool)

    def __call__(self, features: Features, rois: Float[Array, "N B 4"]) -> RoIOutput:
        """Pools the RoIs, and says what they hold."""
        votes = (
            jnp.mean(pool_rois(pool, features, rois, self.strides), axis=(2, 3))
            for pool in (self.scores, self.boxes)
        )
        logits, deltas = votes
        return RoIOutput(logits, deltas[..., None, -4:], None)
