"""The detector as a tree: Flax's coming default, without graphs of shared objects."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.support.tiny_detector import make_detector, tiny_batch, tiny_detector


@pytest.fixture
def tree_mode():
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        yield


def test_losses_of_a_detector(tree_mode):
    model = nnx.eval_shape(lambda: make_detector(mimic={}))
    losses = nnx.eval_shape(lambda m: m.losses(tiny_batch(), jax.random.key(0)), model)
    assert {"class", "box", "mimic_class"} <= set(losses)


@pytest.mark.slow
def test_a_detector_is_made_split_and_differentiated_in_tree_mode(tree_mode):
    assert nnx.eval_shape(lambda: make_detector(mimic={})) is not None
    model = tiny_detector(
        {"deform_blocks": (0, -1, -1, -1)},
        mimic={},
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    batch = tiny_batch()

    def loss(params):
        losses = nnx.merge(graph, params, rest).losses(batch, jax.random.key(0))
        return sum(losses.values())

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert len(gradients) == len(jax.tree.leaves(params))
    assert all(np.isfinite(g).all() for g in gradients)
    assert sum(float(np.abs(g).max()) > 0 for g in gradients) > len(gradients) / 2
