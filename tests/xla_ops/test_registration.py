"""Targets reach the CUDA plugin, which asks jaxlib for them under a name of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Where nvcc built no library, the kernels compiled for the CPU stand in for it.
LIBRARIES = [
    name
    for name in ("_cuda", "_cuda_emulated")
    if importlib.util.find_spec(f"xla_ops.{name}") is not None
]
PROGRAM = """
import json, sys
from jaxlib import xla_client

order, library = sys.argv[1:]
received = {}

def start_plugin():
    # The plugin (jax_plugins/xla_cuda13) does the same when jax starts its backends.
    def receive(name, handler, platform, api_version, *more):
        received[name] = platform, api_version

    xla_client.register_custom_call_handler("CUDA", receive)

def load_library():
    from xla_ops._jax import libraries

    if library == "_cuda_emulated":
        libraries.load_library(library, "cuda")

steps = {"plugin": start_plugin, "library": load_library}
for step in order.split():
    steps[step]()
import importlib

targets = sorted(importlib.import_module(f"xla_ops.{library}").registrations())
print(json.dumps([targets, received]))
"""


@pytest.mark.skipif(not LIBRARIES, reason="no CUDA kernels are built")
@pytest.mark.parametrize("order", ["plugin library", "library plugin"])
def test_the_plugin_receives_every_target(order):
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent.parent)
    environment.pop("XLA_OPS_EMULATE_CUDA", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, order, LIBRARIES[0]],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    targets, received = json.loads(done.stdout)
    assert "dcn_jax.deform_conv2d.list" in targets
    ours = {name: how for name, how in received.items() if name in targets}
    # 1 is the typed FFI.
    assert ours == {name: ["CUDA", 1] for name in targets}
