"""Deformable convolution as torch's users write it, in float64 NumPy loops.

Everything is in torch's layout, NCHW: nothing is converted here.
"""

import itertools

import numpy as np


def conv2d(x, weight, bias, *, stride, padding, dilation):
    """An ordinary convolution [N, K, P, Q]."""
    size = [
        (side + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for side, taps in zip(x.shape[2:], weight.shape[2:], strict=True)
    ]
    offset = np.zeros((len(x), 2 * weight[0, 0].size, *size))
    return deform_conv2d(
        x,
        offset,
        weight,
        None,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=1,
    )


def deform_conv2d(x, offset, weight, mask, bias, *, stride, padding, dilation, groups):
    """The definition, as of torchvision: offset channels [g][tap][(dy, dx)]."""
    features, per_group, rows, columns = weight.shape
    taps = rows * columns
    offset_groups = offset.shape[1] // (2 * taps)
    y = np.zeros((len(x), features, *offset.shape[2:]))
    for n, k, p, q in np.ndindex(y.shape):
        for c, r, s in np.ndindex(per_group, rows, columns):
            channel = k // (features // groups) * per_group + c
            group = channel // (x.shape[1] // offset_groups)
            place = group * taps + r * columns + s
            dy, dx = offset[n, 2 * place : 2 * place + 2, p, q]
            value = _bilinear(
                x[n, channel],
                p * stride - padding + r * dilation + dy,
                q * stride - padding + s * dilation + dx,
            )
            if mask is not None:
                value *= mask[n, place, p, q]
            y[n, k, p, q] += weight[k, c, r, s] * value
    return y if bias is None else y + np.asarray(bias)[:, None, None]


def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def _bilinear(plane, y, x):
    """The value between pixels, with zeros around the plane."""
    low = int(np.floor(y)), int(np.floor(x))
    value = 0.0
    for i, j in itertools.product((0, 1), repeat=2):
        row, column = low[0] + i, low[1] + j
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return value
