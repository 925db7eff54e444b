"""RoI pooling in sizes at which kernels cut their work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backend import on_cpu
from tests.support.comparison import relative_error
from xla_ops import deform_ps_roi_pool, deform_roi_pool, ps_roi_pool, roi_pool


def random(seed, *shape):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def value_and_gradients(pool, *moving):
    """Of the sum of the sines, compiled."""

    def both(*moving):
        y, pull_back = jax.vjp(pool, *moving)
        return y, pull_back(jnp.cos(y))

    return jax.jit(both)(*moving)


def assert_equals_reference(pool, *moving, tolerance):
    got = value_and_gradients(functools.partial(pool, "ffi"), *moving)
    with on_cpu():
        want = value_and_gradients(functools.partial(pool, "reference"), *moving)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert relative_error(a, b) <= tolerance


WHOLE_MAP = jnp.asarray([[[0.0, 0.0, 150.0, 70.0], [3.0, 60.0, 145.0, 69.0]]])


@pytest.mark.parametrize("sampling_ratio", [0, 40])
@pytest.mark.parametrize("channels", [1, 36])
def test_bins_of_many_samples(sampling_ratio, channels):
    """A bin of two RoIs reads almost 70 rows and 150 columns."""

    def pool(implementation, features, offset, mask):
        return deform_roi_pool(
            features,
            WHOLE_MAP,
            offset,
            mask,
            output_size=1,
            spatial_scale=1.0,
            offset_scale=0.02,
            sampling_ratio=sampling_ratio,
            implementation=implementation,
        )

    moving = (
        random(0, 1, 70, 150, channels),
        random(1, 1, 2, 1, 1, 2),
        random(2, 1, 2, 1, 1),
    )
    assert_equals_reference(pool, *moving, tolerance=2e-5)


@pytest.mark.parametrize("operator", [ps_roi_pool, roi_pool])
def test_bins_of_many_pixels(operator):
    def pool(implementation, features):
        return operator(
            features,
            WHOLE_MAP,
            output_size=(1, 1),
            spatial_scale=1.0,
            implementation=implementation,
        )

    assert_equals_reference(pool, random(0, 1, 70, 150, 4), tolerance=1e-6)


@pytest.mark.parametrize("operator", [deform_roi_pool, roi_pool])
def test_many_rois(operator):
    """A pixel is read by hundreds of RoIs, whose number is no round one."""
    centre, size = abs(random(0, 1, 601, 2)) % 20, 1 + abs(random(1, 1, 601, 2)) * 4
    rois = jnp.concatenate([centre - size, centre + size], -1)

    def pool(implementation, features):
        return operator(
            features,
            rois,
            output_size=2,
            spatial_scale=1.0,
            implementation=implementation,
        )

    assert_equals_reference(pool, random(2, 1, 19, 18, 3), tolerance=2e-6)


@pytest.mark.parametrize(
    ("dtype", "depth", "tolerance"),
    [("float32", 3 * 35, 3e-6), ("bfloat16", 3 * 96, 2e-2)],
)
def test_classes_of_many_channels(dtype, depth, tolerance):
    """Vectors of channels would reach over the end of a class, or do not."""

    def pool(implementation, features, offset):
        return deform_ps_roi_pool(
            features.astype(dtype),
            rois,
            offset,
            output_size=2,
            group_size=2,
            spatial_scale=1.0,
            implementation=implementation,
        ).astype(jnp.float32)

    rois = jnp.asarray([[[1.0, 2.0, 9.0, 8.0], [-3.0, 4.0, 5.0, 19.0]]])
    moving = random(0, 1, 12, 13, 4 * depth), random(1, 1, 2, 2, 2, 3, 2)
    assert_equals_reference(pool, *moving, tolerance=tolerance)
