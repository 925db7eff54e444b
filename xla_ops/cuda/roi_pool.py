"""Backward passes of RoI pooling on CUDA, with scratch among the call's results.

Letters: N batch, B RoIs of an image, h w bins of a RoI, C channels.
"""

from collections.abc import Callable, Sequence

import numpy as np

from xla_ops._call import make_kernel


def with_scratch(
    target: str, *, scratch: Callable[..., Sequence], results: Callable, attributes
) -> Callable:
    """Makes the CUDA form of a call whose kernels need memory beside its results.

    Args:
      target: As in `make_kernel`, like results and attributes.
      scratch: Shape and dtype of more results, from the same arguments as `results`.
      results: See there.
      attributes: See there.

    Returns:
      The function for `cuda` of `make_primitive`.
    """
    kernel = make_kernel(
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
