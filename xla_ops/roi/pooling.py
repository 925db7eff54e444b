"""From the operands of RoI pooling to its primitives, forward and backward.

Letters: N batch, B RoIs of an image, h w bins of a RoI, C channels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops._jax import OperatorPrimitive
from xla_ops.roi.cuda import reach, with_scratch
from xla_ops.roi.operands import RoIOperands


class RoIPooling:
    """The differentiable function of one kind of RoI pooling.

    A call is `pooling(operands, *, implementation, output_size, **settings) -> y` with
    y [N, B, h, w, C] and settings that are hashable.

    Args:
      target: FFI target name without its end, ".fwd" or ".bwd".
      reference: `(operands, *, output_size, **settings) -> y` in plain jnp.
      attributes: `(**settings) -> {name: value}` that the handler decodes.
      movable: Whether the handler knows bins with a shift or a mask.
      linear: Whether the result is linear in the maps, and in the mask.
      scratch: What the backward pass needs on CUDA, as in `with_scratch`.
    """

    def __init__(
        self,
        target: str,
        *,
        reference: Callable[..., jax.Array],
        attributes: Callable[..., dict[str, Any]],
        movable: bool = True,
        linear: bool = True,
        scratch: Callable[..., Sequence] = reach,
    ):
        self._reference = reference
        self._attributes = attributes
        self._movable = movable
        self._forward = OperatorPrimitive(
            f"{target}.fwd",
            results=self._forward_results,
            reference=self._reference_forward,
            attributes=self._handler_attributes,
            pull_back=self._pull_back,
            tangent=self._tangent if linear else None,
        )
        self._backward = OperatorPrimitive(
            f"{target}.bwd",
            results=self._backward_results,
            reference=self._reference_backward,
            attributes=self._handler_attributes,
            cuda=with_scratch(
                f"{target}.bwd",
                scratch=scratch,
                results=self._backward_results,
                attributes=self._handler_attributes,
            ),
        )

    def __call__(
        self, operands: RoIOperands, *, implementation: str | None, **settings: Any
    ) -> jax.Array:
        """Pools; see the class."""
        (y,) = self._forward(
            *operands.flat(),
            implementation=implementation,
            **operands.layout(),
            **settings,
        )
        return y

    # The rules of the primitives.

    def _forward_results(self, *flat, output_size, **params):
        operands, _ = _unpacked(flat, params)
        x, boxes = operands.maps[0], operands.boxes
        return [((*boxes.shape[:2], *output_size, x.shape[-1]), x.dtype)]

    def _backward_results(self, *flat_and_gradient, **params):
        operands, _ = _unpacked(flat_and_gradient[:-1], params)
        return [(x.shape, x.dtype) for x in _moving(operands)]

    def _reference_forward(self, *flat, **params):
        operands, settings = _unpacked(flat, params)
        return (self._reference(operands, **settings),)

    def _reference_backward(self, *flat_and_gradient, **params):
        *flat, gradient = flat_and_gradient
        operands, settings = _unpacked(flat, params)

        def pool(maps, shift, mask):
            moved = operands._replace(maps=maps, shift=shift, mask=mask)
            return self._reference(moved, **settings)

        _, pull_back = jax.vjp(pool, operands.maps, operands.shift, operands.mask)
        maps, shift, mask = pull_back(gradient)
        return _moving(operands._replace(maps=maps, shift=shift, mask=mask))

    def _handler_attributes(self, *, num_levels, has_shift, has_mask, **settings):
        # The shape of the result says the output size.
        own = {name: settings[name] for name in settings if name != "output_size"}
        optional = {"has_shift": np.int64(has_shift), "has_mask": np.int64(has_mask)}
        return {
            "num_levels": np.int64(num_levels),
            **(optional if self._movable else {}),
            **self._attributes(**own),
        }

    # Derivatives.

    def _pull_back(self, *flat_and_gradient, implementation, **params):
        gradients = self._backward(
            *flat_and_gradient, implementation=implementation, **params
        )
        count = params["num_levels"]
        # None flows to boxes, levels and sizes of maps.
        return *gradients[:count], None, None, None, *gradients[count:]

    def _tangent(self, flat, tangents, *, implementation, **params):
        """By kernels where the result is linear, rounded once."""
        operands, settings = _unpacked(flat, params)
        along, _ = _unpacked(tangents, params)
        dtype, real = operands.maps[0].dtype, operands.boxes.dtype
        operands = _without_undefined(operands)
        operands = operands._replace(maps=[x.astype(real) for x in operands.maps])

        def pool(**changed):
            moved = operands._replace(**changed)
            return self(moved, implementation=implementation, **settings)

        def pool_moved(shift):
            return self._reference(operands._replace(shift=shift), **settings)

        terms = []
        if any(t is not None for t in along.maps):
            maps = [
                jnp.zeros_like(x) if t is None else t.astype(real)
                for x, t in zip(operands.maps, along.maps, strict=True)
            ]
            terms.append(pool(maps=maps))
        if along.mask is not None:
            terms.append(pool(mask=along.mask))
        if along.shift is not None:
            terms.append(jax.jvp(pool_moved, [operands.shift], [along.shift])[1])
        return (functools.reduce(jnp.add, terms).astype(dtype),)


def _without_undefined(operands):
    """The same with zeros where boxes or shifts give NaN: there nothing moves."""
    boxes, levels, shift = operands.boxes, operands.levels, operands.shift
    finite = jnp.isfinite(boxes).all(-1)
    if shift is not None:
        unknown = jnp.isnan(shift).any(-1, keepdims=True)
        shift = jnp.where(unknown, jnp.inf, shift)
    return operands._replace(
        boxes=jnp.where(finite[..., None], boxes, 0),
        levels=jnp.where(finite, levels, -1),
        shift=shift,
    )


def _unpacked(flat, params):
    """Operands and settings of what a primitive is given."""
    layout = ("num_levels", "has_shift", "has_mask")
    settings = {name: params[name] for name in params if name not in layout}
    return RoIOperands.from_flat(flat, **{n: params[n] for n in layout}), settings


def _moving(operands) -> tuple:
    """The arrays through which gradients flow."""
    optional = operands.shift, operands.mask
    return *operands.maps, *(x for x in optional if x is not None)
