"""How healthy the learned offsets are: statistics of every deformable convolution.

Shape letters: N batch, H W input map, P Q output map, G offset groups, R S kernel taps.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dcn_jax.explain.capture import capture_samples
from dcn_jax.modules.continued_map import is_continued

# A sample with less weight than this neither says nor learns much.
DEAD_MASK = 0.01


def offset_health(
    module: Any, call: Callable[[Any], Any]
) -> dict[str, Float[Array, ""]]:
    """Offset statistics of a forward pass, averaged over the deformable layers.

    Args:
      module: A model with `DeformConv` layers in it: an NNX module, or a Linen module
        bound to its variables, `module.bind(variables)`. It is not changed.
      call: The pass: is given a copy of the model, for example
        `lambda model: model(images)`. Its result is dropped.

    Returns:
      Scalars, each the mean over the layers that ran; empty when none did. Layers of
      one module that `nnx.scan` or `nnx.vmap` runs count one by one.

      - offset/mean_abs: mean of |dy| and |dx|, in pixels of the input map.
      - offset/outside: share of the samples whose position is not in
        [0, H-1] x [0, W-1]: all or part of their value is padding. Where the padding
        is "CIRCULAR" or "REFLECT", none is.
      - offset/dead: share of the samples that neither contribute nor learn: the
        position is below -1 or at or above H (W), so that no pixel is next to it, or
        the mask is below 0.01.

    Raises:
      TypeError: `module` is neither.
      ValueError: It is a Linen module without variables, or one whose layers leave no
        record, as under a lifted transformation that does not keep them.
    """
    layers = []
    for record in capture_samples(module, call):
        # Of other layers that record `Samples`, nothing more is known.
        endless = is_continued(getattr(record.layer, "padding", None))
        of_layer = functools.partial(_of_layer, endless=endless)
        layers.append(jax.vmap(of_layer)(record.samples))
    if not layers:
        return {}
    return {
        f"offset/{name}": jnp.mean(jnp.concatenate([layer[name] for layer in layers]))
        for name in layers[0]
    }


def _of_layer(
    samples: Mapping[str, Array], *, endless: bool
) -> dict[str, Float[Array, ""]]:
    offset, position = samples["offset"], samples["position"]
    size = samples["map_size"].astype(position.dtype)[(None,) * 5]
    if endless:
        outside = dead = ~jnp.isfinite(position).all(axis=-1)
    else:
        outside = jnp.any(~((position >= 0) & (position <= size - 1)), axis=-1)
        dead = jnp.any(~((position >= -1) & (position < size)), axis=-1)
    if "mask" in samples:
        dead |= samples["mask"] < DEAD_MASK
    return {
        "mean_abs": jnp.mean(jnp.abs(offset)),
        "outside": jnp.mean(outside, dtype=offset.dtype),
        "dead": jnp.mean(dead, dtype=offset.dtype),
    }
