"""How others lay out the tensors of a layer, and how we do: both ways, without loss.

Shape letters: C in channels, K out channels, R S kernel taps, h w bins of a pooled RoI,
F features, L foreground classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dcn_jax.torch_layout import from_torch_kernel, to_torch_kernel

# COCO's 80 categories among the ids 1 to 90; torchvision's detectors have a slot for
# each id, and one for the background.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_SLOTS = 91
COCO_IDS = tuple(i for i in range(1, COCO_SLOTS) if i not in _UNUSED_IDS)


class Axes(NamedTuple):
    """What the layout of a network's tensors depends on.

    Args:
      channels: Of the maps that RoIs are pooled from.
      background_first: Whether the background is the first class, and boxes and masks
        have rows for it which nobody reads (torchvision); else it is the last, and they
        have none (mmdetection, detectron2).
      bgr: Whether the network reads BGR.
      coco_ids: Whether 91 rows, with the background first, are COCO's ids, of which 80
        are classes.
    """

    channels: int
    background_first: bool
    bgr: bool
    coco_ids: bool = True


class Layout(NamedTuple):
    """Both ways of a tensor; `read(write(x))` is x."""

    read: Callable[[Any, Axes], np.ndarray]  # theirs to ours
    write: Callable[[Any, Axes], np.ndarray]


def _same(x, axes):
    return x


def _read_conv(x, axes):
    return np.asarray(from_torch_kernel(x))


def _write_conv(x, axes):
    return np.asarray(to_torch_kernel(x))


def _flip(x, axes):
    return x[:, :, ::-1] if axes.bgr else x


def _read_stem(x, axes):
    return _flip(_read_conv(x, axes), axes)


def _write_stem(x, axes):
    return _write_conv(_flip(x, axes), axes)


def _transposed(x, axes):
    return x.T


def _read_pooled(x, axes):
    # F (C h w), to (h w C) F.
    features = x.shape[0]
    x = x.reshape(features, axes.channels, x.shape[1] // axes.channels)
    return x.transpose(2, 1, 0).reshape(-1, features)


def _write_pooled(x, axes):
    features = x.shape[1]
    x = x.reshape(x.shape[0] // axes.channels, axes.channels, features)
    return x.transpose(2, 1, 0).reshape(features, -1)


def _read_offsets(x, axes):
    # Rows (x y) (h w), to (h w) (y x).
    return (
        x.reshape(2, x.shape[0] // 2, *x.shape[1:])[::-1]
        .swapaxes(0, 1)
        .reshape(x.shape)
    )


def _write_offsets(x, axes):
    return (
        x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
        .swapaxes(0, 1)[::-1]
        .reshape(x.shape)
    )


def _read_deconv(x, axes):
    # C K R S. Ours convolves the spread input with the kernel as it is, torch with the
    # mirrored one.
    return x.transpose(2, 3, 0, 1)[::-1, ::-1]


def _write_deconv(x, axes):
    return x[::-1, ::-1].transpose(2, 3, 0, 1)


def _read_classes(x, axes):
    """Rows of all classes, ours with the background first."""
    if not axes.background_first:
        return np.concatenate([x[-1:], x[:-1]])
    if axes.coco_ids and x.shape[0] == COCO_SLOTS:
        return x[[0, *COCO_IDS]]
    return x


def _write_classes(x, axes):
    return x if axes.background_first else np.concatenate([x[1:], x[:1]])


def _read_foreground(rows: int):
    """Rows of the foreground classes, so many for each."""

    def read(x, axes):
        if not axes.background_first:
            return x
        by_class = x.reshape(x.shape[0] // rows, rows, *x.shape[1:])
        if axes.coco_ids and by_class.shape[0] == COCO_SLOTS:
            by_class = by_class[list(COCO_IDS)]
        else:
            by_class = by_class[1:]
        return by_class.reshape(-1, *x.shape[1:])

    return read


def _write_foreground(rows: int):
    def write(x, axes):
        if not axes.background_first:
            return x
        return np.concatenate([np.zeros((rows, *x.shape[1:]), x.dtype), x])

    return write


def _after(first: Layout, second: Layout) -> Layout:
    """Reads by the first, then by the second; writes the other way round."""
    return Layout(
        lambda x, axes: second.read(first.read(x, axes), axes),
        lambda x, axes: first.write(second.write(x, axes), axes),
    )


_AS_IT_IS = Layout(_same, _same)
_CONV = Layout(_read_conv, _write_conv)
_LINEAR = Layout(_transposed, _transposed)
_CLASSES = Layout(_read_classes, _write_classes)
_BOXES = Layout(_read_foreground(4), _write_foreground(4))
_MASKS = Layout(_read_foreground(1), _write_foreground(1))
_OFFSETS = Layout(_read_offsets, _write_offsets)


def _affine(kernel: Layout, bias: Layout = _AS_IT_IS) -> dict[str, tuple[str, Layout]]:
    return {"kernel": ("weight", kernel), "bias": ("bias", bias)}


# Kinds of modules: for each of our variables its name with others, and its layout.
LAYOUTS: Mapping[str, Mapping[str, tuple[str, Layout]]] = {
    "norm": {
        "scale": ("weight", _AS_IT_IS),
        "bias": ("bias", _AS_IT_IS),
        "mean": ("running_mean", _AS_IT_IS),
        "var": ("running_var", _AS_IT_IS),
    },
    "conv": _affine(_CONV),
    "stem": _affine(Layout(_read_stem, _write_stem)),
    "deconv": _affine(Layout(_read_deconv, _write_deconv)),
    "linear": _affine(_LINEAR),
    "pooled": _affine(Layout(_read_pooled, _write_pooled)),
    "offsets": _affine(_after(_OFFSETS, _LINEAR), _OFFSETS),
    "classes": _affine(_after(_CLASSES, _LINEAR), _CLASSES),
    "boxes": _affine(_after(_BOXES, _LINEAR), _BOXES),
    "masks": _affine(_after(_MASKS, _CONV), _MASKS),
}
