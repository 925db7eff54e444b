"""Deformable ConvNets for Flax: layers, detectors and their parts."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcn_jax.inference.detector import Detector as Detector
    from dcn_jax.inference.segmenter import Segmenter as Segmenter

# Imported when they are asked for: a program that only reads weights, or a worker that
# only reads images, needs no network.
_HOMES = {
    "Detector": "dcn_jax.inference.detector",
    "Segmenter": "dcn_jax.inference.segmenter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
