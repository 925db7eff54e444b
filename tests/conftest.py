"""Strict settings for every test: 8 CPU devices, no silent promotion."""

import gc
import importlib.metadata
import os

# All must stand in the environment before jax starts its backend.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
_FLAGS = {"--xla_force_host_platform_device_count": 8}
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Most of the time goes into compiling what runs once, for a moment. XLA cannot do
    # without optimisation for a GPU.
    _FLAGS["--xla_backend_optimization_level"] = 0
    _FLAGS["--xla_llvm_disable_expensive_passes"] = "true"
    if importlib.metadata.version("jax").startswith("0.10."):
        # Newer XLA has no such option.
        _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
for _flag, _value in _FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
        )

# Half of the time is tracing, which makes many objects that live long, and notes the
# place of each in the source.
gc.set_threshold(100_000, 50, 100)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax
import pytest
from absl import flags
from hypothesis import Phase, settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A GPU would round the operands of float32 products to TF32.
jax.config.update("jax_default_matmul_precision", "highest")

# Of Hypothesis, for those who need no small example.
settings.register_profile("first_failure", phases=[Phase.explicit, Phase.generate])

# grain reads absl flags, which only absl.app.run would parse.
flags.FLAGS.mark_as_parsed()


def pytest_runtest_setup(item):
    """Skips tests of more devices than there are, as on a machine with one GPU."""
    for marker in item.iter_markers("devices"):
        (needed,) = marker.args
        if jax.device_count() < needed:
            pytest.skip(f"needs {needed} devices, and there is {jax.device_count()}")


@pytest.fixture
def x64():
    """Run the test with 64-bit types switched on."""
    with jax.enable_x64(True):
        yield
