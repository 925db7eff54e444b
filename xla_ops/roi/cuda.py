"""Backward passes of RoI pooling on CUDA, with scratch among the call's results.

Letters: N batch, B RoIs of an image, h w bins of a RoI, C channels.
"""

from collections.abc import Callable, Sequence

import numpy as np

from xla_ops._jax import Kernel


def with_scratch(
    target: str, *, scratch: Callable[..., Sequence], results: Callable, attributes
) -> Callable:
    """Makes the CUDA form of a call whose kernels need memory beside its results.

    Args:
      target: FFI target name.
      scratch: `(*operands, **params) -> [(shape, dtype), ...]` of the memory.
      results: The same of the call's own results.
      attributes: `(**params) -> {name: value}` that the handler decodes.

    Returns:
      The function for `cuda` of `OperatorPrimitive`.
    """
    kernel = Kernel(
        target,
        results=lambda *operands, **params: [
            *results(*operands, **params),
            *scratch(*operands, **params),
        ],
        attributes=attributes,
    )

    def call(*operands, devices, **params):
        del devices
        return tuple(kernel(*operands, **params)[: len(results(*operands, **params))])

    return call


def reach(*operands, **params):
    """The pixels that each RoI reads."""
    gradient = operands[-1]
    return [((*gradient.shape[:2], 4), np.int32)]


def reach_and_places(*operands, **params):
    """The same, and the pixels of the maxima."""
    return [*reach(*operands), (operands[-1].shape, np.int32)]
