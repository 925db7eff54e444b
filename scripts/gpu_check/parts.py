"""The stage that times the parts of deform_conv2d, forward and backward.

    python -m scripts.gpu_check.parts [--emulated]

Each part is a program of its own, with arguments that the part before it made, so that
the page says which of them to work on.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scripts.benchmark.conv_cases import deform_arguments
from scripts.benchmark.layers import SHAPES
from scripts.gpu_check.roofline import seconds_a_call
from scripts.gpu_check.runner import seconds_left
from scripts.gpu_check.speed import DRY, Plan
from xla_ops import deform_conv2d
from xla_ops.deform_conv.cuda.composition import (
    by_group,
    columns_gradient,
    kernel_gradient,
    output_of,
)
from xla_ops.deform_conv.cuda.input_gradient import sort_corners
from xla_ops.deform_conv.cuda.kernels import (
    gather_input_gradient,
    list_corners,
    sample_columns,
    visit_samples,
)

_SETTINGS: dict[str, Any] = dict(
    window=(3, 3), strides=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1
)
_PRECISION = "default"
# Calls that are timed together, and how often; the least counts.
_CALLS, _ROUNDS = 20, 5


def parts(shape: tuple[int, int, int], images: int, dtype: Any) -> dict[str, Callable]:
    """Calls without arguments, compiled and warmed up, by the names of the parts."""
    arguments = deform_arguments(images, *shape)
    x, offset, kernel, mask = (
        jnp.asarray(a, dtype if i in (0, 2) else jnp.float32)
        for i, a in enumerate(arguments)
    )
    rng = np.random.default_rng(3)
    gradient = jnp.asarray(rng.standard_normal(x.shape), dtype)
    first_row = jnp.zeros(images, jnp.int32)
    weights = by_group(kernel[None], 1)
    g = gradient.reshape(*gradient.shape[:3], 1, -1)
    kept = dtype if dtype == jnp.bfloat16 else jnp.float32
    found: dict[str, Callable] = {}

    def part(name: str, function: Callable, *given: Any, **settings: Any) -> Any:
        run = jax.jit(functools.partial(function, **settings)).lower(*given).compile()
        found[name] = functools.partial(run, *given)
        return jax.block_until_ready(found[name]())

    part("starting a program", lambda x: x + 1, first_row)
    (columns,) = part(
        "columns",
        functools.partial(sample_columns, **_SETTINGS),
        x,
        first_row,
        offset,
        mask,
    )
    part(
        "product: output",
        lambda columns, weights: output_of(columns, weights, _PRECISION, dtype),
        columns,
        weights,
    )
    part("forward pass", deform_conv2d, x, offset, kernel, mask)
    dcolumns = part(
        "product: gradient of the columns",
        lambda g, weights: columns_gradient(g, weights, _PRECISION, kept),
        g,
        weights,
    )
    columns, *_ = part(
        "visit: columns, gradients of offset and mask",
        functools.partial(visit_samples, scatter=False, **_SETTINGS),
        x,
        first_row,
        offset,
        dcolumns,
        mask,
    )
    part(
        "product: gradient of the kernel",
        lambda columns, g: kernel_gradient(
            columns, g, (1, images), _PRECISION, jnp.float32
        ),
        columns,
        g,
    )
    (pixel,) = part(
        "list: pixels of the corners",
        functools.partial(list_corners, joint=True, **_SETTINGS),
        x,
        first_row,
        offset,
    )
    pixel, number = part("sort by pixel", lambda p: sort_corners(p, True), pixel)
    gather = functools.partial(
        gather_input_gradient,
        shape=x.shape[1:],
        dtype=dtype,
        joint=True,
        **_SETTINGS,
    )
    part(
        "gather: gradient of x",
        gather,
        first_row,
        offset,
        dcolumns,
        pixel,
        number,
        mask,
    )

    def backward(gradient: Any, *arguments: Any) -> Any:
        return jax.vjp(deform_conv2d, *arguments)[1](gradient)

    part("backward pass", backward, gradient, x, offset, kernel, mask)
    return found


def table(found: Sequence[dict[str, float]], heads: Sequence[str]) -> str:
    """Microseconds in Markdown: a row for each part, a column for each shape."""
    lines = [["microseconds", *heads], ["---"] * (1 + len(heads))]
    rows = {name: [f[name] for f in found] for name in found[0]}
    lines += [[name, *(f"{s * 1e6:.1f}" for s in row)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Returns the exit status."""
    begin = time.monotonic()
    emulated = "--emulated" in sys.argv
    plan = DRY if emulated else Plan(SHAPES)
    calls, rounds = (1, 1) if emulated else (_CALLS, _ROUNDS)
    print(
        f"{plan.images} images; each part is a program of its own, in which starting a "
        f"program counts. `XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}`.\n",
        flush=True,
    )
    last = 0.0
    for dtype in (jnp.bfloat16, jnp.float32):
        found, heads = [], []
        for shape in plan.shapes:
            if seconds_left(begin) < 1.3 * last + 3:
                print(f"Skipped: {jnp.dtype(dtype).name} {shape}, for want of time.\n")
                break
            first = time.monotonic()
            runs = parts(shape, plan.images, dtype)
            found.append(
                {
                    name: min(seconds_a_call(run, calls) for _ in range(rounds))
                    for name, run in runs.items()
                }
            )
            heads.append("{}ch {}x{}".format(*shape))
            last = time.monotonic() - first
        if found:
            print(f"{jnp.dtype(dtype).name}:\n\n{table(found, heads)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
