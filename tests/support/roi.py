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


class Images:
    """Moves RoIs between one list with image numbers and [N, B] with filler."""

    def __init__(self, image_numbers, num_images):
        self.rows = [np.flatnonzero(image_numbers == n) for n in range(num_images)]
        self.total = len(image_numbers)

    def pack(self, values):
        packed = np.zeros((len(self.rows), max(map(len, self.rows)), *values.shape[1:]))
        for n, rows in enumerate(self.rows):
            packed[n, : len(rows)] = values[rows]
        return packed

    def unpack(self, packed):
        values = np.zeros((self.total, *packed.shape[2:]))
        for n, rows in enumerate(self.rows):
            values[rows] = np.asarray(packed)[n, : len(rows)]
        return values
