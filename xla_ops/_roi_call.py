"""From checked arguments of RoI pooling to the primitives, forward and backward.

Letters: N batch, L pyramid levels, C channels, B RoIs of an image, h w bins of a RoI.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from xla_ops._call import make_primitive
from xla_ops.cuda import roi_pool as cuda


def make_pooling(
    target: str,
    *,
    reference: Callable[..., jax.Array],
    attributes: Callable[..., dict[str, Any]],
    movable: bool = True,
    scratch: Callable[..., Sequence] = cuda.reach,
) -> Callable[..., jax.Array]:
    """Makes the differentiable function of one kind of RoI pooling.

    Args:
      target: FFI target name without its end, ".fwd" or ".bwd".
      reference: `(maps, boxes, levels, map_sizes, shift, mask, *, output_size,
        **settings) -> y` in plain jnp.
      attributes: `(**settings) -> {name: value}` that the handler decodes.
      movable: Whether the handler knows bins with a shift or a mask.
      scratch: What the backward pass needs on CUDA, as in `cuda.with_scratch`.

    Returns:
      `pool(maps, boxes, levels, map_sizes, shift=None, mask=None, *, implementation,
      output_size, **settings)`. maps: L arrays that lead with N and end with C; boxes
      [N, B, 4]; levels [N, B]; map_sizes [N, L, 2]; shift and mask lead with N, or are
      None; settings are hashable. It returns y [N, B, h, w, C].
    """

    def reference_forward(*operands, num_levels, has_shift, has_mask, **settings):
        maps = operands[:num_levels]
        boxes, levels, map_sizes, *optional = operands[num_levels:]
        shift = optional[0] if has_shift else None
        mask = optional[-1] if has_mask else None
        return (reference(maps, boxes, levels, map_sizes, shift, mask, **settings),)

    def reference_backward(*operands, num_levels, **settings):
        *operands, gradient = operands
        discrete = operands[num_levels : num_levels + 3]

        def pool(*moving):
            operands = (*moving[:num_levels], *discrete, *moving[num_levels:])
            return reference_forward(*operands, num_levels=num_levels, **settings)[0]

        moving = (*operands[:num_levels], *operands[num_levels + 3 :])
        _, pull_back = jax.vjp(pool, *moving)
        return pull_back(gradient)

    def forward_results(*operands, num_levels, output_size, **settings):
        x, boxes = operands[0], operands[num_levels]
        return [((*boxes.shape[:2], *output_size, x.shape[-1]), x.dtype)]

    def backward_results(*operands, num_levels, **settings):
        moving = (*operands[:num_levels], *operands[num_levels + 3 : -1])
        return [(x.shape, x.dtype) for x in moving]

    def handler_attributes(*, num_levels, has_shift, has_mask, **settings):
        # The shape of the result says the output size.
        own = {name: settings[name] for name in settings if name != "output_size"}
        optional = {"has_shift": np.int64(has_shift), "has_mask": np.int64(has_mask)}
        return {
            "num_levels": np.int64(num_levels),
            **(optional if movable else {}),
            **attributes(**own),
        }

    forward = make_primitive(
        f"{target}.fwd",
        results=forward_results,
        reference=reference_forward,
        attributes=handler_attributes,
    )
    backward = make_primitive(
        f"{target}.bwd",
        results=backward_results,
        reference=reference_backward,
        attributes=handler_attributes,
        cuda=cuda.with_scratch(
            f"{target}.bwd",
            scratch=scratch,
            results=backward_results,
            attributes=handler_attributes,
        ),
    )

    def operands_and_params(arguments, settings):
        maps, *others, shift, mask = arguments
        operands = (*maps, *others, *(x for x in (shift, mask) if x is not None))
        params = dict(
            num_levels=len(maps),
            has_shift=shift is not None,
            has_mask=mask is not None,
            **dict(settings),
        )
        return operands, params

    @functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
    def differentiable(*arguments):
        y, _ = run_forward(*arguments)
        return y

    def run_forward(*arguments):
        *saved, implementation, settings = arguments
        operands, params = operands_and_params(saved, settings)
        (y,) = forward(*operands, implementation=implementation, **params)
        return y, tuple(saved)

    def run_backward(implementation, settings, saved, gradient):
        operands, params = operands_and_params(saved, settings)
        gradients = backward(
            *operands, gradient, implementation=implementation, **params
        )
        maps = tuple(gradients[: params["num_levels"]])
        dshift = gradients[len(maps)] if params["has_shift"] else None
        dmask = gradients[-1] if params["has_mask"] else None
        return maps, None, None, None, dshift, dmask

    differentiable.defvjp(run_forward, run_backward)

    def pool(
        maps,
        boxes,
        levels,
        map_sizes,
        shift=None,
        mask=None,
        *,
        implementation,
        **settings,
    ) -> jax.Array:
        arguments = (maps, boxes, levels, map_sizes, shift, mask)
        arguments = (*arguments, implementation, tuple(sorted(settings.items())))
        if implementation == "reference":
            # Without jax.custom_vjp, so that jax.jvp works.
            return run_forward(*arguments)[0]
        return differentiable(*arguments)

    return pool
