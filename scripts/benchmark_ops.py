"""Times operators against the plain jnp reference and XLA's own convolution.

    python -m scripts.benchmark_ops [--rounds=5]

Prints a Markdown table: medians of rounds in which every candidate runs once, so that
a busy moment of the machine falls on all of them. Offsets are normal with a standard
deviation of 2 pixels; gradients are those of all array arguments.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.fast_forms import max_pool_3x3, pointwise_conv
from xla_ops import deform_conv2d, roi_align

# Channels, height, width: conv3, conv4 and conv5 of a ResNet-50 at 800x1216.
_SHAPES = ((128, 100, 152), (256, 50, 76), (512, 25, 38))


def medians(candidates: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median milliseconds of each candidate; the first round only compiles."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) * 1e3 for name, t in times.items()}


def both(name: str, function: Callable, arguments: tuple) -> dict[str, Callable]:
    """Forward, and forward with backward, of a function of arrays."""
    forward = jax.jit(function)
    numbers = tuple(range(len(arguments)))

    def energy(*arrays):
        return (function(*arrays).astype(jnp.float32) ** 2).sum()

    backward = jax.jit(jax.grad(energy, argnums=numbers))
    return {
        f"{name} fwd": lambda: forward(*arguments),
        f"{name} fwd+bwd": lambda: backward(*arguments),
    }


def plain_conv(x, kernel):
    """The ordinary convolution of the same shape."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def deform_conv_rows(rounds: int):
    """Rows of deform_conv2d, the reference and lax.conv, one image."""
    rng = np.random.default_rng(0)
    for channels, height, width in _SHAPES:

        def normal(*shape, scale=1.0):
            return jnp.asarray(rng.normal(0, scale, shape), jnp.float32)

        x = normal(1, height, width, channels)
        offset = normal(1, height, width, 1, 9, 2, scale=2.0)
        kernel = normal(3, 3, channels, channels, scale=0.05)
        mask = jax.nn.sigmoid(normal(1, height, width, 1, 9))
        arguments = (x, offset, kernel, mask)
        found = medians(
            both("kernel", deform_conv2d, arguments)
            | both(
                "reference",
                lambda *a: deform_conv2d(*a, implementation="reference"),
                arguments,
            )
            | both("lax.conv", plain_conv, (x, kernel)),
            rounds,
        )
        yield f"deform_conv2d {channels}ch {height}x{width}", found


def roi_rows(rounds: int):
    """Rows of roi_align: 512 RoIs, 7x7, 256 channels."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 50, 76, 256)), jnp.float32)
    corner = rng.uniform(0, 700, (1, 512, 2))
    size = rng.uniform(16, 400, (1, 512, 2))
    rois = jnp.asarray(np.concatenate([corner, corner + size], -1), jnp.float32)

    def pool(implementation):
        return lambda x: roi_align(
            x,
            rois,
            output_size=(7, 7),
            spatial_scale=1 / 16,
            implementation=implementation,
        )

    candidates = both("kernel", pool(None), (x,))
    candidates |= both("reference", pool("reference"), (x,))
    yield "roi_align 512 RoIs 7x7 256ch 50x76", medians(candidates, rounds)


def form_rows(rounds: int):
    """Rows of the forms of `dcn_jax.fast_forms` against the usual ones."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0, 1, (8, 96, 96, 32)), jnp.float32)

    def windowed(x):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return nnx.max_pool(padded, (3, 3), strides=(2, 2))

    found = medians(
        both("kernel", max_pool_3x3, (x,)) | both("reference", windowed, (x,)), rounds
    )
    yield "max_pool_3x3 8x96x96x32 (reference: nnx.max_pool)", found

    x = jnp.asarray(rng.normal(size=(8, 48, 48, 32)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(1, 1, 32, 128)), jnp.float32)
    found = medians(
        both("kernel", lambda x, k: pointwise_conv(x, k, (1, 1), 0), (x, kernel))
        | both("reference", plain_conv, (x, kernel)),
        rounds,
    )
    yield "pointwise_conv 8x48x48 32->128 (reference: lax.conv)", found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    columns = ("kernel", "reference", "lax.conv")
    print(
        f"jax {jax.__version__}, {jax.default_backend()}, {platform.machine()}, "
        f"medians of {rounds} rounds, milliseconds\n"
    )
    print(
        "| | " + " | ".join(columns) + " | reference / kernel |\n|---|---|---|---|---|"
    )
    for rows in (deform_conv_rows, roi_rows, form_rows):
        for title, found in rows(rounds):
            for part in ("fwd", "fwd+bwd"):
                times = [found.get(f"{column} {part}") for column in columns]
                cells = ["" if t is None else f"{t:.1f}" for t in times]
                ratio = found[f"reference {part}"] / found[f"kernel {part}"]
                print(f"| {title}, {part} | {' | '.join(cells)} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
