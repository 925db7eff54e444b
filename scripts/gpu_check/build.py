"""The stage that builds the kernel libraries against the jaxlib of this interpreter.

    python -m scripts.gpu_check.build [--emulated]

Without network and without pip: CMake, ninja and pybind11 as they are found, for the
GPUs that are found. The libraries land beside `xla_ops/__init__.py`.
"""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from scripts.gpu_check.machine import compute_capabilities

ROOT = Path(__file__).resolve().parents[2]


def architectures() -> list[str]:
    """Of the GPUs that are found; where nvidia-smi does not tell, nvcc asks them."""
    return compute_capabilities() or ["native"]


def configure(emulated: bool, folder: Path) -> list[str]:
    """The call of CMake."""
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": sys.executable,
        "XLA_OPS_CUDA": "OFF" if emulated else "ON",
        "XLA_OPS_EMULATED_CUDA": "ON" if emulated else "OFF",
    }
    if not emulated:
        options["XLA_OPS_CUDA_ARCHITECTURES"] = ";".join(architectures())
    defined = [f"-D{name}={value}" for name, value in options.items()]
    return [
        "cmake",
        "-S",
        str(ROOT / "xla_ops"),
        "-B",
        str(folder),
        "-GNinja",
        *defined,
    ]


def main() -> int:
    """Returns the exit status."""
    emulated = "--emulated" in sys.argv
    # A folder for each interpreter: what CMake found there belongs to it.
    tag = sysconfig.get_config_var("SOABI") + ("-emulated" if emulated else "")
    folder = ROOT / "build" / f"gpu_check-{tag}"
    begin = time.monotonic()
    for command in (configure(emulated, folder), ["ninja", "-C", str(folder)]):
        # What they say, in the order they say it, is shown where they fail.
        done = subprocess.run(command, stdout=sys.stderr, stderr=sys.stderr)
        if done.returncode:
            print(f"`{command[0]}` failed with exit status {done.returncode}.")
            return 1
    seconds = time.monotonic() - begin
    what = "kernels compiled for the CPU"
    if not emulated:
        what = f"architectures {', '.join(architectures())}"
    print(
        f"Built in {seconds:.0f} s by {os.cpu_count()} processors; {what}.", flush=True
    )

    import xla_ops
    from xla_ops._jax import libraries

    known = libraries.library_modules()
    modules = {platform: known[platform] for platform in xla_ops.backends()}
    print("\nLoaded: " + ", ".join(f"{m} for {p}" for p, m in modules.items()) + ".")
    wanted = "cpu" if emulated else "cuda"
    if wanted not in modules:
        print(f"\nNot loaded for {wanted}: {libraries.load_errors[wanted]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
