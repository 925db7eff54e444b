"""Inputs of RoI pooling for the tests.

Letters: N batch, L pyramid levels, H W map, C channels, B RoIs of an image,
h w bins of a RoI.
"""

import jax.numpy as jnp
import numpy as np

SCALES = (0.25, 0.125)
OUTPUT_SIZE = (3, 2)


def random_case(
    *,
    batch=2,
    num_boxes=6,
    channels=5,
    sizes=((9, 11), (5, 6)),
    dtype=np.float32,
    seed=0,
):
    """A pyramid, RoIs in, across and outside of it, and what goes with them."""
    rng = np.random.default_rng(seed)
    height, width = (size / SCALES[0] for size in sizes[0])
    centre = rng.uniform(-0.1, 1.1, (batch, num_boxes, 2)) * [width, height]
    # One in ten is inside out.
    half = rng.uniform(-0.05, 0.4, (batch, num_boxes, 2)) * [width, height]
    bins = (batch, num_boxes, *OUTPUT_SIZE)
    case = {
        "features": tuple(
            rng.standard_normal((batch, *size, channels)) for size in sizes
        ),
        "rois": np.concatenate([centre - half, centre + half], axis=-1),
        "offset": rng.standard_normal((*bins, 2)),
        "mask": rng.uniform(size=bins),
        "cotangent": rng.standard_normal((*bins, channels)),
    }
    case = {
        name: tuple(jnp.asarray(x, dtype) for x in value)
        if isinstance(value, tuple)
        else jnp.asarray(value, dtype)
        for name, value in case.items()
    }
    # -1 and L read nothing.
    levels = rng.integers(-1, len(sizes) + 1, (batch, num_boxes)).astype(np.int32)
    levels[:, :2] = [0, 1]
    case["levels"] = jnp.asarray(levels)
    case["map_sizes"] = tuple(
        jnp.asarray(rng.integers(np.asarray(size) // 2, size, (batch, 2)), jnp.int32)
        for size in sizes
    )
    return case


def relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.abs(got - want).max() / np.abs(want).max()
