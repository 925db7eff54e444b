"""What the tests run on."""

import os

import jax

# This is a GPU, or else the CPU may run the CUDA kernels.
GPU = jax.default_backend() == "gpu"
CUDA = GPU or os.environ.get("XLA_OPS_EMULATE_CUDA") == "1"
PLATFORM = "cuda" if GPU else "cpu"


def on_cpu():
    """A context in which jax computes on the CPU, for what results are compared with.

    On a GPU XLA's own float32 quotients are not always the nearest number, and fused
    products are not rounded: edges of bins move to another pixel. Its convolutions may
    take an algorithm that is less exact.
    """
    return jax.default_device(jax.devices("cpu")[0])
