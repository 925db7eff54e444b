"""The CPU's kernels are those of the best instruction set that the machine has."""

import importlib
import os
import platform
import re
from pathlib import Path

import pytest

NEEDED = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"},
}
CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not CPUINFO.exists(),
    reason="Linux tells the flags of an x86-64 processor",
)
@pytest.mark.skipif(
    bool(os.environ.get("XLA_OPS_CPU_ISA")), reason="a lesser one is asked for"
)
def test_the_best_instruction_set_is_taken():
    cpu = importlib.import_module("xla_ops._cpu")
    match = re.search(r"^flags\s*: (.+)$", CPUINFO.read_text(), re.M)
    flags = set(match[1].split())
    best = "baseline"
    for name, needed in NEEDED.items():
        if needed <= flags:
            best = name
    assert cpu.instruction_set() == best
