"""What only the CUDA form of deform_conv2d has: chunks, two gradients of x."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.backend import CUDA
from tests.support.comparison import relative_error
from tests.support.deform_conv import random_case
from xla_ops import backends, deform_conv2d
from xla_ops.deform_conv.cuda import composition as cuda

with_cuda = pytest.mark.skipif(not CUDA, reason="of the CUDA kernels")


@pytest.fixture(scope="module")
def case():
    shape = dict(size=(7, 5), channels=12, features=6, groups=2, offset_groups=3)
    return random_case(batch=2, **shape, seed=5)[:4]


def gradients(*arguments):
    def loss(*arguments):
        y = deform_conv2d(*arguments, feature_group_count=2)
        return jnp.sum(1 + jnp.sin(y)), y  # terms that do not cancel

    return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(*arguments)


def run(arguments):
    """Compiled anew: what the tests change is read when a function is traced."""
    return jax.jit(lambda *a: gradients(*a))(*arguments)


def assert_close(actual, expected, tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) <= tolerance


@with_cuda
@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_chunks_of_rows(rows, case, monkeypatch):
    """7 rows in whole chunks and a rest."""
    expected = run(case)
    row = 2 * 5 * 9 * 12 * 4
    monkeypatch.setattr(cuda, "_COLUMN_BYTES", rows * row)
    text = jax.jit(lambda *a: gradients(*a)).lower(*case).as_text()
    columns = re.findall(r"custom_call @dcn_jax.deform_conv2d.columns.*", text)
    heights = {int(re.search(r"-> tensor<2x(\d)x5x", c)[1]) for c in columns}
    assert heights == {rows, 7 % rows} - {0}
    assert_close(run(case), expected, 1e-6)


@with_cuda
@pytest.mark.devices(8)
def test_chunks_count_the_images_of_a_device(monkeypatch):
    arguments = random_case(batch=8, size=(4, 5), channels=4, features=4)[:4]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P("data"), P("data"), P(), P("data"))
    placed = [
        jax.device_put(a, NamedSharding(mesh, s))
        for a, s in zip(arguments, specs, strict=True)
    ]
    monkeypatch.setattr(cuda, "_COLUMN_BYTES", 4 * 5 * 9 * 4 * 4)
    whole, split = (
        jax.jit(lambda *a: deform_conv2d(*a)).lower(*a) for a in (arguments, placed)
    )
    assert "while" in whole.as_text() and "while" not in split.as_text()
    np.testing.assert_array_equal(whole.compile()(*arguments), split.compile()(*placed))


@with_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_atomic_gradient_of_x(dtype, case, monkeypatch):
    x, offset, kernel, mask = case
    case = jnp.asarray(x, dtype), offset, jnp.asarray(kernel, dtype), mask
    (_, expected_y), expected = run(case)
    monkeypatch.setenv("DCN_JAX_CUDA_INPUT_GRADIENT", "atomic")
    (_, y), actual = run(case)
    np.testing.assert_array_equal(y, expected_y)
    for a, b in zip(actual[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    # The order of a sum of some dozen terms.
    assert relative_error(actual[0], expected[0]) <= 4 * jnp.finfo(dtype).eps
    assert actual[0].dtype == dtype


@with_cuda
def test_unknown_gradient_of_x(case, monkeypatch):
    monkeypatch.setenv("DCN_JAX_CUDA_INPUT_GRADIENT", "fast")
    with pytest.raises(ValueError, match=r"INPUT_GRADIENT is 'fast'; expected one of"):
        run(case)


@with_cuda
def test_a_map_too_large_for_16_bits():
    """The numbers of its pixels, by which samples are sorted, take 32."""
    arguments = random_case(
        batch=1, size=(257, 257), channels=1, features=1, kernel_size=(1, 1)
    )[:4]

    def gradient(implementation):
        def total(x):
            options = dict(implementation=implementation)
            return deform_conv2d(x, *arguments[1:], **options).sum()

        return jax.jit(jax.grad(total))(arguments[0])

    assert_close(gradient("ffi"), gradient("reference"), 1e-6)


@with_cuda
@pytest.mark.parametrize(
    ("size", "images", "width"),
    [
        ((3, 5461), 4, 16),  # 4 * (3 * 5461 + 1) is 2 ** 16
        ((2, 8192), 4, 32),
        ((5, 13107), 1, 16),  # 5 * 13107 is 2 ** 16 - 1
        ((2, 32768), 1, 32),
    ],
)
def test_images_are_sorted_as_one_row(size, images, width):
    """Their pixels are numbered one after another, in 16 bits where those just hold."""
    arguments = random_case(
        batch=images, size=size, channels=1, features=1, kernel_size=(1, 1)
    )[:4]

    @functools.partial(jax.jit, static_argnames="implementation")
    def gradient(x, implementation):
        options = dict(implementation=implementation)
        return jax.grad(lambda x: deform_conv2d(x, *arguments[1:], **options).sum())(x)

    text = gradient.lower(arguments[0], "ffi").as_text()
    operand = re.search(r"stablehlo.sort.*?\(tensor<(\d+)xui(\d+)>", text, re.S)
    assert operand.groups() == (str(images * math.prod(size) * 4), str(width))
    expected = gradient(arguments[0], "reference")
    assert_close(gradient(arguments[0], "ffi"), expected, 1e-6)


@with_cuda
@pytest.mark.devices(8)
def test_devices_sort_images_of_their_own():
    arguments = random_case(batch=8, size=(4, 5), channels=4, features=4)[:4]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P("data"), P("data"), P(), P("data"))
    placed = [
        jax.device_put(a, NamedSharding(mesh, s))
        for a, s in zip(arguments, specs, strict=True)
    ]
    gradient = jax.jit(jax.grad(lambda *a: deform_conv2d(*a).sum()))
    text = gradient.lower(*placed).as_text()
    operand = re.search(r"stablehlo.sort.*?\(tensor<([\dx]+)xui", text, re.S)
    assert operand[1] == f"8x1x{4 * 5 * 9 * 4}"
    assert_close(gradient(*placed), gradient(*arguments), 1e-6)


@with_cuda
@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.devices(8)
def test_a_device_has_one_product_and_one_kernel(devices):
    """The weight's gradient is not made for each image; nor is a copy of the kernel."""
    arguments = random_case(batch=16, size=(4, 5), channels=16, features=16)[:4]
    arguments = [
        jnp.asarray(a, jnp.bfloat16) if i in (0, 2) else a
        for i, a in enumerate(arguments)
    ]
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    specs = (P("data"), P("data"), P(), P("data"))
    placed = [
        jax.device_put(a, NamedSharding(mesh, s))
        for a, s in zip(arguments, specs, strict=True)
    ]

    def loss(*arguments):
        return jnp.sin(deform_conv2d(*arguments).astype(jnp.float32)).sum()

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
    compiled = gradients.lower(*placed).compile()
    text = compiled.as_text()
    assert "dcn_jax.deform_conv2d.columns" in text
    sizes = {
        math.prod(map(int, shape.split(",")))
        for shape in re.findall(r"\w\[([\d,]+)\]", text)
    }
    weights = 3 * 3 * 16 * 16
    assert weights in sizes and 16 // devices * weights not in sizes
    for a, b in zip(
        jax.tree.leaves(compiled(*placed)),
        jax.tree.leaves(gradients(*arguments)),
        strict=True,
    ):
        assert relative_error(a, b) <= 1e-2


@with_cuda
def test_the_gradient_of_x_has_its_type_in_one_chunk(case, monkeypatch):
    """Chunks are added up in float32; columns' gradients of bfloat16 are bfloat16."""
    x, offset, kernel, mask = case
    case = jnp.asarray(x, "bfloat16"), offset, jnp.asarray(kernel, "bfloat16"), mask

    def gathered():
        text = jax.jit(lambda *a: gradients(*a)).lower(*case).as_text()
        calls = re.findall(r"custom_call @dcn_jax.deform_conv2d.gather.*", text)
        return {
            (
                re.search(r"x2x9x6x(\w+)>", c)[1],
                re.search(r"-> \(tensor<2x7x5x12x(\w+)>", c)[1],
            )
            for c in calls
        }

    assert gathered() == {("bf16", "bf16")}
    whole = run(case)
    monkeypatch.setattr(cuda, "_COLUMN_BYTES", 2 * 2 * 5 * 9 * 12 * 2)
    assert gathered() == {("bf16", "f32")}
    assert_close(run(case), whole, 1e-2)


@pytest.mark.skipif("cuda" not in backends(), reason="no CUDA library is built")
def test_lowers_for_cuda_without_a_gpu(case):
    calls = ("columns", "visit", "list", "gather")
    allowed = [
        export.DisabledSafetyCheck.custom_call(f"dcn_jax.deform_conv2d.{name}")
        for name in calls
    ]
    exported = export.export(
        jax.jit(gradients), platforms=["cuda"], disabled_checks=allowed
    )(*case)
    found = re.findall(
        r"custom_call @dcn_jax\.deform_conv2d\.(\w+)", exported.mlir_module()
    )
    assert set(found) == set(calls)
