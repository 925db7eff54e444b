"""A batch of one, split over mesh axes of one device."""

import jax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support import operators
from tests.support.comparison import relative_error

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
@pytest.mark.parametrize("name", operators.OPERATORS)
def test_gradients_on_an_explicit_mesh(name, axes, split):
    row = operators.operator(name, batch=1)
    expected = row.gradients(*row.arguments.values())
    mesh = jax.make_mesh(
        (1,) * len(axes), axes, axis_types=(AxisType.Explicit,) * len(axes)
    )
    with jax.set_mesh(mesh):
        arguments = put(row, mesh, split)
        assert jax.typeof(row.output(*arguments)).sharding.spec[0] == split[0]
        run = jax.jit(row.gradients)
        actual = run(*arguments)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 2e-6


@pytest.mark.parametrize("implementation", [None, "reference"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_eager_gradients(kind, implementation):
    row = operators.operator("deform_ps_roi_pool", batch=1)
    expected = row.gradients(*row.arguments.values())
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        arguments = put(row, mesh, P("data"))
        actual = row.gradients(*arguments, implementation=implementation)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 2e-6
