"""Kernel against reference over generated shapes and attributes."""

import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.deform_conv import random_case
from xla_ops import deform_conv2d

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def layers(draw):
    """(arguments, options) of a layer whose output may be empty."""
    groups = draw(st.integers(1, 2))
    offset_groups = draw(st.integers(1, 2))
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    kernel_size, strides, dilation = draw(PAIR), draw(PAIR), draw(PAIR)
    pads = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in "hw")
    output = tuple(
        max(0, (n + sum(p) - d * (k - 1) - 1) // s + 1)
        for n, p, k, s, d in zip(
            size, pads, kernel_size, strides, dilation, strict=True
        )
    )
    arguments = random_case(
        batch=draw(st.integers(0, 3)),
        size=size,
        channels=groups * offset_groups * draw(st.integers(1, 9)),
        features=groups * draw(st.integers(1, 9)),
        kernel_size=kernel_size,
        output=output,
        groups=groups,
        offset_groups=offset_groups,
        modulated=draw(st.booleans()),
        seed=draw(st.integers(0, 100)),
    )
    options = dict(
        strides=strides,
        padding=pads,
        kernel_dilation=dilation,
        feature_group_count=groups,
    )
    return arguments, options


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(layers())
def test_kernel_equals_reference(layer):
    arguments, options = layer

    def gradients(implementation, arrays):
        def energy(arrays):
            y = deform_conv2d(*arrays, **options, implementation=implementation)
            return (y**2).sum(), y

        return jax.value_and_grad(energy, has_aux=True)(arrays)

    (_, y), grads = jax.jit(functools.partial(gradients, "ffi"))(arguments)
    reference = jax.jit(functools.partial(gradients, "reference"))
    (_, expected_y), expected_grads = reference(arguments)
    for got, expected in zip(
        jax.tree.leaves((y, grads)),
        jax.tree.leaves((expected_y, expected_grads)),
        strict=True,
    ):
        largest = max(1.0, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * largest)
