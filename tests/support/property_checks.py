"""What tests of properties share: settings of Hypothesis, and comparisons."""

import functools

import jax
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=8, deadline=None, derandomize=True, database=None)
many = settings(max_examples=40, deadline=None, derandomize=True, database=None)

SEEDS = st.integers(0, 1000)
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
EXACT = 5e-6


def compiled(operator, **options):
    """Eager calls would compile each small step on its own."""
    return jax.jit(functools.partial(operator, **options))


def same(actual, expected, tolerance=EXACT):
    """Close beside the larger of 1 and the largest number expected."""
    bound = tolerance * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)
