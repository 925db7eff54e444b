"""The arrays of a deformable convolution in torch's layout and in ours.

torchvision, mmcv and detectron2 have one layout: channels stand before rows and
columns, those of offsets are [G, R*S, (dy, dx)], those of masks [G, R*S], and kernels
are [K, C/groups, R, S]. Arrays of NumPy and jax may be given, also under `jax.jit`, and
what follows Python's protocols of arrays, as tensors of torch do. Of a NumPy array the
result is one, a view where that is possible; of all others a jax array. A map
[N, C, H, W] becomes ours by `jnp.moveaxis(x, -3, -1)`.

Shape letters: P Q output map, R S kernel taps, G offset groups, C in channels, K out
channels; `...` any axes, such as that of the batch, or none.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops.arguments import check_pair

# Annotations do not tell shapes: they are checked here, with words of their own.
Converted = jax.Array | np.ndarray


def from_torch_offset(offset: Any, kernel_size: int | Sequence[int]) -> Converted:
    """Offsets as `deform_conv2d` takes them.

    Args:
      offset: [..., 2*G*R*S, P, Q].
      kernel_size: (R, S), or one number for both.

    Returns:
      [..., P, Q, G, R*S, 2] as (dy, dx).

    Raises:
      TypeError: `offset` is not an array.
      ValueError: Its shape does not fit.
    """
    return _split_channels("offset", offset, kernel_size, (2,))


def from_torch_mask(mask: Any, kernel_size: int | Sequence[int]) -> Converted:
    """Masks as `deform_conv2d` takes them.

    Args:
      mask: [..., G*R*S, P, Q].
      kernel_size: (R, S), or one number for both.

    Returns:
      [..., P, Q, G, R*S].

    Raises:
      TypeError: `mask` is not an array.
      ValueError: Its shape does not fit.
    """
    return _split_channels("mask", mask, kernel_size, ())


def from_torch_kernel(kernel: Any) -> Converted:
    """A convolution's weight [K, C/groups, R, S] as a kernel [R, S, C/groups, K].

    Raises:
      TypeError: `kernel` is not an array.
      ValueError: It does not have four axes.
    """
    return _with_rank("kernel", kernel, "K, C/groups, R, S").transpose(2, 3, 1, 0)


def to_torch_offset(offset: Any) -> Converted:
    """Offsets [..., P, Q, G, R*S, 2] as [..., 2*G*R*S, P, Q].

    Raises:
      TypeError: `offset` is not an array.
      ValueError: It does not have these axes.
    """
    offset = as_array("offset", offset)
    if offset.ndim < 5 or offset.shape[-1] != 2:
        raise ValueError(
            f"`offset` has shape {offset.shape}; expected (..., P, Q, G, R*S, 2)"
        )
    return _join_channels(offset, 3)


def to_torch_mask(mask: Any) -> Converted:
    """Masks [..., P, Q, G, R*S] as [..., G*R*S, P, Q].

    Raises:
      TypeError: `mask` is not an array.
      ValueError: It has too few axes.
    """
    mask = as_array("mask", mask)
    if mask.ndim < 4:
        raise ValueError(f"`mask` has shape {mask.shape}; expected (..., P, Q, G, R*S)")
    return _join_channels(mask, 2)


def to_torch_kernel(kernel: Any) -> Converted:
    """A kernel [R, S, C/groups, K] as a convolution's weight [K, C/groups, R, S].

    Raises:
      TypeError: `kernel` is not an array.
      ValueError: It does not have four axes.
    """
    return _with_rank("kernel", kernel, "R, S, C/groups, K").transpose(3, 2, 0, 1)


def as_array(name: str, value: Any) -> Converted:
    """Returns NumPy's and jax's arrays as they are, and others as jax arrays.

    Raises:
      TypeError: `value` is not an array; `name` stands for it in the message.
    """
    if isinstance(value, jax.Array | np.ndarray):
        return value
    if hasattr(value, "detach"):
        value = value.detach()  # torch exports no tensor that has a gradient.
    if hasattr(value, "__dlpack__"):
        # A copy: whoever owns the memory may write to it.
        return jnp.array(jnp.from_dlpack(value), copy=True)
    if hasattr(value, "__array__"):
        return jnp.asarray(np.asarray(value))
    raise TypeError(f"`{name}` is {type(value).__name__}; expected an array")


def _with_rank(name: str, value: Any, letters: str) -> Converted:
    array = as_array(name, value)
    if array.ndim != 4:
        raise ValueError(f"`{name}` has shape {array.shape}; expected ({letters})")
    return array


def _split_channels(
    name: str, value: Any, kernel_size: Any, inner: tuple[int, ...]
) -> Converted:
    """[..., G * R*S * inner, P, Q] as [..., P, Q, G, R*S, *inner]."""
    array = as_array(name, value)
    taps = math.prod(check_pair("kernel_size", kernel_size))
    each = taps * math.prod(inner)
    if array.ndim < 3 or array.shape[-3] == 0 or array.shape[-3] % each:
        raise ValueError(
            f"`{name}` has shape {array.shape}; expected (..., {each} * G, P, Q) for a "
            f"kernel of {taps} taps"
        )
    *leading, channels, p, q = array.shape
    n = len(leading)
    moved = array.transpose(*range(n), n + 1, n + 2, n)
    return moved.reshape(*leading, p, q, channels // each, taps, *inner)


def _join_channels(array: Converted, inner: int) -> Converted:
    """[..., P, Q, *inner] as [..., channels, P, Q], with so many axes inside."""
    leading = array.shape[: array.ndim - inner - 2]
    p, q, *channels = array.shape[len(leading) :]
    n = len(leading)
    joined = array.reshape(*leading, p, q, math.prod(channels))
    return joined.transpose(*range(n), n + 2, n, n + 1)
