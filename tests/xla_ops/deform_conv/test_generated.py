"""deform_conv2d over generated layers, against float64 arithmetic in numpy.

The error of a result is its largest difference from the oracle over the oracle's
largest magnitude. Every result has to meet the bound of its type: the output and the
gradients of all arguments. The oracle gets the arguments as rounded to their type.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.comparison import relative_error
from tests.support.deform_conv import (
    NAMES,
    GoldenCase,
    golden_names,
    random_case,
    value_and_pull_back,
)
from tests.support.deform_conv_oracle import Window, value_and_gradients
from xla_ops import deform_conv2d

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
BATCHES = 21
LAYERS_IN_BATCH = 100
WIDE_BATCHES = 4
WIDE_LAYERS_IN_BATCH = 12

KERNEL_SIZES = [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (7, 7), (1, 4), (3, 2)]
# (groups, offset groups), few and many: nested either way, and neither divides the
# other.
GROUPS = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 2), (3, 2), (2, 3), (1, 5)]
GROUPS += [(8, 1), (16, 4), (12, 8), (1, 8)]
# Multiply-adds of the oracle for one layer: of its samples, and of its products.
MOST_WORK = 6e6
MOST_PRODUCTS = 5e7


class Layer(NamedTuple):
    """All that decides a case; printed where it fails."""

    seed: int
    dtype: str
    batch: int
    size: tuple[int, int]
    channels: int
    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: Any
    dilation: tuple[int, int]
    groups: int
    offset_groups: int
    places: str
    wide_offset: bool
    modulated: bool
    bias: bool


def draw(seed: int) -> Layer:
    rng = np.random.default_rng(seed)

    def pair(low, high):
        return tuple(map(int, rng.integers(low, high + 1, 2)))

    kernel_size = KERNEL_SIZES[rng.choice(len(KERNEL_SIZES), p=_KERNEL_SHARES)]
    groups, offset_groups = GROUPS[rng.integers(len(GROUPS))]
    unit = int(np.lcm(groups, offset_groups))
    low, high = [(1, 70), (130, 300)][int(rng.uniform() < 0.06)]
    channels = unit * int(rng.integers(-(-low // unit), high // unit + 1))
    padding = [
        "SAME",
        "VALID",
        int(rng.integers(0, 4)),
        pair(0, 3),
        (pair(0, 3), pair(0, 3)),
    ][rng.integers(5)]
    layer = Layer(
        seed=seed,
        dtype=list(TOLERANCE)[seed % 4],
        batch=int(rng.choice([0, 1, 2, 33], p=[0.06, 0.41, 0.41, 0.12])),
        size=pair(1, 13),
        channels=channels,
        features=groups * int(rng.integers(1, 70 // groups + 1)),
        kernel_size=kernel_size,
        strides=pair(1, 3),
        padding=padding,
        dilation=pair(1, 3),
        groups=groups,
        offset_groups=offset_groups,
        places=str(rng.choice(["smooth", "integer", "mixed"], p=[0.6, 0.1, 0.3])),
        wide_offset=bool(rng.integers(2)),
        modulated=bool(rng.uniform() < 0.7),
        bias=bool(rng.integers(2)),
    )
    # Few layers whose kernel does not fit.
    if 0 in output_of(layer) and rng.uniform() < 0.8:
        layer = layer._replace(
            size=tuple(
                (k - 1) * d + n
                for n, k, d in zip(
                    pair(1, 5), layer.kernel_size, layer.dilation, strict=True
                )
            )
        )
    # Smaller maps and fewer channels where the oracle would take long.
    for _ in range(20):
        if work_of(layer) <= MOST_WORK:
            break
        if max(layer.size) > 4:
            layer = layer._replace(size=tuple(-(-n * 3 // 4) for n in layer.size))
        else:
            layer = layer._replace(channels=unit * (layer.channels // unit // 2 or 1))
    return layer


def draw_wide(seed: int) -> Layer:
    """A layer with more than 384 taps, channels or outputs of a group.

    The CPU's products cut those into tiles, and tiles into panels of one or two
    vectors, the last of which may be partly full.
    """
    rng = np.random.default_rng((seed, 1))
    layer = draw(seed)._replace(batch=int(rng.integers(1, 4)), padding="SAME")
    unit = int(np.lcm(layer.groups, layer.offset_groups))
    kind = ("taps", "channels", "outputs", "outputs")[seed // 4 % 4]
    if kind == "taps":
        layer = layer._replace(
            kernel_size=(20, 20), channels=unit * int(rng.integers(1, 6))
        )
    else:
        features = layer.groups * int(rng.integers(385, 1001))
        layer = layer._replace(features=features)
    if kind == "channels":
        count = int(rng.integers(385, 1001)) * layer.offset_groups
        layer = layer._replace(channels=-(-count // unit) * unit)
    for _ in range(5):
        if work_of(layer) > MOST_WORK or products_of(layer) > MOST_PRODUCTS:
            smaller = tuple(-(-n // 2) for n in layer.size)
            layer = layer._replace(batch=1, size=smaller)
    return layer


def products_of(layer):
    places = layer.batch * np.prod(output_of(layer)) * np.prod(layer.kernel_size)
    return places * layer.channels * layer.features // layer.groups


_KERNEL_SHARES = np.asarray([4, 4, 5, 3, 3, 1, 2, 2]) / 24


def pads_of(layer):
    """((top, bottom), (left, right))."""
    match layer.padding:
        case "VALID":
            return (0, 0), (0, 0)
        case "SAME":
            pads = []
            for n, k, s, d in zip(*_axes(layer), strict=True):
                total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
                pads.append((total // 2, total - total // 2))
            return tuple(pads)
        case int(both):
            return (both, both), (both, both)
        case (int(rows), int(columns)):
            return (rows, rows), (columns, columns)
    return layer.padding


def output_of(layer):
    return tuple(
        max((n + sum(pad) - (k - 1) * d - 1) // s + 1, 0)
        for (n, k, s, d), pad in zip(
            zip(*_axes(layer), strict=True), pads_of(layer), strict=True
        )
    )


def _axes(layer):
    return layer.size, layer.kernel_size, layer.strides, layer.dilation


def work_of(layer):
    places = layer.batch * np.prod(output_of(layer)) * np.prod(layer.kernel_size)
    return places * layer.channels * np.prod(layer.size)


def arguments_of(layer):
    """Arguments and cotangent in the types that the operator gets."""
    rng = np.random.default_rng(layer.seed)
    dtype = jnp.dtype(layer.dtype)
    # Coordinates of half-precision data come in either type.
    wide = dtype.itemsize == 2 and layer.wide_offset
    beside = np.dtype(np.float32) if wide else dtype
    x, offset, kernel, mask, bias = random_case(
        batch=layer.batch,
        size=layer.size,
        channels=layer.channels,
        features=layer.features,
        kernel_size=layer.kernel_size,
        output=output_of(layer),
        groups=layer.groups,
        offset_groups=layer.offset_groups,
        modulated=layer.modulated,
        bias=layer.bias,
        dtype=np.float64,
        scale=2,
        seed=layer.seed,
    )
    if layer.places != "smooth":
        offset = place_on_edges(rng, offset, layer)
    cotangent = rng.normal(size=(layer.batch, *output_of(layer), layer.features))
    types = (dtype, beside, dtype, beside, dtype, dtype)
    arrays = (x, offset, kernel, mask, bias, cotangent)
    with np.errstate(over="ignore"):
        return [
            None if a is None else a.astype(t)
            for a, t in zip(arrays, types, strict=True)
        ]


def place_on_edges(rng, offset, layer):
    """Replaces offsets by ones whose sample sits where a rule decides its value."""
    # Integers, all around the map.
    offset = np.where(
        rng.uniform(size=offset.shape) < (1 if layer.places == "integer" else 0.25),
        np.round(offset),
        offset,
    )
    if layer.places == "integer":
        return offset
    # Exactly on the border of the map and of what counts as near it.
    (top, _), (left, _) = pads_of(layer)
    tap = np.arange(np.prod(layer.kernel_size))
    row = np.arange(offset.shape[1])[:, None, None, None] * layer.strides[0] - top
    row = row + tap // layer.kernel_size[1] * layer.dilation[0]
    column = np.arange(offset.shape[2])[:, None, None] * layer.strides[1] - left
    column = column + tap % layer.kernel_size[1] * layer.dilation[1]
    for axis, (corner, size) in enumerate(zip((row, column), layer.size, strict=True)):
        there = offset[..., axis]
        target = rng.choice([-1, 0, size - 1, size], size=there.shape)
        chosen = rng.uniform(size=there.shape) < 0.1
        there[:] = np.where(chosen, target - corner, there)
    far = rng.choice([-1e2, 1e2, 1e5, -3e8, 1e30, np.inf, -np.inf], size=offset.shape)
    return np.where(rng.uniform(size=offset.shape) < 0.05, far, offset)


def check(layer):
    arguments = arguments_of(layer)
    pads = pads_of(layer)
    operator = functools.partial(
        deform_conv2d,
        strides=layer.strides,
        padding=layer.padding,
        kernel_dilation=layer.dilation,
        feature_group_count=layer.groups,
        implementation="ffi",
    )
    run = jax.jit(
        lambda arguments, cotangent: value_and_pull_back(operator, arguments, cotangent)
    )
    *arguments, cotangent = arguments
    output, gradients = run(arguments, cotangent)
    exact = [None if a is None else np.asarray(a, np.float64) for a in arguments]
    window = Window(
        layer.strides, (pads[0][0], pads[1][0]), layer.dilation, layer.groups
    )
    wanted, wanted_gradients = value_and_gradients(
        *exact, np.asarray(cotangent, np.float64), window=window
    )
    assert output.dtype == layer.dtype
    errors = {"output": relative_error(output, wanted)}
    for name, argument, actual, expected in zip(
        NAMES, arguments, gradients, wanted_gradients, strict=True
    ):
        assert (actual is None) == (argument is None)
        if actual is not None:
            assert actual.dtype == argument.dtype, (name, layer)
            errors[name] = relative_error(actual, expected)
    assert max(errors.values()) <= TOLERANCE[layer.dtype], (errors, layer)
    return errors


@pytest.mark.parametrize("name", golden_names())
def test_the_oracle_matches_golden_files(name):
    case = GoldenCase(name, "float64")
    options = case.options
    window = Window(
        options["strides"],
        tuple(before for before, _ in options["padding"]),
        options["kernel_dilation"],
        options["feature_group_count"],
    )
    output, gradients = value_and_gradients(
        *case.arguments, case.cotangent, window=window
    )
    assert relative_error(output, case.output) < 1e-14
    for argument, expected in case.gradients().items():
        actual = gradients[NAMES.index(argument)]
        assert relative_error(actual, expected) < 1e-14, argument


def test_the_layers_are_of_every_kind():
    layers = [draw(seed) for seed in range(BATCHES * LAYERS_IN_BATCH)]
    assert len(layers) >= 2000
    for field, values in {
        "batch": {0, 1, 2, 33},
        "kernel_size": set(KERNEL_SIZES),
        "dtype": set(TOLERANCE),
        "places": {"smooth", "integer", "mixed"},
    }.items():
        drawn = [getattr(layer, field) for layer in layers]
        assert set(drawn) == values
        assert min(map(drawn.count, values)) >= 40, field
    assert {(layer.groups, layer.offset_groups) for layer in layers} == set(GROUPS)
    empty = [layer for layer in layers if layer.batch and 0 in output_of(layer)]
    assert len(empty) >= 40
    assert sum(layer.channels >= 130 for layer in layers) >= 40
    assert sum(layer.strides[0] != layer.strides[1] for layer in layers) >= 1000
    # Most of them are no trifles.
    assert np.median([work_of(layer) for layer in layers]) > 1e5


def test_the_wide_layers_are_of_every_kind():
    layers = [draw_wide(seed) for seed in range(WIDE_BATCHES * WIDE_LAYERS_IN_BATCH)]
    for dtype in TOLERANCE:
        some = [layer for layer in layers if layer.dtype == dtype]
        assert sum(layer.kernel_size == (20, 20) for layer in some) >= 3
        channels = [layer.channels // layer.offset_groups for layer in some]
        assert sum(count > 384 for count in channels) >= 3
        outputs = [layer.features // layer.groups for layer in some]
        assert min(sum(384 < n <= 768 for n in outputs), sum(n > 768 for n in outputs))
        # Last panels of two full vectors and less, for vectors of 4 and 16.
        for lanes in (4, 16):
            last = {-(-(n % (2 * lanes)) // lanes) for n in outputs if n > 384}
            assert {1, 2} <= last, (dtype, lanes)


def some_fast(batches, fast):
    """All batches; the first are in the fast suite, the rest in the slow."""
    slow = [pytest.param(i, marks=pytest.mark.slow) for i in range(fast, batches)]
    return [*range(fast), *slow]


@pytest.mark.parametrize("batch", some_fast(BATCHES, 1))
def test_layers(batch):
    for index in range(LAYERS_IN_BATCH):
        layer = draw(batch * LAYERS_IN_BATCH + index)
        with jax.enable_x64(layer.dtype == "float64"):
            check(layer)


@pytest.mark.parametrize("batch", some_fast(WIDE_BATCHES, 1))
def test_wide_layers(batch):
    for index in range(WIDE_LAYERS_IN_BATCH):
        layer = draw_wide(batch * WIDE_LAYERS_IN_BATCH + index)
        with jax.enable_x64(layer.dtype == "float64"):
            check(layer)
