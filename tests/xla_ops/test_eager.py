"""Operators outside `jax.jit`: what is compiled when, and nothing at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import operators
from tests.support.comparison import relative_error
from xla_ops import nms

BOTH = pytest.mark.parametrize("implementation", [None, "reference"])

# Kernels, and some of the plain forms.
FORMS = pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, None) for name in operators.OPERATORS]
    + [(name, "reference") for name in ("deform_conv2d", "roi_pool", "ps_roi_pool")],
)

BOXES = np.asarray([[0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9]], np.float32)


@pytest.fixture
def compilations():
    """A function that says how many programs were compiled since its last call."""
    count = [0]

    def listen(event, duration_secs, **_):
        count[0] += event == "/jax/core/compile/backend_compile_duration"

    def since():
        seen, count[0] = count[0], 0
        return seen

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield since
    jax.monitoring.unregister_event_duration_listener(listen)


def second_derivative(row, implementation):
    """Of the loss along the last moving argument, as a fresh function."""
    arguments, place = list(row.arguments.values()), row.places[-1]

    def loss(x):
        changed = [*arguments[:place], x, *arguments[place + 1 :]]
        gradients = row.gradients(*changed, implementation=implementation)
        return sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients))

    return jax.grad(loss)(arguments[place])


def twice_then_count(function, compilations):
    for _ in range(2):
        function()
    compilations()
    jax.block_until_ready(function())
    return compilations()


@FORMS
def test_the_third_call_compiles_nothing(name, implementation, compilations):
    row = operators.operator(name)
    arguments = tuple(row.arguments.values())

    def step():
        """Value and gradients, as a program without jit computes them."""
        return row.value_and_gradients(*arguments, implementation=implementation)

    assert twice_then_count(step, compilations) == 0


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("deform_conv2d", None),
        pytest.param("deform_conv2d", "reference", marks=pytest.mark.slow),
        pytest.param("roi_align", None, marks=pytest.mark.slow),
        pytest.param("deform_ps_roi_pool", None, marks=pytest.mark.slow),
    ],
)
def test_the_third_second_derivative_compiles_nothing(
    name, implementation, compilations
):
    row = operators.operator(name)

    def step():
        return second_derivative(row, implementation)

    assert twice_then_count(step, compilations) == 0


@BOTH
def test_the_third_nms_compiles_nothing(implementation, compilations):
    def step():
        return nms(
            BOXES,
            BOXES[:, 3],
            iou_threshold=0.5,
            max_outputs=2,
            implementation=implementation,
        )

    assert twice_then_count(step, compilations) == 0


@pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, None) for name in operators.OPERATORS]
    # Operation by operation plain forms take long.
    + [pytest.param("deform_conv2d", "reference", marks=pytest.mark.slow)],
)
def test_without_jit(name, implementation):
    row = operators.operator(name, batch=1)
    arguments = tuple(row.arguments.values())
    expected = row.output(*arguments)
    with jax.disable_jit():
        actual = row.output(*arguments, implementation=implementation)
    assert relative_error(actual, expected) < 2e-6


@pytest.mark.parametrize("name", ["deform_conv2d", "deform_roi_pool"])
def test_gradients_and_vmap_without_jit(name):
    row = operators.operator(name, batch=1)
    arguments = tuple(row.arguments.values())
    expected = row.gradients(*arguments)
    stacked = jax.tree.map(lambda x: x[None], arguments)
    with jax.disable_jit():
        actual = row.gradients(*arguments)
        mapped = jax.vmap(row.output)(*stacked)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, b) < 2e-6
    assert relative_error(mapped[0], row.output(*arguments)) < 2e-6


@BOTH
def test_nms_without_jit(implementation):
    with jax.disable_jit():
        indices, valid = nms(
            BOXES,
            BOXES[:, 3],
            iou_threshold=0.5,
            max_outputs=3,
            implementation=implementation,
        )
    np.testing.assert_array_equal(indices, [2, 1, 0])
    np.testing.assert_array_equal(valid, [True, True, False])
