"""What the tests run on, and how they compile for it."""

import functools
import os

import jax

# This is a GPU, or else the CPU may run the CUDA kernels.
GPU = jax.default_backend() == "gpu"
CUDA = GPU or os.environ.get("XLA_OPS_EMULATE_CUDA") == "1"
PLATFORM = "cuda" if GPU else "cpu"

# The reference's many small fusions compile three times as fast like this. XLA cannot
# do without optimisation for a GPU.
FAST_COMPILE: dict = {} if GPU else {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11) and not GPU:
    # Newer XLA has no such option.
    FAST_COMPILE["xla_cpu_use_fusion_emitters"] = False

# jax.jit for a program that runs once or twice.
quick_jit = functools.partial(jax.jit, compiler_options=FAST_COMPILE)


def on_cpu():
    """A context in which jax computes on the CPU, for what results are compared with.

    On a GPU XLA's own float32 quotients are not always the nearest number, and fused
    products are not rounded: edges of bins move to another pixel. Its convolutions may
    take an algorithm that is less exact.
    """
    return jax.default_device(jax.devices("cpu")[0])
