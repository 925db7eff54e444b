"""The tangent of deformable convolution as a sum of deformable convolutions.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from xla_ops.deform_conv.positions import positions_in_window


def terms_of_tangent(
    operands: Sequence[jax.Array], tangents: Sequence[jax.Array | None], **window
) -> Iterator[tuple[jax.Array, ...]]:
    """Operands of convolutions whose sum is the tangent.

    Convolution is linear in all operands but the offset. Between two rows of pixels a
    sample is linear in its row: it changes by the sample in the row below less the one
    in the row above, and so with columns.

    Args:
      operands: x [N, H, W, C], offset [N, P, Q, G, R*S, 2], kernel
        [1 or N, R, S, C/groups, K], and [N, P, Q, G, R*S] if there is a mask.
      tangents: Of each, None where it does not move.
      **window: strides, padding (top, left), dilation: pairs.

    Yields:
      x, offset, kernel and, beside most, a mask.
    """
    x, offset, kernel, *mask = operands
    doffset = tangents[1]
    for place, tangent in enumerate(tangents):
        if tangent is not None and place != 1:
            yield *operands[:place], tangent, *operands[place + 1 :]
    if doffset is None:
        return
    still = positions_in_window(
        jnp.zeros_like(offset, shape=(1, *offset.shape[1:3], 1, *offset.shape[4:])),
        kernel.shape[1:3],
        **window,
    )
    # `still` is whole, so that a sample that is moved lies on its row exactly.
    first = jnp.floor(still + offset) - still
    for axis in (0, 1):
        for step, sign in ((1, 1), (0, -1)):
            moved = [offset[..., 0], offset[..., 1]]
            moved[axis] = first[..., axis] + step
            factor = sign * doffset[..., axis]
            if mask:
                factor = factor * mask[0]
            yield x, jnp.stack(moved, axis=-1), kernel, factor
