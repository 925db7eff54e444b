"""The kernels of deformable convolution on CUDA: shapes of results, attributes.

Letters: N batch, H W input map, P Q output map, C in channels, R S kernel taps,
G offset groups.
"""

import math
from typing import Any

import numpy as np

from xla_ops._jax import Kernel


def are_known(sizes) -> bool:
    """Whether no size is symbolic, as `jax.export` has them."""
    return all(isinstance(size, int) for size in sizes)


def last_pixel(x, offset, joint) -> int | None:
    """The largest number that a list of pixels holds, if it fits into 32 bits.

    H*W stands for "outside the map". In a joint list all rows, one for each image and
    offset group, are sorted as one: XLA has a radix sort for one long row, and none for
    a few. There the numbers of a row go on where those of the row before end.

    Args:
      x: Shape of x.
      offset: Shape of offset.
      joint: Whether the list is.
    """
    rows = (x[0], offset[3]) if joint else ()
    if not are_known((*x[1:3], *rows)):
        return None
    last = math.prod(rows) * (x[1] * x[2] + 1) - 1
    return last if last < 1 << 32 else None


def settings_of(kernel, geometry) -> dict[str, Any]:
    """Params of the kernels, of a kernel [copies, R, S, C/groups, K] and a geometry."""
    return {"window": kernel.shape[1:3], **geometry}


def _attributes(*, window, strides, padding, dilation, groups, **_):
    pairs = {"kernel": window, "stride": strides, "dilation": dilation}
    attributes = {f"{name}_h": pair[0] for name, pair in pairs.items()}
    attributes |= {f"{name}_w": pair[1] for name, pair in pairs.items()}
    attributes |= {"pad_top": padding[0], "pad_left": padding[1], "groups": groups}
    return {name: np.int64(value) for name, value in attributes.items()}


def _columns_shape(offset, channels, groups):
    return (*offset.shape[:3], groups, offset.shape[4], channels // groups)


def _columns_results(x, first_row, offset, *mask, groups, **settings):
    return [(_columns_shape(offset, x.shape[3], groups), x.dtype)]


def _visit_results(x, first_row, offset, dcolumns, *mask, scatter, **settings):
    results = [(dcolumns.shape, x.dtype), (offset.shape, offset.dtype)]
    results += [(m.shape, offset.dtype) for m in mask]
    return results + ([(x.shape, offset.dtype)] if scatter else [])


def _list_results(x, first_row, offset, joint, **settings):
    images, rows, columns, groups, taps, _ = offset.shape
    last = last_pixel(x.shape, offset.shape, joint)
    # XLA sorts short keys faster.
    narrow = last is not None and last < 1 << 16
    corners = 4 * rows * columns * taps
    return [((images, groups, corners), np.uint16 if narrow else np.uint32)]


def _gather_results(
    first_row, offset, dcolumns, pixel, number, *mask, shape, dtype, **_
):
    images, groups = pixel.shape[:2]
    starts = (images, groups, shape[0] * shape[1] + 1)
    return [((images, *shape), dtype), (starts, np.int32)]


def _list_attributes(*, joint, **settings):
    return {**_attributes(**settings), "joint": np.int64(joint)}


sample_columns = Kernel(
    "dcn_jax.deform_conv2d.columns", results=_columns_results, attributes=_attributes
)
visit_samples = Kernel(
    "dcn_jax.deform_conv2d.visit", results=_visit_results, attributes=_attributes
)
list_corners = Kernel(
    "dcn_jax.deform_conv2d.list", results=_list_results, attributes=_list_attributes
)
gather_input_gradient = Kernel(
    "dcn_jax.deform_conv2d.gather",
    results=_gather_results,
    attributes=_list_attributes,
)
