"""The same bits from run to run, and for any number of threads."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import xla_ops
from tests.support import operators
from tests.support.backend import CUDA

DTYPES = ("float32", "bfloat16")


@functools.cache
def run(name, dtype):
    """Output and gradients as a function without arguments, large enough to be cut.

    Which values they have does not matter, so half precision is float32 rounded.
    """
    row = operators.operator(name, batch=3, scale=4)
    arguments = jax.tree.map(
        lambda a: a.astype(dtype) if a.dtype == np.float32 else a,
        tuple(row.arguments.values()),
    )

    def value_and_gradients(*arguments):
        return row.output(*arguments), row.gradients(*arguments)

    compiled = jax.jit(value_and_gradients).lower(*arguments).compile()
    return lambda: [
        np.asarray(leaf).view(np.uint8)
        for leaf in jax.tree.leaves(compiled(*arguments))
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", operators.OPERATORS)
def test_a_hundred_runs_are_equal(name, dtype):
    first = run(name, dtype)()
    assert all(leaf.any() for leaf in first)
    for _ in range(99):
        for a, b in zip(first, run(name, dtype)(), strict=True):
            np.testing.assert_array_equal(a, b)


_ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from tests.support import operators
from tests.xla_ops import test_determinism
for name in operators.OPERATORS:
    for dtype in test_determinism.DTYPES:
        out = test_determinism.run(name, dtype)()
        np.savez(os.path.join(sys.argv[1], f"{name}-{dtype}.npz"), *out)
print(len(os.sched_getaffinity(0)))
"""


@pytest.fixture(scope="module")
def one_core(tmp_path_factory):
    """Results of a process that has one core, and so one thread."""
    folder = tmp_path_factory.mktemp("one_core")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _ON_ONE_CORE, str(folder)],
        env=dict(os.environ, PYTHONPATH=str(root), XLA_FLAGS=""),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1\n"
    return folder


@pytest.mark.skipif(CUDA, reason="of the CPU's own kernels")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="has one core itself")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", operators.OPERATORS)
def test_one_thread_and_several_are_equal(name, dtype, one_core):
    with np.load(one_core / f"{name}-{dtype}.npz") as file:
        there = list(file.values())
    for a, b in zip(run(name, dtype)(), there, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(CUDA, reason="XLA multiplies there, in an order of its own")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [5, 20, 64])
def test_an_image_does_not_depend_on_its_batch(channels, dtype):
    # Many images are cut into larger tiles than one.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 20, 20, channels)).astype(dtype)
    offset = rng.normal(0, 2, (24, 20, 20, 1, 9, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, 40)).astype(dtype)
    batch = xla_ops.deform_conv2d(x, offset, kernel)
    for i in (0, 23):
        alone = xla_ops.deform_conv2d(x[i : i + 1], offset[i : i + 1], kernel)
        np.testing.assert_array_equal(alone[0], batch[i])
