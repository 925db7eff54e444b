"""RoI pooling with one NaN, infinite, huge or tiny number in a map or a mask.

What depends on that number shows it; what reads no pixel of it is as before. `roi_pool`
is in test_max_roi_pool.py; what RoIs and offsets may hold in test_roi_pool.py.
"""

import functools

import jax
import numpy as np
import pytest

from tests.support import operators
from tests.support.comparison import relative_error

CASES = [
    (name, array)
    for name in operators.OPERATORS
    for array in operators.operator(name).moving
    if array in ("features", "mask") and name not in ("deform_conv2d", "roi_pool")
]
VALUES = {
    "nan": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "1e37": 1e37,
    "denormal": np.finfo(np.float32).smallest_subnormal,
    "-0": -0.0,
}


@functools.cache
def pooling(name, array):
    """As a function of the first map, or of the mask: that array, output, gradient."""
    row = operators.operator(name)
    given = row.arguments[array]
    maps = isinstance(given, tuple)

    def output(value):
        value = (value, *given[1:]) if maps else value
        return row.output(*(row.arguments | {array: value}).values())

    gradient = jax.jit(jax.grad(lambda value: output(value).sum()))
    return np.asarray(given[0] if maps else given), jax.jit(output), gradient


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("name", "array"), CASES)
def test_one_hostile_number(name, array, value):
    whole, output, gradient = pooling(name, array)
    place = np.unravel_index(np.argmax(np.abs(gradient(whole))), whole.shape)

    def run(number):
        changed = whole.copy()
        changed[place] = number
        y = np.asarray(output(changed))
        return y, np.asarray(gradient(changed))

    (without, slope), (one, _) = run(0), run(1)
    hit = without != one
    assert hit.any() and not hit.all()
    number = np.float32(VALUES[value])
    y, dy = run(number)
    # The result is linear in the array.
    np.testing.assert_array_equal(dy, slope)
    if np.isfinite(number):
        assert relative_error(y[~hit], without[~hit]) < 1e-6
        want = without[hit] + (one - without)[hit] * np.float64(number)
        assert relative_error(y[hit], want) < 1e-5
        return
    assert not np.isfinite(y[hit]).any()
    if np.isnan(number):
        assert np.isnan(y[hit]).all()
    # A pixel is read where its weight is 0 too, but by neighbours alone.
    untouched = np.isfinite(y)
    np.testing.assert_array_equal(y[untouched], without[untouched])
    assert untouched.mean() > 0.5
