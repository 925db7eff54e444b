"""nms on CUDA: XLA sorts the boxes, kernels compare them and select.

Letters: N images, B boxes of an image, D outputs.
"""

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops._jax import Kernel

# Candidates are compared in blocks of as many (kNmsBlock of csrc/nms/tuning.h).
_BLOCK = 64


def nms(boxes, scores, class_ids, valid, *, devices, **params):
    """Like the function of that name in `reference`, for N images."""
    del devices
    takes_part = valid & ~jnp.isnan(scores) & ~jnp.isnan(boxes).any(-1)
    number = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    keys = _falling(scores)
    keys = jnp.where(takes_part, keys, ~jnp.zeros_like(keys))
    _, order = jax.lax.sort((keys, number), num_keys=1, is_stable=True)
    candidates = takes_part.sum(-1, dtype=jnp.int32)
    return tuple(_select(boxes, class_ids, order, candidates, **params)[:2])


def _falling(scores):
    """Unsigned integers that rise where scores fall: XLA sorts them faster."""
    width = 8 * scores.dtype.itemsize
    scores = jnp.where(scores == 0, 0, scores)  # -0 is 0.
    bits = jax.lax.bitcast_convert_type(scores, jnp.dtype(f"uint{width}"))
    sign = jnp.ones_like(bits) << (width - 1)
    return jnp.where(bits & sign, bits, ~(bits | sign))


def _results(boxes, class_ids, order, candidates, *, max_outputs, threshold):
    images, count = class_ids.shape
    # Bits of the boxes that each box suppresses.
    words = (images, count, 2 * -(-count // _BLOCK))
    output = (images, max_outputs)
    return [(output, np.int32), (output, np.bool_), (words, np.uint32)]


_select = Kernel(
    "dcn_jax.nms",
    results=_results,
    attributes=lambda *, threshold, max_outputs: {
        "iou_threshold": np.float64(threshold)
    },
)
