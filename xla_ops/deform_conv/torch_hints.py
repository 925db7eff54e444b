"""Words for arguments in torch's layout: the line that converts them.

Only where the shapes fit there and do not fit here.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

import math
from collections.abc import Sequence

import jax


def check_map_and_kernel(
    x: jax.Array, kernel: jax.Array, offset: jax.Array, groups: int
) -> None:
    """Checks that a map and a kernel do not fit together in torch's layout alone.

    Args:
      x: [N, H, W, C], or torch's [N, C, H, W].
      kernel: [R, S, C/groups, K], or torch's [K, C/groups, R, S].
      offset: In either layout; its taps should be those of the kernel.
      groups: Of channels.

    Raises:
      ValueError: They do; the message has the lines that convert them.
    """
    maps = [(False, x.shape[3]), (True, x.shape[1])]
    kernels = [
        (False, kernel.shape[2] * groups, kernel.shape[:2]),
        (True, kernel.shape[1] * groups, kernel.shape[2:]),
    ]
    fits = [
        (of_x, of_kernel)
        for of_x, channels in maps
        for of_kernel, wanted, taps in kernels
        if channels == wanted and _has_taps(offset, taps)
    ]
    if not fits or (False, False) in fits:
        return
    # Where several layouts fit, what has to be converted in all of them.
    lines = []
    if all(of_x for of_x, _ in fits):
        lines.append("x = jnp.moveaxis(x, 1, -1)")
    if all(of_kernel for _, of_kernel in fits):
        lines.append("kernel = dcn_jax.from_torch_kernel(kernel)")
    if lines:
        raise ValueError(
            f"`x` has shape {x.shape} and `kernel` {kernel.shape}; expected "
            f"(N, H, W, C) and (R, S, C/feature_group_count, K){_told(*lines)}"
        )


def told_offset(offset: jax.Array, kernel_size: Sequence[int]) -> str:
    """The end of a message about an offset of a wrong shape; "" if it is not torch's.

    Args:
      offset: Not [N, P, Q, G, R*S, 2], but perhaps [N, 2*G*R*S, P, Q].
      kernel_size: (R, S).
    """
    if offset.ndim != 4 or offset.shape[1] % (2 * math.prod(kernel_size)):
        return ""
    size = tuple(kernel_size)
    return _told(f"offset = dcn_jax.from_torch_offset(offset, {size})")


def told_mask(mask: jax.Array, kernel_size: Sequence[int]) -> str:
    """As `told_offset`, of a mask, which may be [N, G*R*S, P, Q]."""
    if mask.ndim != 4 or mask.shape[1] % math.prod(kernel_size):
        return ""
    size = tuple(kernel_size)
    return _told(f"mask = dcn_jax.from_torch_mask(mask, {size})")


def _has_taps(offset: jax.Array, kernel_size: Sequence[int]) -> bool:
    """Whether an offset may be of a kernel; True where its rank does not tell."""
    taps = math.prod(kernel_size)
    if offset.ndim == 6:
        return offset.shape[4] == taps
    return offset.ndim != 4 or (taps > 0 and offset.shape[1] % (2 * taps) == 0)


def _told(*lines: str) -> str:
    return f"; from torch's layout: {'; '.join(lines)}"
