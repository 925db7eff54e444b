"""Saliency regions of networks that are known to read a part of the image."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain import grid_superpixels, saliency_region

ROWS, COLUMNS = slice(9, 17), slice(6, 18)
NEEDED = np.zeros((32, 32), bool)
NEEDED[ROWS, COLUMNS] = True


class Reader(nnx.Module):
    """A map at stride 4 each of whose positions says the pixels of one rectangle."""

    def __init__(self):
        self.gain = nnx.Param(jnp.ones(()))

    def __call__(self, x):
        pixels = x[:, ROWS, COLUMNS].reshape(x.shape[0], -1) * self.gain[...]
        return jnp.broadcast_to(pixels[:, None, None], (len(x), 8, 8, pixels.shape[1]))


MODEL, IMAGE = Reader(), np.ones((32, 32, 1), np.float32)


def call(model, x):
    return model(x)


def of_roi(model, x):
    return model(x)[:, 0, :3]


def nothing(model, x):
    return 0 * model(x)


def test_it_is_the_rectangle_that_the_network_reads():
    passes = []
    patches = grid_superpixels(32, 32, 4)
    found = saliency_region(
        *(MODEL, call, IMAGE, (5, 5)),
        error=0.02,
        superpixels=patches,
        report=lambda count, area: passes.append((count, area)),
    )
    # 1 - cosine is 1 - sqrt(1 - m / 96) where m of its 96 pixels are masked: m <= 3.
    assert (NEEDED & ~found.region).sum() <= 3
    kept = np.unique(patches[found.region])
    assert set(kept) <= set(np.unique(patches[NEEDED]))
    assert found.complete and found.error <= 0.02
    # The masked image run again.
    masked = np.where(found.region[..., None], IMAGE, 0)
    full, again = (np.asarray(MODEL(x[None]))[0, 5, 5] for x in (IMAGE, masked))
    cosine = full @ again / np.linalg.norm(full) / np.linalg.norm(again)
    np.testing.assert_allclose(found.error, 1 - cosine, atol=1e-6)
    # The rectangle grew until the bound held, then lost area.
    assert (np.diff(found.growth.area) >= 0).all()
    assert (found.growth.error[:-1] > 0.02).all() and found.growth.error[-1] <= 0.02
    assert (np.diff(found.removal.area) < 0).all()
    assert (found.removal.error <= 0.02).all()
    x1, y1, x2, y2 = found.rectangle
    assert (y2 - y1) * (x2 - x1) / 32**2 == found.removal.area[0]
    assert found.removal.area[-1] == found.region.mean()
    assert passes[-1][0] == found.passes <= 2000
    repeated = saliency_region(
        *(MODEL, call, IMAGE, (5, 5)), error=0.02, superpixels=patches
    )
    np.testing.assert_array_equal(repeated.region, found.region)
    assert repeated.passes == found.passes


def test_a_roi_has_a_box_and_passes_may_run_out():
    box = (6.0, 9.0, 18.0, 17.0)
    found = saliency_region(MODEL, of_roi, IMAGE, (1,), error=0.02, box=box)
    x1, y1, x2, y2 = found.rectangle
    assert found.region[ROWS, COLUMNS].sum() >= 93
    assert 1.2 < (x2 - x1) / (y2 - y1) < 1.8  # The box has 1.5.
    # Grown by steps of a 32nd, it is hardly larger than the box.
    assert (x2 - x1) * (y2 - y1) < 1.4 * 96
    few = saliency_region(
        *(MODEL, of_roi, IMAGE, (1,)),
        error=0.02,
        box=(0.0, 0.0, 31.0, 31.0),
        max_passes=40,
    )
    assert not few.complete and few.passes <= 40
    assert few.region.sum() > found.region.sum() and few.error <= 0.02


def test_masks_have_a_colour():
    """A network that reads the distance from grey keeps only what is not grey."""
    image = np.full((32, 32, 1), 128, np.uint8)
    image[ROWS, COLUMNS] = 255

    def distance(model, x):
        return model(x - 128)

    found = saliency_region(MODEL, distance, image, (0, 0), error=0.02, fill=128.0)
    assert (NEEDED & ~found.region).sum() <= 3
    assert found.region.sum() <= 14 * 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(node=(8, 0)), ValueError, r"`node` has \(8, 0\)"),
        (dict(error=1.0), ValueError, "`error` is 1.0; expected it between 0 and 1"),
        (dict(call=of_roi, node=(0,)), ValueError, "`box` is None; expected x1 y1"),
        (dict(box=(5, 5, 5, 9)), ValueError, r"`box` is \(5, 5, 5, 9\); expected"),
        (dict(box=(40, 0, 60, 9)), ValueError, "expected its centre on the image"),
        (
            dict(superpixels=np.zeros((3, 3), int)),
            ValueError,
            "`superpixels` has sha",
        ),
        (dict(superpixels=np.zeros((32, 32))), TypeError, "`superpixels` has dtype"),
        (dict(fill=(1, 2)), ValueError, "`fill` has shape"),
        (dict(max_passes=5), ValueError, "`max_passes` is 5; expected at least"),
        (dict(call=nothing), ValueError, "response to the full image is zero"),
    ],
)
def test_bad_input(change, error, message):
    arguments = dict(model=MODEL, call=call, image=IMAGE, node=(0, 0)) | change
    with pytest.raises(error, match=message):
        inspect.unwrap(saliency_region)(**arguments)


def test_masking_is_one_program():
    count = []

    def counted(model, x):
        count.append(x.shape)
        return model(x)

    saliency_region(MODEL, counted, IMAGE, (0, 0), error=0.02)
    # For its shape, and to be compiled.
    assert count == [(1, 32, 32, 1)] * 2
