"""The CPU kernels called without Python, by the fuzz driver of tests/native.

Results and scratch memory hold other garbage in each of two runs of a case, one of them
on one thread: what is not written, or rests on garbage or on an order, differs.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def driver():
    built = list(ROOT.glob("build/*/native/fuzz"))
    if not built:
        pytest.skip("scripts/build.sh test builds the fuzz driver")
    return max(built, key=lambda path: path.stat().st_mtime)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "native"])
def test_results_are_written_whole_and_alike(driver, isa):
    done = subprocess.run(
        [driver, "--cases=6000", "--seed=1"],
        env=os.environ | {"XLA_OPS_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_no_finding_in_the_cuda_kernels():
    done = subprocess.run(
        [ROOT / "scripts/cuda_emulated.sh", "address"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_no_finding_of_the_sanitizers():
    """Among them ThreadSanitizer, which sees a lock that is not there."""
    done = subprocess.run(
        [ROOT / "scripts/sanitize.sh", "20"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
