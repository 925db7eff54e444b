"""deform_conv2d over several devices: equal values, no needless communication."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.backend import CUDA
from tests.support.comparison import relative_error
from tests.support.deform_conv import BACKWARD_CALLS, FORWARD_CALLS, random_case
from xla_ops import deform_conv2d

pytestmark = pytest.mark.devices(8)

BATCH = P("data")
SPECS = (BATCH, BATCH, P(), BATCH)  # x, offset, kernel, mask
BOTH_CALLS = sorted(FORWARD_CALLS + BACKWARD_CALLS)
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


@pytest.fixture(scope="module")
def case():
    return random_case(batch=8, size=(4, 5), channels=4, features=4)[:4]


def loss(x, offset, kernel, mask):
    return jnp.sum(jnp.square(deform_conv2d(x, offset, kernel, mask)))


gradients = jax.grad(loss, (0, 1, 2, 3))


@pytest.fixture(scope="module")
def expected(case):
    return jax.jit(gradients)(*case)


def mesh_of(kind, shape=(8,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def place(mesh, arrays, specs):
    return [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(arrays, specs, strict=True)
    ]


def communication(text):
    """Collective -> how often it stands in a compiled program."""
    counts = {
        name: len(re.findall(rf" {name}(-start)?\(", text)) for name in COLLECTIVES
    }
    return {name: count for name, count in counts.items() if count}


def compile_and_run(function, arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    text = compiled.as_text()
    calls = re.findall(r'custom_call_target="dcn_jax.deform_conv2d.(\w+)"', text)
    return communication(text), sorted(calls), compiled(*arguments)


def assert_equal(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 1e-6


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_data_parallel(kind, case, expected):
    mesh = mesh_of(kind)
    arguments = place(mesh, case, SPECS)
    with jax.set_mesh(mesh):
        collectives, calls, y = compile_and_run(deform_conv2d, arguments)
        assert collectives == {} and calls == FORWARD_CALLS
        assert y.sharding.shard_shape(y.shape)[0] == 1
        np.testing.assert_array_equal(y, jax.jit(deform_conv2d)(*case))

        def step(*arguments):
            return jax.value_and_grad(loss, (0, 1, 2, 3))(*arguments)[1]

        collectives, calls, actual = compile_and_run(step, arguments)
    # The one all-reduce is the kernel's gradient.
    assert collectives == {"all-reduce": 1} and calls == BOTH_CALLS
    assert_equal(actual, expected)
    for gradient, spec in zip(actual, SPECS, strict=True):
        assert gradient.sharding.is_equivalent_to(
            NamedSharding(mesh, spec), gradient.ndim
        )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_batch_over_two_axes(kind, case, expected):
    mesh = mesh_of(kind, (4, 2), ("data", "model"))
    batch = P(("data", "model"))
    arguments = place(mesh, case, (batch, batch, P(), batch))
    with jax.set_mesh(mesh):
        collectives, _, actual = compile_and_run(gradients, arguments)
    assert collectives == {"all-reduce": 1}
    assert_equal(actual, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "specs",
    [
        (P("data", None, None, "model"), BATCH, P(), BATCH),
        (P("data", "model"), BATCH, P(), BATCH),
        (BATCH, BATCH, P(None, None, None, "model"), BATCH),
        (BATCH, P(), P(), P()),
        (P(), P(), P(), P()),
    ],
    ids=["channels", "rows", "features", "offset and mask whole", "all whole"],
)
def test_other_layouts_are_right(kind, specs, case, expected):
    mesh = mesh_of(kind, (4, 2), ("data", "model"))
    with jax.set_mesh(mesh):
        _, calls, actual = compile_and_run(gradients, place(mesh, case, specs))
    assert calls == BOTH_CALLS
    assert_equal(actual, expected)
    if kind == AxisType.Explicit:
        for gradient, spec in zip(actual, specs, strict=True):
            assert gradient.sharding.is_equivalent_to(
                NamedSharding(mesh, spec), gradient.ndim
            )


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma, case, expected):
    """With check_vma the kernel is cast to varying, whose transpose is the sum."""

    def step(*arguments):
        dx, doffset, dkernel, dmask = gradients(*arguments)
        if not check_vma:
            dkernel = jax.lax.psum(dkernel, "data")
        return dx, doffset, dkernel, dmask

    mapped = jax.shard_map(
        step,
        mesh=mesh_of(AxisType.Auto),
        in_specs=SPECS,
        out_specs=SPECS,
        check_vma=check_vma,
    )
    collectives, calls, actual = compile_and_run(mapped, case)
    assert collectives == {"all-reduce": 1} and calls == BOTH_CALLS
    assert_equal(actual, expected)


def test_shard_map_over_one_of_two_axes(case, expected):
    mapped = jax.shard_map(
        gradients,
        mesh=mesh_of(AxisType.Auto, (4, 2), ("data", "model")),
        in_specs=SPECS,
        out_specs=SPECS,
        axis_names={"data"},
    )
    collectives, _, actual = compile_and_run(mapped, case)
    assert collectives == {"all-reduce": 1}
    assert_equal(actual, expected)


def test_batch_that_does_not_divide():
    arguments = random_case(batch=6, size=(4, 5))[:4]
    sharding = NamedSharding(mesh_of(AxisType.Auto), BATCH)

    def constrained(x, *rest):
        return gradients(jax.lax.with_sharding_constraint(x, sharding), *rest)

    _, _, actual = compile_and_run(constrained, arguments)
    assert_equal(actual, jax.jit(gradients)(*arguments))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("split", ["mapped axis", "batch"])
def test_vmap_over_devices(kind, split, case):
    """Mapped images, split by the mapped axis; mapped kernels, split by the batch."""
    mesh = mesh_of(kind)
    if split == "mapped axis":
        mapped = [np.stack([a[:2] + k for k in range(8)]) for a in case[:2]]
        arguments = (*mapped, case[2], case[3][:2])
        axes, specs = (0, 0, None, None), (BATCH, BATCH, P(), P())
    else:
        arguments = (case[0], case[1], np.stack([case[2]] * 3), case[3])
        axes, specs = (None, None, 0, None), SPECS
    function = jax.vmap(deform_conv2d, axes)
    with jax.set_mesh(mesh):
        collectives, calls, actual = compile_and_run(
            function, place(mesh, arguments, specs)
        )
    assert collectives == {} and calls == FORWARD_CALLS
    assert_equal(actual, jax.jit(function)(*arguments))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_vmap_over_two_split_axes(kind, case):
    """The mapped axis over one axis of the mesh, the batch over the other."""
    mesh = mesh_of(kind, (2, 4), ("data", "model"))
    x, offset, kernel, mask = case
    arguments = [np.stack([a, 2 * a]) for a in (x, offset)] + [kernel, mask]
    split = P("data", "model")
    function = jax.vmap(jax.value_and_grad(loss, (0, 1)), (0, 0, None, None))
    specs = (split, split, P(), P("model"))
    with jax.set_mesh(mesh):
        _, _, actual = compile_and_run(function, place(mesh, arguments, specs))
        y = jax.jit(jax.vmap(deform_conv2d, (0, 0, None, None)))(
            *place(mesh, arguments, specs)
        )
    assert_equal(actual, jax.jit(function)(*arguments))
    if kind == AxisType.Explicit:
        for array in (y, *actual[1]):
            assert jax.typeof(array).sharding.spec[:2] == tuple(split)


@pytest.mark.parametrize("axis", ["data", "model", None])
def test_a_split_bias_under_an_explicit_mesh(axis):
    """As parameters are split that are gathered where they are used."""
    mesh = mesh_of(AxisType.Explicit, (4, 2), ("data", "model"))
    x, offset, kernel, mask, bias = random_case(
        batch=4, size=(4, 5), channels=4, features=4, bias=True
    )

    def gradient(bias, x, offset, kernel, mask):
        def loss(bias):
            return jnp.square(deform_conv2d(x, offset, kernel, mask, bias)).sum()

        return jax.grad(loss)(bias)

    expected = jax.jit(gradient)(bias, x, offset, kernel, mask)
    specs = (P(axis), BATCH, BATCH, P(None, None, None, axis), BATCH)
    arguments = place(mesh, (bias, x, offset, kernel, mask), specs)
    with jax.set_mesh(mesh):
        actual = jax.jit(gradient)(*arguments)
    assert jax.typeof(actual).sharding.spec == P(axis)
    assert relative_error(actual, expected) < 1e-6


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_second_derivative(kind, case):
    """The reference, which serves it, partitions as well."""
    mesh = mesh_of(kind)

    def product(*arguments):
        return jax.jvp(jax.grad(loss), arguments, arguments)[1]

    with jax.set_mesh(mesh):
        collectives, _, actual = compile_and_run(product, place(mesh, case, SPECS))
    assert collectives == {}
    _, _, expected = compile_and_run(product, case)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.skipif(CUDA, reason="there the kernel is no operand of a custom call")
def test_a_kernel_is_not_copied_for_one_device(case):
    text = jax.jit(deform_conv2d).lower(*case).as_text()
    (call,) = (line for line in text.splitlines() if "@dcn_jax" in line)
    assert "tensor<1x3x3x4x4xf32>" in call
    assert "sdy.sharding_rule" not in call
