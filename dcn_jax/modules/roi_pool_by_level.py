"""Deformable RoI pooling with a branch for each pyramid level.

Shape letters: N batch, H W feature map, C channels, B RoIs of an image, h w bins.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dcn_jax.modules.arguments import check_integer, check_rngs
from dcn_jax.modules.offset_branch import branch_dtype
from dcn_jax.modules.roi_pool import DeformRoIPooling, flatten

_zeros = nnx.initializers.zeros


class LevelBranch(nnx.Module):
    """Offsets of the bins, and factors when modulated, from what a level's RoIs hold.

    Attributes:
      offset_fc1, offset_fc2, offset_fc3: Layers with a ReLU between; the last one's
        outputs are offsets [h, w, (dy, dx)] and start at zero. It is the only one where
        `hidden_features` is 0.
      mask_fc1, mask_fc2: Likewise, for factors [h, w]; only when modulated.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        output_size: tuple[int, int],
        *,
        modulated: bool,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.output_size, self.modulated = output_size, modulated
        bins = output_size[0] * output_size[1]
        types: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        last: dict[str, Any] = dict(
            kernel_init=_zeros,
            bias_init=_zeros,
            **(types | dict(dtype=branch_dtype(dtype, param_dtype))),
        )
        features = bins * in_features
        self.has_hidden = hidden_features > 0
        if self.has_hidden:
            self.offset_fc1 = nnx.Linear(features, hidden_features, **types)
            self.offset_fc2 = nnx.Linear(hidden_features, hidden_features, **types)
        self.offset_fc3 = nnx.Linear(hidden_features or features, 2 * bins, **last)
        if modulated:
            if self.has_hidden:
                self.mask_fc1 = nnx.Linear(features, hidden_features, **types)
            self.mask_fc2 = nnx.Linear(hidden_features or features, bins, **last)

    def __call__(
        self, x: Float[Array, "N B hwC"]
    ) -> tuple[Float[Array, "N B h w 2"], Float[Array, "N B h w"] | None]:
        """Normalised offsets (dy, dx) and factors of the bins (None in v1)."""
        y = x
        if self.has_hidden:
            y = jax.nn.relu(self.offset_fc2(jax.nn.relu(self.offset_fc1(x))))
        y = self.offset_fc3(y)
        offset = y.reshape(*y.shape[:2], *self.output_size, 2)
        if not self.modulated:
            return offset, None
        y = self.mask_fc2(jax.nn.relu(self.mask_fc1(x)) if self.has_hidden else x)
        return offset, jax.nn.sigmoid(y).reshape(*y.shape[:2], *self.output_size)


class DeformRoIPoolByLevel(DeformRoIPooling):
    """`DeformRoIPool` with a branch for each level: mmdetection's, MSRA's with FPN.

    Four times the parameters; every RoI goes through all branches, of which its level
    chooses one.

    Args:
      in_features: C.
      output_size: (h, w), or one integer for both.
      spatial_scale: Size of each level's map over size of the image.
      hidden_features: Width of the branches' hidden layers; 0 has none, as MSRA's.
      modulated: Whether each bin gets a factor too.
      sampling_ratio: Samples of a bin along each axis; 0 takes as many as the size of
        the RoI wants.
      offset_scale: gamma of the paper, a factor of the normalised offsets.
      dtype: Of the computation; None takes that of maps and parameters. The last layers
        compute in float32 at least.
      param_dtype: Of the parameters.
      rngs: Initialisation.

    Attributes:
      branches: `LevelBranch` of each level.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: An argument is out of its range.

    Source: `DeformRoIPoolPack` and `ModulatedDeformRoIPoolPack` of mmcv; without hidden
    layers the FPN of Dai et al. 2017's released code.
    """

    def __init__(
        self,
        in_features: int,
        output_size: int | Sequence[int],
        *,
        spatial_scale: float | Sequence[float],
        hidden_features: int = 1024,
        modulated: bool = True,
        sampling_ratio: int = 0,
        offset_scale: float = 0.1,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rngs(rngs)
        in_features = check_integer("in_features", in_features)
        hidden_features = check_integer("hidden_features", hidden_features, 0)
        super().__init__(
            output_size,
            spatial_scale=spatial_scale,
            modulated=modulated,
            sampling_ratio=sampling_ratio,
            offset_scale=offset_scale,
            dtype=dtype,
        )
        levels = 1
        if isinstance(self.spatial_scale, tuple):
            levels = len(self.spatial_scale)
        self.branches = nnx.List(
            LevelBranch(
                in_features,
                hidden_features,
                self.output_size,
                modulated=modulated,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for _ in range(levels)
        )

    def branch(
        self,
        pooled: Float[Array, "N B h w C"],
        levels: Int[Array, "N B"] | None = None,
    ) -> tuple[Float[Array, "N B h w 2"], Float[Array, "N B h w"] | None]:
        """What the branch of each RoI's level says, see `DeformRoIPooling`."""
        x = flatten(pooled)
        offset, mask = self.branches[0](x)
        for level, branch in enumerate(self.branches[1:], start=1):
            here = (levels == level)[..., None, None]
            others, factors = branch(x)
            offset = jnp.where(here[..., None], others, offset)
            if mask is not None and factors is not None:
                mask = jnp.where(here, factors, mask)
        return offset, mask
