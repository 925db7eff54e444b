"""A whole training step for a GPU, lowered on a machine without one."""

import re

import jax
import optax
import pytest
from flax import nnx
from jax import export

from tests.support.tiny_detector import make_detector, tiny_batch
from xla_ops import backends
from xla_ops._jax import libraries

# What the step calls on CUDA.
CALLS = {
    "dcn_jax.deform_conv2d.columns",
    "dcn_jax.deform_conv2d.visit",
    "dcn_jax.deform_conv2d.list",
    "dcn_jax.deform_conv2d.gather",
    "dcn_jax.roi_pool.fwd",
    "dcn_jax.roi_pool.bwd",
    "dcn_jax.nms",
}


def lowered_step():
    """The text of an optimiser step of a DCNv2 Faster R-CNN, for platform cuda."""
    graph, parameters, rest = nnx.split(
        nnx.eval_shape(lambda: make_detector(dict(deform_blocks=(0, 0, -1, -1)))),
        nnx.Param,
        ...,
    )
    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(parameters, rest, memory, batch, key):
        def loss(parameters):
            return sum(nnx.merge(graph, parameters, rest).losses(batch, key).values())

        gradients = jax.grad(loss)(parameters)
        updates, memory = optimizer.update(gradients, memory)
        return optax.apply_updates(parameters, updates), memory

    exported = export.export(
        jax.jit(step),
        platforms=["cuda"],
        disabled_checks=[
            export.DisabledSafetyCheck.custom_call(name)
            for name in libraries.targets["cuda"]
        ],
    )(
        parameters,
        rest,
        jax.eval_shape(optimizer.init, parameters),
        jax.eval_shape(tiny_batch),
        jax.eval_shape(lambda: jax.random.key(0)),
    )
    assert exported.platforms == ("cuda",)
    return exported.mlir_module()


@pytest.mark.skipif("cuda" not in backends(), reason="no CUDA library is built")
def test_a_train_step_lowers_to_our_calls():
    found = set(re.findall(r"custom_call @(dcn_jax\.[\w.]+)", lowered_step()))
    assert found == CALLS
