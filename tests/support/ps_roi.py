"""Inputs of position-sensitive RoI pooling for the tests."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import roi
from xla_ops import deform_ps_roi_pool, ps_roi_align, ps_roi_pool

SIZE = (3, 2)
CLASSES = 2


class Case(NamedTuple):
    """An operator with settings, and arguments to call it with."""

    call: Any
    moving: dict[str, Any]  # Arguments that have a gradient.
    fixed: dict[str, Any]
    cotangent: Any

    def pool(self, moving, **options):
        return self.call(**moving, **self.fixed, **options)

    def value_and_gradients(self, moving, **options):
        y, pull_back = jax.vjp(functools.partial(self.pool, **options), moving)
        return y, pull_back(self.cotangent)[0]

    def loss(self, moving, **options):
        """A scalar whose second derivatives are all there."""
        return jnp.sum(jnp.sin(self.pool(moving, **options)) * self.cotangent)


CALLS = {
    "ps_roi_align": functools.partial(ps_roi_align, output_size=SIZE),
    "adaptive ps_roi_align": functools.partial(
        ps_roi_align, output_size=SIZE, sampling_ratio=0
    ),
    "ps_roi_pool": functools.partial(ps_roi_pool, output_size=SIZE),
    "deform_ps_roi_pool": functools.partial(
        deform_ps_roi_pool,
        output_size=SIZE,
        group_size=2,
        part_size=(2, 1),
        samples_per_part=3,
        offset_scale=0.3,
    ),
}


def random_case(name, *, depth=4, dtype=np.float32, seed=0, **settings):
    """A pyramid, RoIs in, across and outside of it, and what goes with them.

    Args:
      name: Of `CALLS`.
      depth: Channels of the result.
      dtype: Of all arrays but integers.
      seed: Of the random numbers.
      **settings: For `roi.random_case`.
    """
    deformable = name == "deform_ps_roi_pool"
    groups = 4 if deformable else SIZE[0] * SIZE[1]
    arrays = roi.random_case(
        channels=groups * depth, dtype=dtype, seed=seed, **settings
    )
    rng = np.random.default_rng(seed)
    leading = arrays["rois"].shape[:2]
    moving = {"features": arrays["features"]}
    if deformable:
        shape = (*leading, 2, 1, CLASSES, 2)
        moving["offset"] = jnp.asarray(rng.standard_normal(shape), dtype)
        moving["mask"] = arrays["mask"]
    return Case(
        functools.partial(CALLS[name], spatial_scale=roi.SCALES),
        moving,
        {key: arrays[key] for key in ("rois", "levels", "map_sizes")},
        jnp.asarray(rng.standard_normal((*leading, *SIZE, depth)), dtype),
    )
