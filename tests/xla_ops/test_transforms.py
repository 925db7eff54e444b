"""Every differentiable operator under jax's transformations.

What only one operator has is in test_deform_conv_transforms.py,
test_deform_conv_sharding.py, test_roi_derivatives.py and test_roi_sharding.py.
"""

import functools
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support import operators
from tests.support.comparison import relative_error
from tests.support.operators import calls_in
from xla_ops import deform_conv2d

ALL = pytest.mark.parametrize("name", operators.OPERATORS)
# Whose second derivatives are made as those of deform_roi_pool.
_LONG = ("roi_align", "deform_ps_roi_pool")
ALL_LONG_ONES_SLOW = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in _LONG))
        for name in operators.OPERATORS
    ],
)
KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])


def flat(row):
    return tuple(row.arguments.values())


def assert_close(actual, expected, tolerance=2e-6):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < tolerance


@ALL_LONG_ONES_SLOW
def test_second_order(name, x64):
    """Gradient of gradient and tangent of gradient, by kernel and by reference."""
    row = operators.operator(name, batch=1, dtype=np.float64)
    arguments = flat(row)
    rng = np.random.default_rng(0)
    moving = tuple(arguments[place] for place in row.places)
    direction = jax.tree.map(lambda a: rng.standard_normal(a.shape), moving)

    def gradients(moving, **options):
        changed = list(arguments)
        for place, value in zip(row.places, moving, strict=True):
            changed[place] = value
        return row.gradients(*changed, **options)

    def products(moving, direction):
        kernel = functools.partial(gradients, implementation="ffi")
        reference = functools.partial(gradients, implementation="reference")

        def dot(moving):
            pairs = zip(
                jax.tree.leaves(kernel(moving)), jax.tree.leaves(direction), strict=True
            )
            return sum(jnp.vdot(a, b) for a, b in pairs)

        return (
            jax.grad(dot)(moving),
            jax.jvp(kernel, (moving,), (direction,))[1],
            jax.jvp(reference, (moving,), (direction,))[1],
        )

    reverse, forward, expected = jax.jit(products)(moving, direction)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected))
    assert_close(forward, expected, 1e-10)
    assert_close(reverse, expected, 1e-10)


def subsets(name):
    count = len(operators.operator(name).arguments)
    for size in range(1, count + 1):
        yield from itertools.combinations(range(count), size)


def rolled(row, place, by):
    """An argument whose images, or for a weight whose last axis, are in turn."""
    name = list(row.arguments)[place]
    axis = -1 if name in row.shared else 0
    return jax.tree.map(lambda a: jnp.roll(a, by, axis), row.arguments[name])


@ALL
def test_vmap_of_any_arguments_is_one_custom_call(name):
    """Forward and backward, that is vmap of grad."""
    row = operators.operator(name)
    arguments = flat(row)
    single = jax.jit(row.value_and_gradients)
    copies = 2
    for subset in subsets(name):
        mapped, axes = list(arguments), [None] * len(arguments)
        for place in subset:
            turns = [rolled(row, place, k) for k in range(copies)]
            mapped[place] = jax.tree.map(
                lambda *a: jnp.stack(a, axis=a[0].ndim // 2), *turns
            )
            axes[place] = jax.tree.map(lambda a: a.ndim // 2, arguments[place])
        function = jax.vmap(row.value_and_gradients, tuple(axes))
        lowered = jax.jit(function).lower(*mapped)
        text = lowered.as_text()
        assert calls_in(text) == row.both_calls, subset
        assert "stablehlo.while" not in text, subset
        if len(subset) not in (1, len(arguments)):
            continue
        actual = lowered.compile()(*mapped)
        for k in range(copies):
            turned = [
                rolled(row, place, k) if place in subset else argument
                for place, argument in enumerate(arguments)
            ]
            assert_close(jax.tree.map(lambda a, k=k: a[k], actual), single(*turned))


@ALL
def test_checkpoint_scan_donation_and_cache(name):
    """Two recomputed steps of a scan, the moving arguments donated, twice."""
    row = operators.operator(name)
    arguments = flat(row)
    fixed = [None if p in row.places else a for p, a in enumerate(arguments)]

    def loss(moving):
        full = list(fixed)
        for place, value in zip(row.places, moving, strict=True):
            full[place] = value
        return row.loss(*full)

    def repeated(moving):
        def body(total, factor):
            return total + factor * jax.checkpoint(loss)(moving), None

        return jax.lax.scan(body, jnp.float32(0), jnp.asarray([1.0, 2.0]))[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def step(moving):
        gradients = jax.grad(repeated)(moving)
        return jax.tree.map(lambda a, g: a - 0 * g, moving, gradients), gradients

    moving = tuple(jax.tree.map(jnp.array, arguments[place]) for place in row.places)
    expected = jax.tree.map(lambda g: 3 * g, jax.jit(row.gradients)(*arguments))
    for _ in range(2):
        donated, (moving, gradients) = moving, step(moving)
        assert all(a.is_deleted() for a in jax.tree.leaves(donated))
        assert_close(gradients, expected)
    assert step._cache_size() == 1


_LOAD = """
import sys, jax, numpy as np
from jax import export
import xla_ops  # Registers the kernels.
for folder in sys.argv[1:]:
    with open(folder + "/program", "rb") as file:
        program = export.deserialize(bytearray(file.read()))
    with np.load(folder + "/arguments.npz") as file:
        leaves = list(file.values())
    arguments, _ = jax.tree.unflatten(program.in_tree, leaves)
    out = program.call(*arguments)
    np.savez(folder + "/results.npz", *jax.tree.leaves(out))
"""


def test_export_and_reload_in_a_new_process(tmp_path):
    """A program with kernels is a file; whoever loads it imports xla_ops first."""
    pytest.importorskip("flatbuffers")
    folders = []
    for name in operators.OPERATORS:
        row = operators.operator(name)
        checks = [
            export.DisabledSafetyCheck.custom_call(f"dcn_jax.{call}")
            for call in row.both_calls
        ]
        exported = export.export(jax.jit(row.gradients), disabled_checks=checks)
        folder = tmp_path / name
        folder.mkdir()
        folders.append(str(folder))
        (folder / "program").write_bytes(exported(*flat(row)).serialize())
        np.savez(folder / "arguments.npz", *jax.tree.leaves(flat(row)))
    path = str(Path(__file__).resolve().parent.parent.parent)
    subprocess.run(
        [sys.executable, "-c", _LOAD, *folders],
        env=dict(os.environ, PYTHONPATH=path),
        check=True,
    )
    for name in operators.OPERATORS:
        row = operators.operator(name)
        with np.load(tmp_path / name / "results.npz") as file:
            there = list(file.values())
        here = jax.tree.leaves(jax.jit(row.gradients)(*flat(row)))
        for a, b in zip(there, here, strict=True):
            np.testing.assert_array_equal(a, b)


def mesh_of(kind, shape=(8,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def specs_of(row):
    return tuple(P() if name in row.shared else P("data") for name in row.arguments)


def sum_of_shared(row):
    """All-reduces that the gradients need: the sums for weights, in one."""
    return ["all-reduce"] if set(row.shared) & set(row.moving) else []


def compile_and_run(function, arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    text = compiled.as_text()
    collectives = re.findall(
        r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text
    )
    return collectives, calls_in(text), compiled(*arguments)


@pytest.mark.devices(8)
@KINDS
@ALL
def test_batch_over_devices(name, kind):
    """Forward and backward: no all-gather, one all-reduce where there are weights."""
    row = operators.operator(name, batch=8)
    expected = jax.jit(row.gradients)(*flat(row))
    mesh = mesh_of(kind)
    arguments = [
        jax.device_put(argument, NamedSharding(mesh, spec))
        for argument, spec in zip(flat(row), specs_of(row), strict=True)
    ]
    with jax.set_mesh(mesh):
        collectives, calls, actual = compile_and_run(row.gradients, arguments)
    assert collectives == sum_of_shared(row)
    assert calls == row.both_calls
    assert_close(actual, expected)


@pytest.mark.devices(8)
@pytest.mark.parametrize("check_vma", [True, False])
@ALL
def test_shard_map(name, check_vma):
    """With check_vma the gradient of a weight is summed by the cast's transpose."""
    row = operators.operator(name, batch=8)
    expected = jax.jit(row.gradients)(*flat(row))

    def step(*arguments):
        gradients = row.gradients(*arguments)
        if check_vma:
            return gradients
        return tuple(
            jax.lax.psum(g, "data") if name in row.shared else g
            for name, g in zip(row.moving, gradients, strict=True)
        )

    specs = specs_of(row)
    mapped = jax.shard_map(
        step,
        mesh=mesh_of(AxisType.Auto),
        in_specs=specs,
        out_specs=tuple(specs[place] for place in row.places),
        check_vma=check_vma,
    )
    collectives, calls, actual = compile_and_run(mapped, flat(row))
    assert collectives == sum_of_shared(row)
    assert calls == row.both_calls
    assert_close(actual, expected)


@pytest.mark.devices(8)
@pytest.mark.parametrize("how", ["Auto", "Explicit", "shard_map"])
def test_output_channels_over_devices(how):
    """Tensor parallel: a device has the filters of some output channels."""
    row = operators.operator("deform_conv2d", batch=4)
    arguments = flat(row)
    expected = jax.jit(row.gradients)(*arguments)
    names = ("data", "model")
    specs = (
        P("data"),
        P("data"),
        P(None, None, None, "model"),
        P("data"),
        P("model"),
    )
    if how == "shard_map":
        mapped = jax.shard_map(
            row.gradients,
            mesh=mesh_of(AxisType.Auto, (4, 2), names),
            in_specs=specs,
            out_specs=specs,
        )
        actual = jax.jit(mapped)(*arguments)
    else:
        mesh = mesh_of(getattr(AxisType, how), (4, 2), names)
        arguments = [
            jax.device_put(argument, NamedSharding(mesh, spec))
            for argument, spec in zip(arguments, specs, strict=True)
        ]
        with jax.set_mesh(mesh):
            if how == "Auto":
                y = jax.jit(
                    deform_conv2d,
                    out_shardings=NamedSharding(mesh, P("data", None, None, "model")),
                )(*arguments)
                assert_close(y, deform_conv2d(*flat(row)))
            actual = jax.jit(row.gradients)(*arguments)
    assert_close(actual, expected)
