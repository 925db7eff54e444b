"""Stands in for jaxtyping where that is not installed; see `stages.environment`.

Annotations are its only use in this project outside the tests.
"""

from typing import Any

from jax import Array

__all__ = ["Array"]


class _Annotation:
    def __class_getitem__(cls, item: Any) -> type:
        del item
        return cls


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Annotation
