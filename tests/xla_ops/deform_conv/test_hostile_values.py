"""deform_conv2d with one NaN, infinite, huge or tiny number in any of its arrays.

What depends on that number shows it; nothing else does. A sample at an infinite or far
place is 0, one at a NaN place is NaN where it enters.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backend import CUDA
from tests.support.deform_conv import NAMES, random_case, value_and_pull_back
from tests.support.deform_conv_oracle import Window, value_and_gradients
from xla_ops import deform_conv2d

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
ARRAYS = (*NAMES, "cotangent")
RESULTS = ("output", *NAMES)  # The output, then gradients.
# Result -> arrays in which it is linear. `offset` decides on all but dbias.
LINEAR_IN = {
    "output": {"x", "kernel", "mask", "bias"},
    "x": {"kernel", "mask", "cotangent"},
    "offset": {"x", "kernel", "mask", "cotangent"},
    "kernel": {"x", "mask", "cotangent"},
    "mask": {"x", "kernel", "cotangent"},
    "bias": {"cotangent"},
}
VALUES = {
    "nan": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "1e30": 1e30,
    "-1e30": -1e30,
    "largest": "max",
    "denormal": "smallest_subnormal",
    "-0": -0.0,
}
# One within a vector, one across vectors of every width.
LAYOUTS = {
    "groups": dict(channels=4, features=4, groups=2, offset_groups=2),
    "channels": dict(channels=37, features=19, groups=1, offset_groups=1),
}
SIZE, OUTPUT = (6, 7), (4, 5)


def arguments_of(layout, dtype):
    """No sample is wholly outside the map: all numbers matter."""
    case = list(
        random_case(
            size=SIZE, output=OUTPUT, bias=True, dtype=np.float64, **LAYOUTS[layout]
        )
    )
    rng = np.random.default_rng(5)
    sign = rng.choice([-1, 1], size=case[1].shape)
    case[1] = sign * rng.uniform(0.1, 0.9, case[1].shape)
    case.append(rng.normal(size=(2, *OUTPUT, LAYOUTS[layout]["features"])))
    return [array.astype(jnp.dtype(dtype)) for array in case]


@functools.cache
def compiled(layout):
    operator = functools.partial(
        deform_conv2d,
        padding="VALID",
        feature_group_count=LAYOUTS[layout]["groups"],
        implementation="ffi",
    )

    def run(arguments, cotangent):
        y, gradients = value_and_pull_back(operator, arguments, cotangent)
        return y, *gradients

    return jax.jit(run)


def exact(layout, arrays):
    """The oracle's results for `arrays`."""
    window = Window(padding=(0, 0), groups=LAYOUTS[layout]["groups"])
    *arrays, cotangent = (np.asarray(a, np.float64) for a in arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        y, gradients = value_and_gradients(*arrays, cotangent, window=window)
    return dict(zip(RESULTS, (y, *gradients), strict=True))


def touched(layout, arrays, index, place):
    """Result -> which of its elements depend on `arrays[index][place]`."""
    rng = np.random.default_rng(6)
    offset = arrays[1]
    positive = [rng.uniform(1, 2, a.shape) for a in arrays]
    positive[1] = offset
    positive[index] = np.zeros_like(positive[index])
    positive[index][place] = 1
    if ARRAYS[index] == "bias":
        positive[0] *= 0
    else:
        positive[4] *= 0
    results = exact(layout, positive)
    return {
        name: (results[name] != 0)
        if ARRAYS[index] in LINEAR_IN[name]
        else np.zeros(results[name].shape, bool)
        for name in RESULTS
    }


def value_of(name, dtype):
    value = VALUES[name]
    if isinstance(value, str):
        return getattr(jnp.finfo(dtype), value)
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(jnp.dtype(dtype))


def assert_close(got, want, dtype, name, largest=None):
    """Relative to the largest; below the smallest normal number it may be 0."""
    if largest is None:
        largest = np.abs(want).max(initial=0)
    bound = TOLERANCE[dtype] * largest
    error = np.abs(got - want).max(initial=0)
    assert error <= bound + float(jnp.finfo(dtype).tiny), name


def check(layout, dtype, index, value_name):
    arrays = arguments_of(layout, dtype)
    place = tuple(np.random.default_rng(index).integers(arrays[index].shape))
    clean = [np.asarray(a, np.float64) for a in arrays]
    arrays[index][place] = value = value_of(value_name, dtype)
    value = float(value)
    *arguments, cotangent = arrays
    got = dict(zip(RESULTS, compiled(layout)(arguments, cotangent), strict=True))
    got = {name: np.asarray(result, np.float64) for name, result in got.items()}

    if ARRAYS[index] == "offset":
        # The oracle knows the rules for places.
        wanted = exact(layout, arrays)
        for name, want in wanted.items():
            np.testing.assert_array_equal(np.isnan(got[name]), np.isnan(want), name)
            known = ~np.isnan(want)
            assert_close(got[name][known], want[known], dtype, name)
        assert np.isnan(value) == np.isnan(wanted["output"]).any()
        return

    hit = touched(layout, clean, index, place)
    clean[index][place] = 0
    without = exact(layout, clean)
    clean[index][place] = value if np.isfinite(value) else 0
    wanted = exact(layout, clean)
    assert any(where.any() for where in hit.values())
    limit = 1e-3 * float(jnp.finfo(dtype).max)
    for name, want in wanted.items():
        there, elsewhere = hit[name], ~hit[name]
        assert_close(got[name][elsewhere], without[name][elsewhere], dtype, name)
        if np.isnan(value):
            assert np.isnan(got[name][there]).all(), name
        elif np.isinf(value):
            assert not np.isfinite(got[name][there]).any(), name
        elif np.abs(want[there]).max(initial=0) < limit:
            assert_close(got[name][there], want[there], dtype, name)
        else:
            # What is too large for the type is infinite, or a difference of such. What
            # is left may be a small difference of numbers as large as those.
            largest = np.abs(want[there & np.isfinite(want)]).max(initial=0)
            there &= np.isfinite(got[name]) & np.isfinite(want)
            assert_close(got[name][there], want[there], dtype, name, largest)


def every_case():
    for layout in LAYOUTS:
        for index in range(len(ARRAYS)):
            for value_name in VALUES:
                yield layout, index, value_name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index", range(6), ids=ARRAYS)
def test_one_hostile_number(index, layout, dtype):
    with jax.enable_x64(dtype == "float64"):
        for value_name in VALUES:
            check(layout, dtype, index, value_name)


@pytest.mark.parametrize("value", VALUES)
def test_nothing_but_hostile_numbers(value):
    """Every array full of it; a result, whatever it says."""
    arrays = arguments_of("channels", "float32")
    for index in range(len(arrays)):
        changed = list(arrays)
        changed[index] = np.full_like(arrays[index], value_of(value, "float32"))
        *arguments, cotangent = changed
        results = compiled("channels")(arguments, cotangent)
        if ARRAYS[index] == "offset" and value in ("inf", "-inf", "1e30", "-1e30"):
            y, dx, *_ = results
            bias = arguments[4][None, None, None]
            np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))
            assert not np.any(dx)
        if value == "nan" and ARRAYS[index] != "cotangent":
            assert np.isnan(results[0]).all()


_OTHER_PROCESS = """
import jax, numpy as np
from tests.xla_ops.deform_conv import test_hostile_values as hostile
jax.config.update("jax_default_matmul_precision", "highest")
count = 0
for case in hostile.every_case():
    hostile.check(case[0], "float32", case[1], case[2])
    count += 1
rng = np.random.default_rng(0)
for layout in hostile.LAYOUTS:
    for _ in range(50):
        # A mixture of everything everywhere: any result, but a living process.
        arrays = hostile.arguments_of(layout, "float32")
        for array in arrays:
            hit = rng.uniform(size=array.shape) < 0.3
            values = [hostile.value_of(v, "float32") for v in hostile.VALUES]
            array[hit] = rng.choice(np.asarray(values, np.float32), hit.sum())
        *arguments, cotangent = arrays
        jax.block_until_ready(hostile.compiled(layout)(arguments, cotangent))
        count += 1
print(count)
"""


@pytest.mark.parametrize(
    "isa",
    [
        "",
        *(
            pytest.param(
                isa, marks=pytest.mark.skipif(CUDA, reason="of the CPU's own kernels")
            )
            for isa in ("avx2", "baseline")
        ),
    ],
)
def test_the_process_lives(isa):
    path = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS],
        env=dict(os.environ, PYTHONPATH=path, XLA_OPS_CPU_ISA=isa),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(list(every_case())) + 100
