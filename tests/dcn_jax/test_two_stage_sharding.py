"""Data parallelism: the batch split over eight devices, the parameters on each."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.support.tiny_detector import (
    tiny_batch,
    tiny_detector,
    tiny_mask_rcnn,
    with_masks,
)

# Anything that moves pieces of arrays between devices; an all-reduce adds them.
MOVES = re.compile(
    r" (all-gather|all-to-all|collective-permute|collective-broadcast)(-start)?\("
)


@pytest.fixture(scope="module")
def shardings():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return tuple(NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))


# Masks have all that the other has.
DETECTORS = [pytest.param(tiny_detector, marks=pytest.mark.slow), tiny_mask_rcnn]


@pytest.fixture(params=DETECTORS, ids=["one level", "masks"])
def detector(request, x64):
    """In float64, where another order of summation makes no difference."""
    return request.param(
        {"deform_blocks": (0, 0, 0, -1)},
        mimic={},
        param_dtype=jnp.float64,
    )


def test_losses_and_gradient_move_nothing_and_are_those_of_one_device(
    detector, shardings
):
    everywhere, split = shardings
    graph, params, rest = nnx.split(detector, nnx.Param, ...)

    def run(params, rest, batch, key):
        def total(params):
            losses = nnx.merge(graph, params, rest).losses(batch, key)
            return sum(losses.values()), losses

        return jax.grad(total, has_aux=True)(params)

    # One image has no ground truth, so that counts differ between devices.
    batch, key = with_masks(tiny_batch(images=8)), jax.random.key(0)
    batch = batch._replace(valid=batch.valid.at[5].set(False))
    sharded = (
        jax.jit(run, in_shardings=(everywhere, everywhere, split, everywhere))
        .lower(params, rest, batch, key)
        .compile()
    )
    text = sharded.as_text()
    assert " all-reduce" in text
    assert not [line for line in text.splitlines() if MOVES.search(line)]

    gradient, losses = sharded(
        *jax.device_put((params, rest), everywhere),
        jax.device_put(batch, split),
        jax.device_put(key, everywhere),
    )
    expected_gradient, expected = jax.jit(run)(params, rest, batch, key)
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-9)
    for ours, theirs in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-9 * np.abs(theirs).max())


def test_detection_moves_nothing(detector, shardings):
    everywhere, split = shardings
    batch = tiny_batch(images=8)
    text = (
        jax.jit(
            lambda model, images, sizes: model.predict(images, sizes),
            in_shardings=(everywhere, split, split),
        )
        .lower(detector, batch.images, batch.sizes)
        .compile()
        .as_text()
    )
    assert not [line for line in text.splitlines() if MOVES.search(line)]
