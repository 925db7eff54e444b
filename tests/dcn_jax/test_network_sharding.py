"""Data parallelism: the batch split over eight devices, the parameters on each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.support.collectives import moves
from tests.support.tiny_detector import (
    tiny_batch,
    tiny_deeplab,
    tiny_detector,
    tiny_label_batch,
    tiny_mask_rcnn,
    tiny_r_fcn,
    with_masks,
)


@pytest.fixture(scope="module")
def shardings():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return tuple(NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))


def objects():
    """One image has no ground truth, so that counts differ between devices."""
    batch = with_masks(tiny_batch(images=8))
    return batch._replace(valid=batch.valid.at[5].set(False))


def labels():
    """Likewise."""
    batch = tiny_label_batch(images=8)
    return batch._replace(labels=batch.labels.at[5].set(255))


MIMIC = dict(mimic={})
# Network, its options, and a batch. Those of detection are slow; in every run the
# training step of one of them is tested, by tests/train/test_detector_step.py.
NETWORKS = {
    "one level": (tiny_detector, MIMIC, objects),
    "masks": (tiny_mask_rcnn, MIMIC, objects),
    "R-FCN": (tiny_r_fcn, {}, objects),
    "DeepLab": (tiny_deeplab, {}, labels),
}
CASES = [
    pytest.param(name, marks=[pytest.mark.slow] if batch is objects else [])
    for name, (_, _, batch) in NETWORKS.items()
]


@pytest.fixture(params=CASES)
def network(request, x64):
    """In float64, where another order of summation makes no difference; and a batch."""
    make, options, batch = NETWORKS[request.param]
    deformed = {"deform_blocks": (0, 0, 0, -1)}
    return make(deformed, **options, param_dtype=jnp.float64), batch()


def test_losses_and_gradient_move_nothing_and_are_those_of_one_device(
    network, shardings
):
    everywhere, split = shardings
    model, batch = network
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def run(params, rest, batch, key):
        def total(params):
            losses = nnx.merge(graph, params, rest).losses(batch, key)
            return sum(losses.values()), losses

        return jax.grad(total, has_aux=True)(params)

    key = jax.random.key(0)
    sharded = (
        jax.jit(run, in_shardings=(everywhere, everywhere, split, everywhere))
        .lower(params, rest, batch, key)
        .compile()
    )
    text = sharded.as_text()
    assert " all-reduce" in text
    assert not moves(text)

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


def test_prediction_moves_nothing(network, shardings):
    everywhere, split = shardings
    model, batch = network
    text = (
        jax.jit(
            lambda model, images, sizes: model.predict(images, sizes),
            in_shardings=(everywhere, split, split),
        )
        .lower(model, batch.images, batch.sizes)
        .compile()
        .as_text()
    )
    assert not moves(text)
