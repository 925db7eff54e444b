"""The branch of a deformable convolution, which says where and how much it samples.

Shape letters: P Q output map, L channels of the branch, G offset groups, R S kernel
taps; `*N` any axes, such as that of the batch, or none.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from dcn_jax.modules.batch_split import split_by_batch


def branch_features(
    kernel_size: tuple[int, int], offset_groups: int, modulated: bool
) -> int:
    """Output channels of the branch: 2 (v1) or 3 for each sample."""
    return (3 if modulated else 2) * offset_groups * kernel_size[0] * kernel_size[1]


def branch_dtype(dtype: Any, param_dtype: Any) -> np.dtype:
    """Type that a branch computes in: that of the layer, but float32 at least."""
    wanted = jnp.dtype(param_dtype if dtype is None else dtype)
    return wanted if wanted.itemsize > 4 else jnp.dtype(jnp.float32)


def read_branch(
    y: Float[Array, "*N P Q L"],
    base_offset: Num[Array, "*N P Q 2"] | Num[Array, "*N P Q G 2"] | None,
    *,
    offset_groups: int,
    modulated: bool,
    mask_scale: int,
    max_offset: float,
) -> tuple[Float[Array, "*N P Q G RS 2"], Float[Array, "*N P Q G RS"] | None]:
    """Offsets and factors of the samples out of the branch's channels.

    Args:
      y: All offsets [G, R*S, (dy, dx)], then, when modulated, all masks [G, R*S].
      base_offset: Added to the offsets, once they are bound.
      offset_groups: G.
      modulated: Whether there are masks.
      mask_scale: Factor of the masks.
      max_offset: See `bound`.

    Raises:
      ValueError: `base_offset` has another shape.
    """
    offset, mask = split_branch(y, offset_groups, modulated, mask_scale)
    offset = bound(offset, max_offset)
    if base_offset is not None:
        offset = offset + _for_each_tap(base_offset, offset)
    return offset, mask


def bound(offset: Float[Array, "*s"], max_offset: float) -> Float[Array, "*s"]:
    """Offsets within [-max_offset, max_offset], with slope 1 at 0; 0 bounds none."""
    if max_offset == 0:
        return offset
    return max_offset * jnp.tanh(offset / max_offset)


def split_branch(
    y: Float[Array, "*N P Q L"], offset_groups: int, modulated: bool, mask_scale: int
) -> tuple[Float[Array, "*N P Q G RS 2"], Float[Array, "*N P Q G RS"] | None]:
    """Offsets and factors out of the branch's channels: all offsets, then all masks."""
    y = split_by_batch(y)
    taps = y.shape[-1] // ((3 if modulated else 2) * offset_groups)
    split = 2 * offset_groups * taps
    offset = y[..., :split].reshape(*y.shape[:-1], offset_groups, taps, 2)
    if not modulated:
        return offset, None
    logits = y[..., split:].reshape(*y.shape[:-1], offset_groups, taps)
    return offset, mask_scale * jax.nn.sigmoid(logits)


def _for_each_tap(base_offset: Array, offset: Array) -> Float[Array, "*N P Q _ 1 2"]:
    """`base_offset` beside offsets [*N, P, Q, G, R*S, 2]."""
    *places, groups, _, _ = offset.shape
    if base_offset.shape == (*places, 2):
        base_offset = base_offset[..., None, :]
    elif base_offset.shape != (*places, groups, 2):
        raise ValueError(
            f"`base_offset` has shape {base_offset.shape}; expected {(*places, 2)}, or "
            f"{(*places, groups, 2)} with one for each of the offset groups, as "
            f"(dy, dx){_told_flow(base_offset, places)}"
        )
    base_offset = jnp.asarray(base_offset, offset.dtype)
    return split_by_batch(base_offset)[..., None, :]


def _told_flow(flow: Array, places: list[int]) -> str:
    """The line that converts torch's flow [*N, (dx, dy), P, Q]; "" if it is none."""
    *leading, p, q = places
    if flow.shape != (*leading, 2, p, q):
        return ""
    flipped = "jnp.moveaxis(base_offset, -3, -1)[..., ::-1]"
    return f"; from torch's layout, (dx, dy): base_offset = {flipped}"
