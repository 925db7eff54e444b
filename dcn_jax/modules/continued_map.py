"""Maps that go on beyond their border: the paddings "CIRCULAR" and "REFLECT".

`flax.nnx.Conv` pads a map by so much of what lies on its other side, or of its mirror
image, as an undeformed kernel reads. A deformed one may read anywhere: here the map
goes on without end. It takes no larger map: a sample outside is moved to the place
inside that has its value.

Shape letters: N batch, H W input map, P Q output map, C channels, G offset groups, R S
kernel taps.
"""

from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
from jaxtyping import Array, Float

from xla_ops import sampling_positions

# How `jnp.pad` names them.
_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}
# Rows and columns of the map that are there twice, before and behind it: a place on the
# border may be rounded across it, and its derivative reads the pixel that follows.
_BEFORE, _BEHIND = 1, 2


def is_continued(padding: Any) -> TypeGuard[str]:
    """Whether a layer's padding is one of the two."""
    return isinstance(padding, str) and padding in _MODES


class Continued(NamedTuple):
    """Arguments of `deform_conv2d` that read a map which goes on."""

    x: Float[Array, "N H3 W3 C"]
    offset: Float[Array, "N P Q G RS 2"]
    padding: tuple[tuple[int, int], ...]
    kernel_dilation: tuple[int, ...]


def undeformed_padding(
    kernel_size: tuple[int, int], kernel_dilation: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """((top, bottom), (left, right)) of the undeformed window, as of `nnx.Conv`."""
    reach = [
        (taps - 1) * step
        for taps, step in zip(kernel_size, kernel_dilation, strict=True)
    ]
    return tuple((n // 2, n - n // 2) for n in reach)


def continue_map(
    x: Float[Array, "N H W C"],
    offset: Float[Array, "N P Q G RS 2"],
    *,
    padding: str,
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    kernel_dilation: tuple[int, int],
) -> Continued:
    """Moves all samples to where they lie inside.

    Where a sample lies on a whole pixel, the derivative by its place is that from one
    side, from which one is not said. An infinite place is none, and gives NaN.

    Args:
      x: The map.
      offset: (dy, dx) in its pixels.
      padding: "CIRCULAR" or "REFLECT".
      kernel_size: (R, S), each more than 1.
      strides: As in `deform_conv2d`.
      kernel_dilation: As in `deform_conv2d`.
    """
    size = x.shape[1], x.shape[2]
    window: dict[str, Any] = dict(kernel_size=kernel_size, strides=strides)
    position = sampling_positions(
        offset,
        input_size=size,
        padding=undeformed_padding(kernel_size, kernel_dilation),
        kernel_dilation=kernel_dilation,
        **window,
    )
    inside = _folded(position, size, padding) + _BEFORE

    # What the operator puts the taps at, its offsets take back; so its window only has
    # to have as many places on the map with the rows that are there twice.
    more = _BEFORE + _BEHIND
    dilation = tuple(max(step, more) for step in kernel_dilation)
    pads = tuple(
        (0, (taps - 1) * step - more)
        for taps, step in zip(kernel_size, dilation, strict=True)
    )
    still = sampling_positions(
        jnp.zeros_like(inside, shape=(1, *inside.shape[1:3], 1, inside.shape[4], 2)),
        input_size=(size[0] + more, size[1] + more),
        padding=pads,
        kernel_dilation=dilation,
        **window,
    )
    rows = (_BEFORE, _BEHIND)
    x = jnp.pad(x, ((0, 0), rows, rows, (0, 0)), mode=_MODES[padding])
    return Continued(x, inside - still, pads, dilation)


def _folded(
    position: Float[Array, "N P Q G RS 2"], size: tuple[int, int], padding: str
) -> Float[Array, "N P Q G RS 2"]:
    """The places on the map itself, [0, H) or [0, H - 1], with the same values."""
    sides = jnp.asarray(size, position.dtype)[(None,) * 5]
    if padding == "CIRCULAR":
        return jnp.mod(position, sides)
    last = sides - 1
    # A map of one pixel is the same everywhere.
    period = jnp.maximum(2 * last, 1)
    place = jnp.mod(position, period)
    return jnp.where(place > last, period - place, place)
