"""Deformable ConvNets for Flax: layers, networks, and detectors for pictures.

Layers are in `dcn_jax.modules`, their Linen twins in `dcn_jax.modules.linen`, networks
in `dcn_jax.networks`, files of weights in `dcn_jax.weights`, and what a network sees in
`dcn_jax.explain`; the names below stand here too.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcn_jax.inference.detector import Detector as Detector
    from dcn_jax.inference.segmenter import Segmenter as Segmenter
    from dcn_jax.modules import DeformConv as DeformConv
    from dcn_jax.modules import DeformRoIPool as DeformRoIPool
    from dcn_jax.modules import DeformRoIPoolByLevel as DeformRoIPoolByLevel
    from dcn_jax.modules import PSRoIPool as PSRoIPool
    from dcn_jax.modules import RoIAlign as RoIAlign
    from dcn_jax.modules import RoIPool as RoIPool
    from dcn_jax.networks import class_aware_rpn as class_aware_rpn
    from dcn_jax.networks import deeplab as deeplab
    from dcn_jax.networks import faster_rcnn as faster_rcnn
    from dcn_jax.networks import faster_rcnn_fpn as faster_rcnn_fpn
    from dcn_jax.networks import mask_rcnn_fpn as mask_rcnn_fpn
    from dcn_jax.networks import r_fcn as r_fcn
    from dcn_jax.torch_layout import from_torch_kernel as from_torch_kernel
    from dcn_jax.torch_layout import from_torch_mask as from_torch_mask
    from dcn_jax.torch_layout import from_torch_offset as from_torch_offset
    from dcn_jax.torch_layout import to_torch_kernel as to_torch_kernel
    from dcn_jax.torch_layout import to_torch_mask as to_torch_mask
    from dcn_jax.torch_layout import to_torch_offset as to_torch_offset

    __version__: str

# Module -> its names that stand here. They are imported when they are asked for: who
# reads weights or images alone needs no network.
_NAMES = {
    "dcn_jax.inference.detector": ("Detector",),
    "dcn_jax.inference.segmenter": ("Segmenter",),
    "dcn_jax.modules": (
        *("DeformConv", "DeformRoIPool", "DeformRoIPoolByLevel", "PSRoIPool"),
        *("RoIAlign", "RoIPool"),
    ),
    "dcn_jax.networks": (
        *("class_aware_rpn", "deeplab", "faster_rcnn", "faster_rcnn_fpn"),
        *("mask_rcnn_fpn", "r_fcn"),
    ),
    "dcn_jax.torch_layout": (
        *("from_torch_kernel", "from_torch_mask", "from_torch_offset"),
        *("to_torch_kernel", "to_torch_mask", "to_torch_offset"),
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOMES)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("dcn-jax")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
