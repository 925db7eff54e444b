"""What this machine could do at best: least times of a layer from measured rates.

The rates are those of a copy and of a large product of matrices, by XLA.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Precision(NamedTuple):
    """How a layer computes.

    Attributes:
      title: In the report.
      dtype: Of x and kernel.
      products: As in `jax.lax.dot_general`.
      peer: Precision of torchvision's that it is compared with.
    """

    title: str
    dtype: Any
    products: str
    peer: str


BFLOAT16 = Precision("bfloat16", jnp.bfloat16, "default", "autocast")
TF32 = Precision("TF32", jnp.float32, "default", "tf32")
FLOAT32 = Precision("float32", jnp.float32, "highest", "float32")


class Rates(NamedTuple):
    """Of this machine: bytes a second, and operations a second by `Precision.title`."""

    copy: float
    products: dict[str, float]


# Dense products of H100 and H200 (SXM), without sparsity.
_SHEET = {"float32": 66.9e12, "TF32": 494.7e12, "bfloat16": 989.4e12}
# By the names that nvidia-smi gives them; other forms of them are slower.
DATA_SHEETS = {
    "NVIDIA H100 80GB HBM3": Rates(3.35e12, _SHEET),
    "NVIDIA H200": Rates(4.8e12, _SHEET),
}


def seconds_a_call(run: Any, calls: int) -> float:
    """Of so many calls in a row."""
    result = None
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def measure_rates(mebibytes: int, side: int, calls: int) -> Rates:
    """Copies an array of so many MiB, multiplies matrices of that side."""
    array = jnp.zeros(mebibytes << 18, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    products = {}
    for precision in (BFLOAT16, TF32, FLOAT32):
        # Constants take less power, and so less time.
        matrix = jax.random.normal(jax.random.key(0), (side, side), precision.dtype)
        multiply = functools.partial(_square, matrix, precision.products)
        products[precision.title] = 2 * side**3 / _best(multiply, calls)
    return Rates(2 * array.nbytes / _best(lambda: copy(array), calls), products)


def _best(run: Any, calls: int) -> float:
    run()
    return min(seconds_a_call(run, calls) for _ in range(3))


@functools.partial(jax.jit, static_argnums=1)
def _square(matrix: jax.Array, products: str) -> jax.Array:
    return jnp.dot(matrix, matrix, precision=products)


def operations(images: int, shape: tuple[int, int, int], backward: bool) -> float:
    """Of the products of a 3x3 layer; multiplication and addition are two."""
    channels, height, width = shape
    forward = 2.0 * images * height * width * 9 * channels * channels
    return 2 * forward if backward else forward


def least_bytes(
    images: int, shape: tuple[int, int, int], itemsize: int, backward: bool
) -> float:
    """That a layer reads and writes at least: each array once."""
    channels, height, width = shape
    positions = images * height * width
    features = positions * channels * itemsize
    places = positions * 27 * 4  # offset and mask in float32
    kernel = 9 * channels * channels * itemsize
    # Forward x and y, backward x and both gradients.
    return (
        3 * features + 2 * (places + kernel)
        if backward
        else (2 * features + places + kernel)
    )


def least_seconds(
    rates: Rates,
    images: int,
    shape: tuple[int, int, int],
    precision: Precision,
    backward: bool,
) -> float:
    """The longer of the times of the products and of the memory."""
    size = jnp.dtype(precision.dtype).itemsize
    return max(
        operations(images, shape, backward) / rates.products[precision.title],
        least_bytes(images, shape, size, backward) / rates.copy,
    )
