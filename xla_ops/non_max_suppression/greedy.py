"""Non-maximum suppression with a fixed number of outputs.

Letters: B boxes of an image, D outputs.
"""

from __future__ import annotations

import functools
import math
import numbers
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops._jax import OperatorPrimitive, align, resolve_implementation
from xla_ops.arguments import (
    INTEGERS,
    check_array,
    check_beside,
    check_integer,
    check_shape,
)
from xla_ops.non_max_suppression import cuda, reference

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Int32


def nms(
    boxes: Float[Array, "*batch B 4"],
    scores: Float[Array, "*batch B"],
    *,
    iou_threshold: float,
    max_outputs: int,
    class_ids: Int[Array, "*batch B"] | None = None,
    valid: Bool[Array, "*batch B"] | None = None,
    implementation: str | None = None,
) -> tuple[Int32[Array, "*batch D"], Bool[Array, "*batch D"]]:
    """Greedy non-maximum suppression: keeps boxes that no better kept box overlaps.

    Boxes are taken by falling score, among equal scores the lower index first. A box is
    dropped when its IoU with a kept box is greater than the threshold; the IoU is
    rounded as torchvision rounds it, and two boxes without area never drop each other.
    Boxes with a NaN in their coordinates or score are never kept and drop nothing.
    Infinite scores are ordinary ones.

    The shapes are fixed, so it runs under `jax.jit`, `jax.vmap` and `jax.shard_map`,
    and the batch may be split over devices. The choice has no derivative: no gradient
    flows to any argument.

    Args:
      boxes: [..., B, 4] as x1 y1 x2 y2; half precision is computed in float32.
      scores: [..., B]; float64 only beside float64 boxes.
      iou_threshold: 0 to 1.
      max_outputs: D, at least 1.
      class_ids: [..., B], of which 32 bits count; a box drops only boxes of its own
        class. None: all are of one class.
      valid: [..., B]; False takes a box out. None: all take part.
      implementation: As in `xla_ops.deform_conv2d`.

    Returns:
      indices [..., D] int32 of the kept boxes by falling score, then zeros; and valid
      [..., D], True for the kept ones.

    Raises:
      TypeError: An argument is not an array, or has a dtype that does not fit.
      ValueError: A shape or a number does not fit; the message names the argument.
      NotImplementedError: "ffi", and the platform has no kernel.
      RuntimeError: The CPU kernels are not built.

    Source: `torchvision.ops.nms`; with `class_ids`, `torchvision.ops.batched_nms`
    without its shift of coordinates, which loses digits.
    """
    implementation = resolve_implementation(implementation)
    boxes = check_array("boxes", boxes)
    if boxes.ndim < 2 or boxes.shape[-1] != 4:
        raise ValueError(f"`boxes` has shape {boxes.shape}; expected (..., B, 4)")
    shape = boxes.shape[:-1]
    beside = f" = boxes.shape[:-1] for `boxes` {boxes.shape}"
    letters = ", ".join(["_"] * (len(shape) - 1) + ["B"])
    scores = check_beside("scores", scores, boxes)
    check_shape("scores", scores, shape, letters, beside)
    boxes = boxes.astype(scores.dtype)
    if class_ids is None:
        class_ids = jnp.zeros_like(scores, jnp.int32)
    else:
        class_ids = check_array("class_ids", class_ids, INTEGERS)
        check_shape("class_ids", class_ids, shape, letters, beside)
    if valid is None:
        valid = jnp.ones_like(scores, bool)
    else:
        valid = check_array("valid", valid, ("bool",))
        check_shape("valid", valid, shape, letters, beside)

    run = functools.partial(
        _nms,
        threshold=_threshold(iou_threshold, scores.dtype),
        max_outputs=check_integer("max_outputs", max_outputs),
        implementation=implementation,
    )
    operands = (
        jax.lax.stop_gradient(boxes),
        jax.lax.stop_gradient(scores),
        class_ids.astype(jnp.int32),
        valid,
    )
    if len(shape) == 1:
        indices, kept = run(*(x[None] for x in operands))
        return indices[0], kept[0]
    for _ in shape[2:]:
        run = jax.vmap(run)
    indices, kept = run(*operands)
    return indices, kept


def _threshold(value: Any, dtype: np.dtype) -> float:
    """The largest number of type `dtype` that is not above `value`.

    What is greater than the one is greater than the other, and torchvision compares
    with float64.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`iou_threshold` is {value!r}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number <= 1:
        raise ValueError(f"`iou_threshold` is {value!r}; expected 0 to 1")
    rounded = float(dtype.type(number))
    if rounded > number:
        rounded = float(np.nextafter(dtype.type(number), dtype.type(-math.inf)))
    return rounded


def _nms(*operands, **params):
    return tuple(_select(*align(*operands), **params))


def _reference(*operands, **params):
    return jax.vmap(functools.partial(reference.nms, **params))(*operands)


_select = OperatorPrimitive(
    "dcn_jax.nms",
    results=lambda boxes, *_, max_outputs, threshold: [
        ((boxes.shape[0], max_outputs), np.dtype("int32")),
        ((boxes.shape[0], max_outputs), np.dtype("bool")),
    ],
    reference=_reference,
    attributes=lambda *, threshold, max_outputs: {
        "iou_threshold": np.float64(threshold)
    },
    cuda=cuda.nms,
)
