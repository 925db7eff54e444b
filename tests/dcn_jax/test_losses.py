"""Losses on small tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcn_jax.losses import masked_mean, smooth_l1


def test_smooth_l1_is_a_parabola_then_a_line():
    difference = jnp.asarray([-2.0, -0.1, 0.0, 0.05, 1 / 9, 3.0])
    beta = 1 / 9  # the RPN's sigma = 3
    expected = np.where(
        np.abs(difference) < beta,
        0.5 * np.square(difference) / beta,
        np.abs(difference) - beta / 2,
    )
    loss = smooth_l1(difference + 1, jnp.ones(6), beta)
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    absolute = smooth_l1(difference, jnp.zeros(6), 0.0)
    np.testing.assert_array_equal(absolute, np.abs(difference))
    with pytest.raises(ValueError, match="`beta` is -1"):
        smooth_l1(difference, difference, -1.0)


def test_masked_values_do_not_count():
    values = jnp.asarray([[1.0, jnp.nan], [3.0, jnp.inf]])
    mask = jnp.asarray([[True, False], [True, False]])
    assert masked_mean(values, mask) == 2
    assert masked_mean(values, mask, jnp.asarray(8.0)) == 0.5
    assert masked_mean(values, jnp.zeros_like(mask)) == 0
    gradient = jax.grad(masked_mean)(values, mask)
    np.testing.assert_array_equal(gradient, [[0.5, 0], [0.5, 0]])
