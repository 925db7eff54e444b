"""Sizes and canvases against values worked out by hand."""

import numpy as np
import pytest

from dcn_jax.images.fit import fit_canvases, fit_image, resized_sizes
from dcn_jax.images.geometry import Geometry


def test_resized_sizes():
    sizes = np.array([[480, 640], [640, 480], [500, 500], [200, 1000], [3, 5000]])
    expected = [[800, 1067], [1067, 800], [800, 800], [267, 1333], [1, 1333]]
    np.testing.assert_array_equal(resized_sizes(sizes, 800, 1333), expected)
    jittered = resized_sizes(sizes[:2], np.array([240, 960]), 2000)
    np.testing.assert_array_equal(jittered, [[240, 320], [1280, 960]])


def test_fit_canvases():
    canvases = [(100, 200), (200, 100), (140, 140)]
    sizes = np.array(
        [
            [90, 180],
            [180, 90],
            [120, 120],
            [100, 100],
            [100, 300],
            [400, 100],
            [280, 280],
        ]
    )
    canvas, fitted = fit_canvases(sizes, canvases)
    np.testing.assert_array_equal(canvas, [0, 1, 2, 2, 0, 1, 2])
    np.testing.assert_array_equal(
        fitted,
        [
            [90, 180],
            [180, 90],
            [120, 120],
            [100, 100],
            [66, 200],
            [200, 50],
            [140, 140],
        ],
    )
    for wrong in ([], [(0, 5)]):
        with pytest.raises(ValueError, match="`canvases` is"):
            fit_canvases(sizes, wrong)


def test_images_shrunk_to_a_canvas_always_fit():
    rng = np.random.default_rng(0)
    canvases = [(64, 96), (96, 64), (80, 80)]
    sizes = rng.integers(1, 400, (2000, 2))
    canvas, fitted = fit_canvases(sizes, canvases)
    assert (fitted <= np.array(canvases)[canvas]).all() and (fitted >= 1).all()
    assert (fitted <= sizes).all()


def test_fit_image():
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[:, :10, 0] = pixels[:, 10:, 2] = 255
    canvas, geometry = fit_image(
        pixels, canvases=[(40, 40), (24, 48)], short_side=24, max_side=100
    )
    assert canvas.shape == (24, 48, 3)
    assert geometry == Geometry((12, 20), (24, 40), (24, 48), flip=False)
    assert geometry.scale == (2, 2)
    assert (canvas[:, 40:] == 0).all()
    np.testing.assert_array_equal(
        canvas[:, :18], pixels[:1, :1].repeat(18, 1).repeat(24, 0)
    )
