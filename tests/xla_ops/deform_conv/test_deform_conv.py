"""Values of deform_conv2d: golden vectors, finite differences, types, strange input."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backend import CUDA, PLATFORM, on_cpu
from tests.support.comparison import relative_error
from tests.support.deform_conv import (
    NAMES,
    GoldenCase,
    golden_names,
    random_case,
    value_and_pull_back,
)
from xla_ops import backends, deform_conv2d

# (output, gradients) of the largest magnitude.
TOLERANCE = {"float32": (1e-5, 1e-4), "float64": (1e-9, 1e-9)}
IMPLEMENTATIONS = ("ffi", "reference")


@functools.cache
def compiled(implementation, options):
    """Output and gradients, compiled once for each shape."""
    function = functools.partial(
        deform_conv2d, implementation=implementation, **dict(options)
    )
    return jax.jit(
        functools.partial(value_and_pull_back, function),
    )


def run(implementation, arguments, cotangent, **options):
    function = compiled(implementation, tuple(sorted(options.items())))
    return function(arguments, cotangent)


def both(arguments, **options):
    """Outputs and gradients of kernel and reference, for a cotangent of their own."""
    shape = jax.eval_shape(functools.partial(deform_conv2d, **options), *arguments)
    rng = np.random.default_rng(1)
    cotangent = jnp.asarray(rng.normal(size=shape.shape), shape.dtype)
    return [run(i, arguments, cotangent, **options) for i in IMPLEMENTATIONS]


def assert_agree(case, other, tolerance, which=NAMES):
    output, gradients = case
    expected, expected_gradients = other
    assert relative_error(output, expected) <= tolerance
    for name, actual, expected in zip(
        NAMES, gradients, expected_gradients, strict=True
    ):
        assert (actual is None) == (expected is None)
        if actual is not None and name in which:
            assert relative_error(actual, expected) <= tolerance, name


def test_the_kernels_are_built():
    assert PLATFORM in backends()


GOLDEN_RUNS = [
    (implementation, dtype, name)
    for name in golden_names()
    for implementation, dtype in [
        ("ffi", "float64"),
        ("ffi", "float32"),
        ("reference", "float64"),
    ]
] + [("reference", "float32", f"deform_conv2d_v2_{n}") for n in ("basic", "edge")]
if CUDA:
    # The reference is the same everywhere.
    GOLDEN_RUNS = [run for run in GOLDEN_RUNS if run[0] == "ffi"]


def test_every_golden_file_is_here():
    assert len(golden_names()) == 30


@pytest.mark.parametrize("implementation, dtype, name", GOLDEN_RUNS)
def test_golden(implementation, dtype, name):
    with jax.enable_x64(dtype == "float64"):
        case = GoldenCase(name, dtype)
        output, gradients = run(
            implementation, case.arguments, case.cotangent, **case.options
        )
        assert output.dtype == dtype
        close, gradients_close = TOLERANCE[dtype]
        assert relative_error(output, case.output) <= close
        # At exactly -1 too we follow torchvision, which made the files.
        actual = dict(zip(NAMES, gradients, strict=True))
        for argument, expected in case.gradients().items():
            assert relative_error(actual[argument], expected) <= gradients_close, (
                argument
            )


SHAPES = {
    "odd channels": dict(channels=5, features=7),
    "one of everything": dict(
        batch=1, size=(1, 1), channels=1, features=1, kernel_size=(1, 1)
    ),
    "many channels": dict(batch=1, size=(5, 6), channels=70, features=37),
    "channels across blocks": dict(batch=1, size=(4, 5), channels=130, features=130),
    "groups": dict(channels=12, features=9, groups=3, offset_groups=2),
    "offset group per channel": dict(channels=6, features=4, offset_groups=6),
    "many positions": dict(batch=1, size=(20, 23), channels=8, features=8),
    "large groups": dict(channels=40, features=36, groups=2),
    "depthwise": dict(channels=21, features=21, groups=21),
    "depthwise, two outputs": dict(channels=9, features=18, groups=9),
    "groups of two": dict(channels=38, features=38, groups=19),
    "groups of three": dict(channels=33, features=33, groups=11, offset_groups=3),
    "groups of four": dict(channels=44, features=44, groups=11),
    "groups of four, eight outputs": dict(channels=20, features=40, groups=5),
    "groups of eight": dict(channels=72, features=72, groups=9, offset_groups=2),
    "groups of eight, six outputs": dict(channels=24, features=18, groups=3),
    "groups of sixteen": dict(channels=64, features=64, groups=4),
    "groups across blocks": dict(
        batch=1, size=(4, 5), channels=168, features=168, groups=28
    ),
    "groups across offset groups": dict(
        channels=60, features=40, groups=10, offset_groups=4
    ),
    "groups, many taps": dict(
        batch=1, size=(5, 6), channels=64, features=64, groups=16, kernel_size=(8, 9)
    ),
    "offset groups of eight": dict(channels=32, features=10, offset_groups=4),
    # More than what is copied to lie together.
    "a large map": dict(
        batch=1,
        size=(16, 2100),
        channels=32,
        features=3,
        offset_groups=2,
        kernel_size=(1, 1),
    ),
    "plain, bias": dict(modulated=False, bias=True),
    "wide kernel": dict(kernel_size=(1, 7), offset_groups=2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_kernel_equals_reference(name):
    shape = SHAPES[name]
    kernel, reference = both(
        random_case(**shape), feature_group_count=shape.get("groups", 1)
    )
    assert_agree(kernel, reference, 2e-5)


@pytest.mark.parametrize(
    "options, output",
    [
        (dict(padding="VALID"), (4, 5)),
        (dict(padding=2), (8, 9)),
        (dict(padding=(0, 1)), (4, 7)),
        (dict(padding=((0, 2), (3, 1)), strides=(1, 2)), (6, 5)),
        (dict(padding="SAME", strides=2), (3, 4)),
        (dict(padding="SAME", strides=(3, 2), kernel_dilation=(1, 2)), (2, 4)),
    ],
)
def test_window(options, output):
    arguments = random_case(output=output, modulated=False)
    kernel, reference = both(arguments, **options)
    assert kernel[0].shape == (2, *output, 6)
    assert_agree(kernel, reference, 2e-5)


def test_zero_offsets_are_a_convolution():
    x, _, kernel, _, _ = random_case(channels=6, features=4, groups=2)
    for strides, padding in [(1, "SAME"), (2, "SAME"), (1, "VALID"), (2, "VALID")]:
        with on_cpu():
            expected = jax.lax.conv_general_dilated(
                x,
                kernel,
                (strides, strides),
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=2,
                precision="highest",
            )
        shape = (*expected.shape[:3], 1, 9)
        y = deform_conv2d(
            x,
            np.zeros((*shape, 2), np.float32),
            kernel,
            np.ones(shape, np.float32),
            strides=strides,
            padding=padding,
            feature_group_count=2,
        )
        assert relative_error(y, expected) < 1e-6


def test_a_sample_by_hand():
    """On x = 10 * row + column a sample is the value at its place."""
    x = np.add.outer(10.0 * np.arange(5), np.arange(5)).astype(np.float32)
    offset = np.zeros((1, 5, 5, 1, 1, 2), np.float32)
    offset[0, 1, 2, 0, 0] = 0.25, -0.5
    offset[0, 0, 0, 0, 0] = -0.5, 0.0  # Half of pixel (0, 0).
    offset[0, 4, 4, 0, 0] = 0.0, 0.5  # Half of pixel (4, 4).
    for implementation in IMPLEMENTATIONS:
        y = deform_conv2d(
            x[None, :, :, None],
            offset,
            np.ones((1, 1, 1, 1), np.float32),
            implementation=implementation,
        )[0, :, :, 0]
        assert y[1, 2] == 10 * 1.25 + 1.5
        assert y[0, 0] == 0
        assert y[4, 4] == 22
        assert y[3, 1] == 31


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_finite_differences(implementation, x64):
    case = random_case(
        batch=1, size=(4, 5), channels=4, features=2, groups=2, offset_groups=2,
        bias=True, dtype=np.float64,
    )  # fmt: skip
    cotangent = np.random.default_rng(1).normal(size=(1, 4, 5, 2))

    def function(*arguments):
        return run(implementation, arguments, cotangent, feature_group_count=2)

    _, gradients = function(*case)
    step = 1e-6
    rng = np.random.default_rng(2)
    for index, (array, gradient) in enumerate(zip(case, gradients, strict=True)):
        for _ in range(4):
            direction = rng.normal(size=array.shape)
            sides = []
            for sign in (1, -1):
                moved = list(case)
                moved[index] = array + sign * step * direction
                sides.append(np.sum(np.asarray(function(*moved)[0]) * cotangent))
            numeric = (sides[0] - sides[1]) / (2 * step)
            analytic = np.sum(np.asarray(gradient) * direction)
            assert numeric == pytest.approx(analytic, rel=1e-6), NAMES[index]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    exact = random_case(channels=20, features=12, bias=True)
    half = [jnp.asarray(a, dtype) for a in exact]
    # Float32 offsets and masks beside half-precision data.
    half[1], half[3] = exact[1], exact[3]
    rounded = [np.asarray(a, np.float32) for a in half]
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 7, 12)), dtype)
    want = run("reference", rounded, np.asarray(cotangent, np.float32))
    digits = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    for implementation in IMPLEMENTATIONS:
        output, gradients = run(implementation, half, cotangent)
        assert output.dtype == dtype
        # One rounding of a float32 sum; the bias is added in `dtype`, one more.
        assert relative_error(output, want[0]) < 2 * digits
        for name, array, actual, expected in zip(
            NAMES, half, gradients, want[1], strict=True
        ):
            assert actual.dtype == array.dtype
            # On CUDA they are sums over gradients of columns that are bfloat16.
            summed = name in ("offset", "mask") and not (CUDA and dtype == "bfloat16")
            small = 1e-5 if summed else digits
            assert relative_error(actual, expected) <= small, name


def test_half_precision_offsets():
    arguments = [jnp.asarray(a, jnp.bfloat16) for a in random_case(bias=True)]
    exact = [np.asarray(a, np.float32) for a in arguments]
    y = deform_conv2d(*arguments)
    assert y.dtype == jnp.bfloat16
    assert relative_error(y, deform_conv2d(*exact)) < 2.0**-7
    gradients = jax.grad(
        lambda *a: deform_conv2d(*a).astype(jnp.float32).sum(), (1, 3)
    )(*arguments)
    assert [g.dtype for g in gradients] == [jnp.bfloat16] * 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "batch, size, output", [(0, (6, 7), (6, 7)), (2, (2, 7), (0, 5))]
)
def test_empty(implementation, batch, size, output):
    arguments = random_case(batch=batch, size=size, output=output, bias=True)
    cotangent = np.zeros((batch, *output, 6), np.float32)
    padding = "SAME" if batch == 0 else "VALID"
    y, gradients = run(implementation, arguments, cotangent, padding=padding)
    assert y.shape == (batch, *output, 6)
    for array, gradient in zip(arguments, gradients, strict=True):
        assert gradient.shape == array.shape
        assert not np.any(gradient)


@pytest.mark.parametrize("far", [np.inf, -np.inf, 1e30, -3e38, 1e9])
def test_far_away_samples_are_zero(far):
    arguments = random_case()
    offset, mask = arguments[1].copy(), arguments[3].copy()
    offset[0, 2, 3, 0, 4, 0] = far
    offset[1, 0, 0, 0, 8, 1] = far
    muted = mask.copy()
    muted[0, 2, 3, 0, 4] = muted[1, 0, 0, 0, 8] = 0
    x, _, kernel, _, bias = arguments
    kernel_case, reference_case = both((x, offset, kernel, mask, bias))
    expected, _ = both((x, arguments[1], kernel, muted, bias))
    for output, gradients in (kernel_case, reference_case):
        assert relative_error(output, expected[0]) < 1e-6
        for name, actual, wanted in zip(NAMES, gradients, expected[1], strict=True):
            if name in ("x", "kernel"):
                assert relative_error(actual, wanted) < 1e-5, name
        assert not np.any(gradients[1][0, 2, 3, 0, 4])
        assert not np.any(gradients[1][1, 0, 0, 0, 8])
        assert gradients[3][0, 2, 3, 0, 4] == 0
        assert all(np.all(np.isfinite(g)) for g in gradients if g is not None)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_taps_as_far_apart_as_32_bits_count(implementation):
    """Offsets of the same size bring them back."""
    far = 2**30 - 4
    x, offset, kernel, *_ = random_case(kernel_size=(3, 1), modulated=False)
    offset[:] = 0
    offset[..., 0, 0], offset[..., 2, 0] = 2**30, -(2**30)
    y = deform_conv2d(
        x,
        offset,
        kernel,
        padding=(far, 0),
        kernel_dilation=(far, 1),
        implementation=implementation,
    )
    # Float32 places the outer taps at multiples of 64 and more.
    outer, inner = kernel[0, 0] + kernel[2, 0], kernel[1, 0]
    expected = x @ inner + x[:, :1] @ outer
    assert relative_error(y, expected) < 1e-5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_offset(implementation):
    arguments = list(random_case(features=4, channels=4, offset_groups=2, groups=2))
    arguments[1][1, 2, 3, 1, 5, 0] = np.nan
    cotangent = np.ones((2, 6, 7, 4), np.float32)
    output, gradients = run(implementation, arguments, cotangent, feature_group_count=2)
    bad = np.isnan(np.asarray(output))
    # Offset group 1 moves the channels of feature group 1, outputs 2 and 3.
    expected = np.zeros_like(bad)
    expected[1, 2, 3, 2:] = True
    np.testing.assert_array_equal(bad, expected)
    dx, doffset, dkernel, dmask, _ = (
        None if g is None else np.isnan(np.asarray(g)) for g in gradients
    )
    assert not dx.any()
    assert doffset[1, 2, 3, 1, 5].all() and doffset.sum() == 2
    assert dmask[1, 2, 3, 1, 5] and dmask.sum() == 1
    expected = np.zeros_like(dkernel)
    expected[1, 2, :, 2:] = True
    np.testing.assert_array_equal(dkernel, expected)


def test_nan_and_infinity_in_other_arguments():
    """They stay where they belong; kernel and reference agree where."""
    for index, value in [(0, np.nan), (0, np.inf), (2, np.nan), (3, np.inf)]:
        arguments = list(random_case())
        arguments[index].flat[arguments[index].size // 2] = value
        (kernel, _), (reference, _) = both(tuple(arguments))
        np.testing.assert_array_equal(np.isfinite(kernel), np.isfinite(reference))
        finite = np.isfinite(kernel)
        np.testing.assert_allclose(
            np.asarray(kernel)[finite], np.asarray(reference)[finite], atol=1e-4
        )
        assert not finite.all() and (index == 2 or finite.any())


def test_the_same_bits_every_time():
    arguments = random_case(batch=3, size=(13, 11), channels=40, features=24)
    cotangent = np.random.default_rng(1).normal(size=(3, 13, 11, 24)).astype("f")
    first = run("ffi", arguments, cotangent)
    for _ in range(5):
        again = run("ffi", arguments, cotangent)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)


def one_group_and_ten():
    """Results for 40 channels, of either way in which the CPU's kernels work."""
    leaves = []
    for groups in (1, 10):
        arguments = random_case(
            batch=3, size=(13, 11), channels=40, features=40, groups=groups
        )
        cotangent = np.random.default_rng(1).normal(size=(3, 13, 11, 40)).astype("f")
        results = run("ffi", arguments, cotangent, feature_group_count=groups)
        leaves += jax.tree.leaves(results)
    return leaves


_OTHER_PROCESS = """
import sys
import numpy as np
from tests.xla_ops.deform_conv.test_deform_conv import one_group_and_ten
from xla_ops import _cpu
np.savez(sys.argv[1], _cpu.instruction_set(), *one_group_and_ten())
"""


@pytest.mark.skipif(CUDA, reason="of the CPU's own kernels")
@pytest.mark.parametrize("isa, threads", [("baseline", 2), ("avx2", 2), ("", 1)])
def test_other_instruction_sets_and_one_thread(isa, threads, tmp_path):
    path = str(Path(__file__).resolve().parents[3])
    environment = dict(os.environ, PYTHONPATH=path, XLA_OPS_CPU_ISA=isa, XLA_FLAGS="")
    if threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path / "out.npz")],
        env=environment,
        check=True,
    )
    with np.load(tmp_path / "out.npz") as file:
        name, *there = file.values()
    for a, b in zip(one_group_and_ten(), there, strict=True):
        if isa:
            assert name == isa
            assert relative_error(a, b) < 2e-6
        else:
            np.testing.assert_array_equal(a, b)
