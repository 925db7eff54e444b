"""The machine's peak of fused multiply-adds in float32, by a loop of our own.

The figure is the yardstick for convolutions: `fma_peak.cc` keeps every vector unit busy
from registers alone. It needs a C++ compiler; without one there is no figure.
"""

import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("fma_peak.cc")


def build_fma_peak(folder: Path) -> Path | None:
    """Compiles the loop into `folder`; None where there is no compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    program = folder / "fma_peak"
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-pthread"]
    subprocess.run([compiler, *flags, str(_SOURCE), "-o", str(program)], check=True)
    return program


def fma_flops(program: Path, threads: int) -> float:
    """Operations a second of all threads together."""
    command = [str(program), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout) * 1e9
