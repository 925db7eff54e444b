"""A page of numbers that are easy to know again."""

import numpy as np

from dcn_jax.explain import Atlas, BinLocations, PointSet
from train.explain.viewer import Detected

# Names that would end a script, be an element, or be typeset as a formula.
HOSTILE = ("</script><img src=x onerror=\"document.title='broken'\">", "$$x$$", "<b>c")


def make_atlas() -> Atlas:
    """A map of 3 x 4 positions at stride 16 of an image of 40 x 64 pixels."""
    rng = np.random.default_rng(0)
    nodes = np.stack(np.meshgrid(range(3), range(4), indexing="ij"), -1).reshape(-1, 2)

    def points(layers, count):
        position = 16 * nodes[:, None] + rng.normal(size=(12, count, 2)) * 12
        inside = ((position >= 0) & (position <= (39, 63))).all(-1)
        strength = rng.random((12, count)).astype(np.float32)
        outside = (~inside).sum(1)
        return PointSet(layers, position, strength, inside, count, outside)

    return Atlas(
        nodes=nodes,
        map_size=(3, 4),
        stride=16,
        size=(40, 64),
        points=(
            points(("top",), 9),
            points(("top", "middle"), 81),
            points(("middle",), 9),
        ),
        gradient=False,
        field=rng.random((12, 40, 64)).astype(np.float32),
        cell=1,
        area_side=np.arange(12) + 20.0,
        square_side=np.arange(12) + 40.0,
    )


def make_detected() -> Detected:
    """Two boxes that overlap, and one apart from them."""
    boxes = np.float32([[4, 4, 30, 30], [2, 6, 34, 38], [44, 10, 60, 30]])
    rng = np.random.default_rng(1)
    bins = BinLocations(
        centre=rng.uniform(0, 40, (3, 2, 3, 2)).astype(np.float32),
        size=np.float32([[13, 9], [16, 11], [10, 5]]),
        mask=rng.random((3, 2, 3)).astype(np.float32),
        gradient=None,
    )
    return Detected(boxes, np.float32([0.5, 0.75, 0.25]), HOSTILE, bins)


def make_image() -> np.ndarray:
    """Noise."""
    return np.random.default_rng(2).integers(0, 256, (40, 64, 3), np.uint8)
