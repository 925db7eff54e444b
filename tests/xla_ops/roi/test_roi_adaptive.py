"""RoI sampling where samples lie at a border, and as many on a map as can."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.backend import on_cpu
from tests.support.comparison import relative_error
from xla_ops import deform_ps_roi_pool, deform_roi_pool

SIZES = (1, 2, 5)


def axis_weights(start, extent, size):
    """Weights of an axis' pixels in a bin, sample by sample, and how many count."""
    count = int(np.ceil(extent))
    places = start + (np.arange(count) + 0.5) * extent / count
    places = places[(places >= -1) & (places <= size)]
    clipped = np.clip(places, 0, size - 1)
    low = clipped.astype(int)
    weights = np.zeros(size)
    np.add.at(weights, low, (1 - (clipped - low)) / count)
    np.add.at(weights, np.minimum(low + 1, size - 1), (clipped - low) / count)
    return weights, len(places)


def at_the_borders(size):
    """Bins of whole pixels, whose samples are a pixel apart: some at -1 or at `size`.

    `size + 2` of them lie on the map, or fewer, and others before it and behind it.
    """
    for count in (1, 2, size + 1, size + 2, size + 3, size + 5):
        for before in range(min(count, 4)):
            yield -1.5 - before, float(count)
            yield size - 0.5 - (count - 1 - before), float(count)
            yield -1.0 - before, float(count)


def as_dense_as_can_be(size):
    """Bins hardly larger than whole pixels: a sample lies beside the map's border."""
    for count in range(2, size + 6):
        extent = count - 1 + 1 / 64
        step = extent / count
        for before in range(3):
            yield -1 - 0.01 - step * (before + 0.5), extent
            yield -1 + 0.01 - step * (before + 0.5), extent


@pytest.mark.parametrize("cases", [at_the_borders, as_dense_as_can_be])
@pytest.mark.parametrize("implementation", ["ffi", "reference"])
def test_every_sample_on_the_map_counts(implementation, cases):
    """Forward, and the gradients of map and offset, against all samples one by one."""
    rng = np.random.default_rng(0)
    for size in SIZES:
        bins = list(cases(size))
        # What the axes read is multiplied, so one of them alone varies.
        starts, extents = np.asarray(bins, np.float32).T
        weights, counts = zip(
            *(
                axis_weights(float(start), float(extent), size)
                for start, extent in zip(starts, extents, strict=True)
            ),
            strict=True,
        )
        assert max(counts) == size + 2
        weights = np.stack(weights)  # [B, size]
        x = rng.standard_normal((1, size, 1, 2)).astype(np.float32)
        g = rng.standard_normal((1, len(bins), 1, 1, 2)).astype(np.float32)
        # RoIs are half a pixel further than what they read.
        zero = np.zeros_like(starts)
        rois = np.stack([zero + 0.5, starts + 0.5, zero + 0.5, starts + 0.5], -1)
        rois[:, 3] += extents
        rois[:, 2] += 1e-3

        def pool(x, offset, rois=rois):
            return deform_roi_pool(
                x,
                jnp.asarray(rois)[None],
                offset,
                output_size=1,
                spatial_scale=1.0,
                sampling_ratio=0,
                offset_scale=1.0,
                implementation=implementation,
            )

        @jax.jit
        def run(x, offset, g, pool=pool):
            y, pull_back = jax.vjp(pool, x, offset)
            return y, *pull_back(g)

        y, dx, doffset = run(x, np.zeros((1, len(bins), 1, 1, 2), np.float32), g)
        want = np.einsum("bh,hc->bc", weights, x[0, :, 0])
        assert relative_error(y[0, :, 0, 0], want) < 2e-6, size
        want = np.einsum("bh,bc->hc", weights, g[0, :, 0, 0])
        assert relative_error(dx[0, :, 0], want) < 4e-6, size
        assert np.isfinite(doffset).all()


@pytest.mark.parametrize("bins", [6, 7, 13, 14])
def test_bins_of_whole_and_half_pixels(bins):
    """A quotient that is rounded twice makes a sample more, or moves one away."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 24, 24, 9)), jnp.float32)
    sizes, corners = np.arange(1, 40) * bins, (-3.0, 0.0, 0.5, 1.0)
    rois = [[at, at, at + size / 4, at + size / 2] for size in sizes for at in corners]
    rois = jnp.asarray([rois], jnp.float32)
    align = functools.partial(deform_roi_pool, x[..., :1], sampling_ratio=0)
    parts = functools.partial(deform_ps_roi_pool, x, group_size=3, samples_per_part=3)
    for operator in (align, parts):

        def pool(implementation, operator=operator):
            return operator(
                rois=rois,
                output_size=bins,
                spatial_scale=1.0,
                implementation=implementation,
            )

        got = jax.jit(pool, static_argnums=0)("ffi")
        with on_cpu():
            want = jax.jit(pool, static_argnums=0)("reference")
        np.testing.assert_allclose(got, want, atol=1e-5)
