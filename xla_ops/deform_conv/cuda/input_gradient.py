"""The gradient of x: what every pixel's samples give it, added up.

Letters: N batch, H W input map, C in channels, G offset groups.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from xla_ops.deform_conv.cuda.kernels import (
    gather_input_gradient,
    last_pixel,
    list_corners,
    visit_samples,
)


def _sorted_input_gradient(
    x, first_row, offset, *mask, dcolumns, dtype, devices, settings
):
    """Adds up what each pixel's samples give, in an order that is always the same.

    Returns:
      The gradient of x in that type, then the results of `visit_samples`.
    """
    others = visit_samples(
        x, first_row, offset, dcolumns, *mask, scatter=False, **settings
    )
    joint = devices == 1 and last_pixel(x.shape, offset.shape, True) is not None
    (pixel,) = list_corners(x, first_row, offset, joint=joint, **settings)
    pixel, number = sort_corners(pixel, joint)
    dx, _ = gather_input_gradient(
        first_row,
        offset,
        dcolumns,
        pixel,
        number,
        *mask,
        shape=x.shape[1:],
        dtype=dtype,
        joint=joint,
        **settings,
    )
    return dx, *others


def sort_corners(pixel, joint):
    """Sorted by pixel, and the numbers of the corners: both [N, G, corners]."""
    number = jax.lax.broadcasted_iota(jnp.int32, pixel.shape, 2)
    shape = (-1,) if joint else pixel.shape
    by_pixel = jax.lax.sort(
        (pixel.reshape(shape), number.reshape(shape)), num_keys=1, is_stable=True
    )
    return tuple(array.reshape(pixel.shape) for array in by_pixel)


def _atomic_input_gradient(
    x, first_row, offset, *mask, dcolumns, dtype, devices, settings
):
    """The same by atomic additions, whose order changes from run to run."""
    *others, dx = visit_samples(
        x, first_row, offset, dcolumns, *mask, scatter=True, **settings
    )
    return dx.astype(dtype), *others


_FORMS = {"sorted": _sorted_input_gradient, "atomic": _atomic_input_gradient}


def input_gradient_form() -> Callable:
    """The form that DCN_JAX_CUDA_INPUT_GRADIENT names, read when tracing.

    Returns:
      A function of (x, first_row, offset, *mask, dcolumns, dtype, devices, settings),
      for a chunk of rows that begins at `first_row` [N]. It returns the gradient of x,
      [N, H, W, C] in that dtype, then the results of `visit_samples`.

    Raises:
      ValueError: It is neither "sorted" (the default) nor "atomic".
    """
    name = os.environ.get("DCN_JAX_CUDA_INPUT_GRADIENT") or "sorted"
    if name not in _FORMS:
        raise ValueError(
            f"environment variable DCN_JAX_CUDA_INPUT_GRADIENT is {name!r}; "
            f"expected one of {tuple(_FORMS)}"
        )
    return _FORMS[name]
