"""The forward pass of deform_conv2d on CUDA: kernels sample, XLA multiplies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.backend import CUDA
from tests.support.comparison import relative_error
from tests.support.deform_conv import random_case
from xla_ops import deform_conv2d

with_cuda = pytest.mark.skipif(not CUDA, reason="of the CUDA kernels")
DTYPES = ("bfloat16", "float16", "float32")
# Largest error over the largest output: rounded samples and a rounded output. A GPU
# rounds operands of float32 to TF32.
TOLERANCE = {"bfloat16": 4e-3, "float16": 5e-4, "float32": 5e-4}


def forward(**options):
    """A compiled deform_conv2d that may take TF32."""
    return jax.jit(functools.partial(deform_conv2d, precision="default", **options))


def calls(function, *arguments):
    text = function.lower(*arguments).compile().as_text()
    return re.findall(r'custom_call_target="dcn_jax.deform_conv2d.(\w+)"', text)


@functools.cache
def reference(options=()):
    return jax.jit(
        functools.partial(deform_conv2d, implementation="reference", **dict(options))
    )


def expected_output(*arguments, **options):
    """In float32, of which the products on a CPU are whole."""
    arguments = [None if a is None else np.asarray(a, np.float32) for a in arguments]
    return np.asarray(reference(tuple(options.items()))(*arguments))


def to_dtype(arguments, dtype):
    """Puts x and kernel in `dtype`, offset and mask in float32."""
    x, offset, kernel, mask, bias = arguments
    return jnp.asarray(x, dtype), offset, jnp.asarray(kernel, dtype), mask, bias


def whole_case(**shape):
    """Small whole numbers, of which every sum in float32 is exact."""
    x, offset, kernel, mask, bias = random_case(**shape)
    rng = np.random.default_rng(3)
    return (
        rng.integers(-2, 3, x.shape).astype(np.float32),
        np.round(offset).astype(np.float32),
        rng.integers(-1, 2, kernel.shape).astype(np.float32),
        None if mask is None else np.round(2 * mask).astype(np.float32),
        bias,
    )


# Where tiles end: a block has a patch of 8 x 8 positions, some taps, and slabs of 64
# channels (32 of float32) of an offset group. Emulated, 16 blocks are many.
SHAPES = {
    "whole tiles": dict(size=(8, 16), channels=64, features=8),
    "ragged positions": dict(size=(9, 7), channels=64, features=8),
    "one position": dict(size=(1, 1), channels=16, features=8),
    "part of a slab": dict(size=(5, 6), channels=104, features=8),
    "C 100": dict(size=(5, 6), channels=100, features=8),
    "C 33": dict(batch=1, size=(5, 6), channels=33, features=5),
    "few channels": dict(size=(5, 6), channels=3, features=5),
    "two offset groups": dict(size=(6, 7), channels=96, features=8, offset_groups=2),
    "offset groups of 20": dict(
        batch=1, size=(6, 7), channels=60, features=8, offset_groups=3
    ),
    "groups within offset groups": dict(
        size=(6, 7), channels=96, features=12, groups=6, offset_groups=2
    ),
    "offset groups within groups": dict(
        size=(6, 7), channels=96, features=12, groups=2, offset_groups=6
    ),
    "many taps": dict(
        batch=1, size=(6, 7), channels=40, features=8, kernel_size=(3, 7)
    ),
    "not modulated": dict(size=(6, 7), channels=48, features=8, modulated=False),
    "runs of taps": dict(batch=2, size=(16, 13), channels=72, features=4),
    "all taps": dict(batch=3, size=(24, 24), channels=8, features=4),
}


@with_cuda
@pytest.mark.parametrize("name", SHAPES)
def test_exact_sums(name):
    arguments = whole_case(**SHAPES[name])
    options = dict(feature_group_count=SHAPES[name].get("groups", 1))
    expected = expected_output(*arguments, **options)
    for dtype in DTYPES:
        actual = forward(**options)(*to_dtype(arguments, dtype))
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, jnp.asarray(expected, dtype), dtype)


@with_cuda
@pytest.mark.parametrize(
    "options, output",
    [
        (dict(), (12, 13)),
        (dict(strides=2), (6, 7)),
        (dict(kernel_dilation=2), (12, 13)),
        (
            dict(strides=(1, 3), kernel_dilation=(2, 1), padding=((0, 3), (2, 1))),
            (11, 5),
        ),
    ],
)
def test_rounding(options, output):
    case = random_case(
        size=(12, 13), output=output, channels=64, features=40, offset_groups=2
    )
    for dtype in DTYPES:
        arguments = to_dtype(case, dtype)
        error = relative_error(
            forward(**options)(*arguments), expected_output(*arguments, **options)
        )
        assert error < TOLERANCE[dtype], dtype
        # In half precision rounded it is.
        assert dtype == "float32" or error > TOLERANCE[dtype] / 50, dtype


@with_cuda
@pytest.mark.parametrize("features", [24, 20])
def test_a_kernel_for_each_image(features):
    case = whole_case(size=(5, 6), channels=32, features=features, batch=3)
    kernels = np.random.default_rng(4).integers(-1, 2, (3, 3, 3, 32, features))

    mapped = jax.jit(
        jax.vmap(lambda x, o, k, m: forward()(x[None], o[None], k, m[None])[0])
    )
    x, offset, _, mask, _ = case
    expected = [
        expected_output(
            *(a[i : i + 1] for a in (x, offset)), kernels[i], mask[i : i + 1]
        )
        for i in range(3)
    ]
    for dtype in DTYPES:
        arguments = jnp.asarray(x, dtype), offset, jnp.asarray(kernels, dtype), mask
        assert calls(mapped, *arguments) == ["columns"]
        np.testing.assert_array_equal(
            mapped(*arguments), jnp.asarray(np.concatenate(expected), dtype), dtype
        )


@with_cuda
@pytest.mark.parametrize("channels", [36, 40])
def test_values_that_are_not_finite_stay_where_they_belong(channels):
    clean = whole_case(size=(9, 9), channels=channels, features=24)
    for index, place, value in [
        (1, (1, 2, 3, 0, 5, 0), np.nan),
        (1, (1, 2, 3, 0, 5, 1), -np.inf),
        (1, (0, 8, 8, 0, 0, 1), 1e30),
        (3, (0, 4, 4, 0, 4), np.inf),
        (0, (0, 3, 3, channels - 1), np.nan),
        (2, (0, 2, channels - 1, 23), np.nan),
    ]:
        arguments = [None if a is None else np.array(a) for a in clean]
        arguments[index][place] = value
        expected = expected_output(*arguments)
        for dtype in DTYPES:
            actual = forward()(*to_dtype(arguments, dtype)).astype(np.float32)
            np.testing.assert_array_equal(actual, expected, dtype)


@with_cuda
@pytest.mark.devices(8)
@pytest.mark.parametrize(
    "kind, dtype", [(AxisType.Auto, "float32"), (AxisType.Explicit, "bfloat16")]
)
def test_split_over_devices(kind, dtype):
    case = whole_case(size=(5, 6), channels=32, features=24, batch=8)
    arguments = to_dtype(case, dtype)[:4]
    expected = forward()(*arguments)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    specs = (P("data"), P("data"), P(), P("data"))
    placed = [
        jax.device_put(a, NamedSharding(mesh, spec))
        for a, spec in zip(arguments, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        text = forward().lower(*placed).compile().as_text()
        actual = forward()(*placed)
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", text)
    assert actual.sharding.shard_shape(actual.shape)[0] == 1
    np.testing.assert_array_equal(actual, expected)


@with_cuda
@pytest.mark.parametrize("batch, output", [(0, (6, 7)), (2, (0, 5))])
def test_empty(batch, output):
    shape = dict(batch=batch, size=(2, 7) if batch else (6, 7), output=output)
    arguments = to_dtype(random_case(channels=16, features=16, **shape), "bfloat16")
    y = forward(padding="VALID" if batch else "SAME")(*arguments)
    assert y.shape == (batch, *output, 16)
