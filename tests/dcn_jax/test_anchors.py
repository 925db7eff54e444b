"""Anchors against torchvision's AnchorGenerator."""

from pathlib import Path

import numpy as np
import pytest

from dcn_jax.boxes.anchors import cell_anchors, grid_anchors

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["one_level", "fpn_3_levels", "odd_grid"])
def test_anchors_are_torchvisions(name):
    golden = np.load(GOLDEN / f"anchors_{name}.npz")
    levels = []
    for i, grid in enumerate(golden["grid_hw"]):
        cell = cell_anchors(
            golden["sizes"][i].tolist(), golden["aspect_ratios"][i].tolist()
        )
        np.testing.assert_array_equal(cell, golden[f"cell_anchors_{i}"])
        stride = golden["strides_hw"][i]
        levels.append(
            grid_anchors(cell, tuple(map(int, grid)), tuple(map(int, stride)))
        )
    np.testing.assert_array_equal(np.concatenate(levels), golden["anchors"])


def test_what_is_not_a_size_is_refused():
    with pytest.raises(ValueError, match=r"`sizes` is \(32, 0\)"):
        cell_anchors((32, 0), (1.0,))
    with pytest.raises(ValueError, match=r"`aspect_ratios` is \(\)"):
        cell_anchors((32,), ())
