"""`deform_conv2d` and its gradients in float64 numpy, straight from the definition.

A map that is surrounded by zeros has at (y, x) the bilinear value

    sum over its rows i and columns j of hat(y - i) * hat(x - j) * map[i, j]

with hat(u) = max(0, 1 - |u|): no floor, no corners, no test of what is inside. All
pixels take part, which is a matrix product of small maps. The derivative of the hat is
the right-hand one.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """How the kernel moves over the map, as (vertical, horizontal) pairs."""

    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)  # Before the first row and column.
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


def deform_conv2d(x, offset, kernel, mask=None, bias=None, *, window):
    """The output, [N, P, Q, K]."""
    return _run(x, offset, kernel, mask, bias, None, window)[0]


def value_and_gradients(x, offset, kernel, mask, bias, cotangent, *, window):
    """The output, and the gradients of (x, offset, kernel, mask, bias).

    Finite arguments, but for `offset`; None where the argument is None.
    """
    return _run(x, offset, kernel, mask, bias, cotangent, window)


def _run(x, offset, kernel, mask, bias, cotangent, window):
    x, offset, kernel = (np.asarray(a, np.float64) for a in (x, offset, kernel))
    images, height, width, channels = x.shape
    _, rows, columns, offset_groups, taps, _ = offset.shape
    features, groups = kernel.shape[-1], window.groups
    positions = rows * columns

    # Axes N G (P Q R*S) for places, N G (H W) C/G for pixels.
    row, column = _places(offset, kernel.shape[1], window)
    pixels = x.reshape(images, height * width, offset_groups, channels // offset_groups)
    pixels = pixels.transpose(0, 2, 1, 3)
    hats = _hat(row, height), _hat(column, width)
    weights = _outer(*hats)
    samples = weights @ pixels
    if mask is None:
        factor = np.ones((images, offset_groups, positions * taps, 1))
    else:
        factor = np.asarray(mask, np.float64).reshape(
            images, positions, offset_groups, taps
        )
        factor = factor.transpose(0, 2, 1, 3).reshape(
            images, offset_groups, positions * taps, 1
        )

    def by_group(matrix):
        """N G (P Q R*S) C/G -> groups (N P Q) (R*S C/groups)."""
        shape = (images, offset_groups, positions, taps, channels // offset_groups)
        matrix = matrix.reshape(shape).transpose(0, 2, 3, 1, 4)
        shape = (images * positions, taps, groups, channels // groups)
        matrix = matrix.reshape(shape).transpose(2, 0, 1, 3)
        return matrix.reshape(groups, images * positions, taps * (channels // groups))

    filters = kernel.reshape(taps * (channels // groups), groups, features // groups)
    filters = filters.transpose(1, 0, 2)
    matrix = by_group(samples * factor)
    output = (matrix @ filters).transpose(1, 0, 2)
    output = output.reshape(images, rows, columns, features)
    if bias is not None:
        output = output + np.asarray(bias, np.float64)
    if cotangent is None:
        return output, None

    cotangent = np.asarray(cotangent, np.float64)
    split = cotangent.reshape(images * positions, groups, features // groups)
    split = split.transpose(1, 0, 2)
    dkernel = matrix.transpose(0, 2, 1) @ split
    dkernel = dkernel.transpose(1, 0, 2).reshape(kernel.shape)

    dmatrix = split @ filters.transpose(0, 2, 1)
    dmatrix = dmatrix.reshape(groups, images, positions, taps, channels // groups)
    dmatrix = dmatrix.transpose(1, 2, 3, 0, 4)
    shape = (images, positions, taps, offset_groups, channels // offset_groups)
    dmatrix = dmatrix.reshape(shape).transpose(0, 3, 1, 2, 4)
    dmatrix = dmatrix.reshape(samples.shape)

    def by_place(values):
        """N G (P Q R*S) -> N P Q G R*S."""
        shape = (images, offset_groups, rows, columns, taps)
        return values.reshape(shape).transpose(0, 2, 3, 1, 4)

    dmask = None if mask is None else by_place((dmatrix * samples).sum(-1))
    dsamples = dmatrix * factor
    # A sample at no known place moves no pixel.
    known = np.where(np.isnan(weights), 0, weights)
    dx = known.transpose(0, 1, 3, 2) @ dsamples
    dx = dx.transpose(0, 2, 1, 3).reshape(x.shape)
    slopes = [
        _outer(_hat_slope(row, height), hats[1]),
        _outer(hats[0], _hat_slope(column, width)),
    ]
    doffset = [by_place((dsamples * (slope @ pixels)).sum(-1)) for slope in slopes]
    dbias = None if bias is None else cotangent.sum((0, 1, 2))
    return output, (dx, np.stack(doffset, axis=-1), dkernel, dmask, dbias)


def _places(offset, kernel_width, window):
    """Rows and columns of all samples, each [N, G, P*Q*R*S]; NaN both or neither."""
    images, rows, columns, offset_groups, taps, _ = offset.shape
    tap = np.arange(taps)
    corner = [
        np.arange(count) * step - pad
        for count, step, pad in zip(
            (rows, columns), window.strides, window.padding, strict=True
        )
    ]
    row = corner[0][:, None, None, None] + tap // kernel_width * window.dilation[0]
    column = corner[1][:, None, None] + tap % kernel_width * window.dilation[1]
    row, column = row + offset[..., 0], column + offset[..., 1]
    nan = np.isnan(row) | np.isnan(column)
    return [
        np.where(nan, np.nan, place)
        .transpose(0, 3, 1, 2, 4)
        .reshape(images, offset_groups, rows * columns * taps)
        for place in (row, column)
    ]


def _hat(place, size):
    return np.maximum(0, 1 - np.abs(place[..., None] - np.arange(size)))


def _hat_slope(place, size):
    u = place[..., None] - np.arange(size)
    slope = np.where((u >= -1) & (u < 0), 1.0, 0.0) - np.where((u >= 0) & (u < 1), 1, 0)
    return np.where(np.isnan(u), np.nan, slope)


def _outer(rows, columns):
    """[..., H] and [..., W] -> [..., H*W]."""
    product = rows[..., :, None] * columns[..., None, :]
    return product.reshape(*rows.shape[:-1], rows.shape[-1] * columns.shape[-1])
