"""From the operands of RoI pooling to its primitives, forward and backward.

Letters: N batch, B RoIs of an image, h w bins of a RoI, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
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
      scratch: What the backward pass needs on CUDA, as in `with_scratch`.
    """

    def __init__(
        self,
        target: str,
        *,
        reference: Callable[..., jax.Array],
        attributes: Callable[..., dict[str, Any]],
        movable: bool = True,
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
        self._differentiable = jax.custom_vjp(self._pool, nondiff_argnums=(1, 2))
        self._differentiable.defvjp(self._run_forward, self._run_backward)

    def __call__(
        self, operands: RoIOperands, *, implementation: str | None, **settings: Any
    ) -> jax.Array:
        """Pools; see the class."""
        # Without jax.custom_vjp, so that jax.jvp works.
        plain = implementation == "reference"
        pool = self._pool if plain else self._differentiable
        return pool(operands, implementation, tuple(sorted(settings.items())))

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

    # The rules of jax.custom_vjp.

    def _pool(self, operands, implementation, settings):
        y, _ = self._run_forward(operands, implementation, settings)
        return y

    def _run_forward(self, operands, implementation, settings):
        params = {**operands.layout(), **dict(settings)}
        (y,) = self._forward(*operands.flat(), implementation=implementation, **params)
        return y, operands

    def _run_backward(self, implementation, settings, operands, gradient):
        params = {**operands.layout(), **dict(settings)}
        gradients = self._backward(
            *operands.flat(), gradient, implementation=implementation, **params
        )
        maps, others = gradients[: len(operands.maps)], gradients[len(operands.maps) :]
        of_operands = operands._replace(
            maps=tuple(maps),
            boxes=None,
            levels=None,
            map_sizes=None,
            shift=None if operands.shift is None else others[0],
            mask=None if operands.mask is None else others[-1],
        )
        return (of_operands,)


def _unpacked(flat, params):
    """Operands and settings of what `_run_forward` gives to a primitive."""
    layout = ("num_levels", "has_shift", "has_mask")
    settings = {name: params[name] for name in params if name not in layout}
    return RoIOperands.from_flat(flat, **{n: params[n] for n in layout}), settings


def _moving(operands) -> tuple:
    """The arrays through which gradients flow."""
    optional = operands.shift, operands.mask
    return *operands.maps, *(x for x in optional if x is not None)
