"""A batch of one, split over mesh axes of one device."""

import jax
import operator_table
import pytest
from deform_conv_case import FAST_COMPILE, relative_error
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

MESHES = pytest.mark.parametrize(
    ("axes", "split"),
    [(("data",), P("data")), (("data", "model"), P(("data", "model")))],
    ids=["one axis", "two axes"],
)


def put(row, mesh, split):
    return [
        jax.device_put(
            argument, NamedSharding(mesh, P() if name in row.shared else split)
        )
        for name, argument in row.arguments.items()
    ]


@MESHES
@pytest.mark.parametrize("name", operator_table.NAMES)
def test_gradients_on_an_explicit_mesh(name, axes, split):
    row = operator_table.operator(name, batch=1)
    expected = row.gradients(*row.arguments.values())
    mesh = jax.make_mesh(
        (1,) * len(axes), axes, axis_types=(AxisType.Explicit,) * len(axes)
    )
    with jax.set_mesh(mesh):
        arguments = put(row, mesh, split)
        assert jax.typeof(row.output(*arguments)).sharding.spec[0] == split[0]
        run = jax.jit(row.gradients, compiler_options=FAST_COMPILE)
        actual = run(*arguments)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize("implementation", [None, "reference"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_eager_gradients(kind, implementation):
    row = operator_table.operator("deform_ps_roi_pool", batch=1)
    expected = row.gradients(*row.arguments.values())
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        arguments = put(row, mesh, P("data"))
        actual = row.gradients(*arguments, implementation=implementation)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 2e-6
