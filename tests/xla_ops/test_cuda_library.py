"""The CUDA library, where nvcc built one: it loads without a GPU and a driver."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xla_ops._cuda") is None,
    reason="no CUDA library is built: nvcc was not found",
)
# On CUDA deform_conv2d is several kernels, with XLA's products between them.
OF_THE_CPU = {"dcn_jax.deform_conv2d.fwd", "dcn_jax.deform_conv2d.bwd"}
OF_CUDA = {
    f"dcn_jax.deform_conv2d.{kernel}"
    for kernel in ("columns", "gather", "list", "visit")
}


def test_it_has_a_handler_for_every_operator():
    cpu, cuda = (
        set(importlib.import_module(f"xla_ops.{name}").registrations())
        for name in ("_cpu", "_cuda")
    )
    assert cuda == cpu - OF_THE_CPU | OF_CUDA


def test_it_is_registered_in_a_process_that_sees_no_gpu():
    root = Path(__file__).resolve().parent.parent.parent
    environment = dict(os.environ, PYTHONPATH=str(root), JAX_PLATFORMS="cpu")
    environment.pop("XLA_OPS_EMULATE_CUDA", None)
    program = "import xla_ops; print(*xla_ops.backends())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "cpu cuda\n"


def test_it_brings_its_own_cuda_runtime():
    file = importlib.import_module("xla_ops._cuda").__file__
    assert file is not None
    needs = subprocess.run(["ldd", file], check=True, capture_output=True, text=True)
    assert "libc.so" in needs.stdout
    assert "libcuda" not in needs.stdout
    assert "not found" not in needs.stdout
