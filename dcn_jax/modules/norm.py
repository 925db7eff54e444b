"""Normalisations that leave the padding of a canvas out.

Shape letters: N batch, H W map, C channels.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dcn_jax.padding import clear_padding


class FrozenStat(nnx.Variable):
    """A tensor of a frozen batch normalisation: never trained, always saved."""


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation with fixed statistics and a fixed affine map.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias, over the last axis.

    The four tensors are `FrozenStat` variables and no `nnx.Param`: an optimiser over
    `nnx.Param` does not see them.
    """

    def __init__(self, num_features: int, *, epsilon: float = 1e-5, param_dtype):
        self.epsilon = epsilon
        self.scale = FrozenStat(jnp.ones((num_features,), param_dtype))
        self.bias = FrozenStat(jnp.zeros((num_features,), param_dtype))
        self.mean = FrozenStat(jnp.zeros((num_features,), param_dtype))
        self.var = FrozenStat(jnp.ones((num_features,), param_dtype))

    def __call__(
        self, x: Float[Array, "N H W C"], sizes: Int[Array, "N 2"] | None = None
    ) -> Float[Array, "N H W C"]:
        """Normalises `x`; `sizes` is accepted for symmetry with group norm."""
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
        bias = self.bias[...] - self.mean[...] * scale
        # Not trained wherever it is used, also if somebody differentiates with
        # respect to every variable.
        scale, bias = jax.lax.stop_gradient((scale, bias))
        scale, bias = (v.astype(x.dtype)[None, None, None] for v in (scale, bias))
        return x * scale + bias


class GroupNorm(nnx.Module):
    """Group normalisation whose statistics leave the padding out.

    Wu & He 2018 (arXiv:1803.08494): 32 groups, or as many as there are with two or more
    channels in each (one channel would make it instance normalisation). Statistics are
    taken in float32 at least.

    Written as sums over positions and one multiply-add, which XLA differentiates into
    two passes over the map.
    """

    def __init__(self, num_features: int, *, epsilon: float = 1e-5, param_dtype):
        pairs = num_features // (1 if num_features % 2 else 2)
        self.groups = math.gcd(32, pairs)
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((num_features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((num_features,), param_dtype))

    def __call__(
        self, x: Float[Array, "N H W C"], sizes: Int[Array, "N 2"] | None = None
    ) -> Float[Array, "N H W C"]:
        """Normalises `x` by the statistics of each image's valid part."""
        images, height, width, channels = x.shape
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        valid = clear_padding(x, sizes).astype(dtype)
        count = jnp.asarray(height * width, dtype)
        if sizes is not None:
            count = jnp.prod(sizes, axis=1).astype(dtype)[:, None]
        per_group = channels // self.groups

        def group_mean(sums):
            sums = sums.reshape(images, self.groups, per_group).sum(2)
            return jnp.repeat(sums / (count * per_group), per_group, axis=1)

        mean = group_mean(jnp.sum(valid, (1, 2)))
        variance = group_mean(jnp.sum(valid * valid, (1, 2))) - mean * mean
        scale = jax.lax.rsqrt(jnp.maximum(variance, 0) + self.epsilon)
        scale *= self.scale[...].astype(dtype)[None]
        bias = self.bias[...].astype(dtype)[None] - mean * scale
        y = x.astype(dtype) * scale[:, None, None] + bias[:, None, None]
        return y.astype(x.dtype)


NORMS = {"frozen_bn": FrozenBatchNorm, "group_norm": GroupNorm}


def make_norm(
    kind: str, num_features: int, *, epsilon: float = 1e-5, param_dtype: Any
) -> FrozenBatchNorm | GroupNorm:
    """A normalisation of `NORMS`; `epsilon` is added to its variances.

    Raises:
      ValueError: There is no such kind.
    """
    if kind not in NORMS:
        raise ValueError(f"`norm` is {kind!r}; expected one of {tuple(NORMS)}")
    return NORMS[kind](num_features, epsilon=epsilon, param_dtype=param_dtype)
