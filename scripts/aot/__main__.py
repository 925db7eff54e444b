"""Compiles for the machines of a platform, and judges; see `scripts/aot.sh`.

python -m scripts.aot [cuda|tpu] [--short] [--write] [--machine=KEY] [--only=REGEX]
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.aot import document
from scripts.aot.judge import problems
from scripts.aot.library import missing_code
from scripts.aot.machines import GPU_FLAGS, MACHINES, Machine
from scripts.aot.worker import Result, from_json

ROOT = Path(__file__).resolve().parent.parent.parent
# With what `scripts/aot.sh` installs there.
WHEELS = ROOT / "build" / "aot"
# In the short form.
_SHORT = ("h100",)


def environment(machine: Machine) -> dict[str, str]:
    """Of a process that compiles for the machine.

    Raises:
      FileNotFoundError: There is no nvcc, whose folder has ptxas and libdevice.
    """
    path = [str(WHEELS / machine.platform), str(ROOT)]
    added = {"PYTHONPATH": os.pathsep.join(path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    if machine.platform == "tpu":
        return (
            os.environ
            | added
            | {
                "JAX_PLATFORMS": "cpu",
                "TPU_SKIP_MDS_QUERY": "1",
                "TPU_ACCELERATOR_TYPE": "v5litepod-4",
                "TPU_WORKER_HOSTNAMES": "localhost",
                # It locks a device that is not there.
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
                "XLA_FLAGS": "",
            }
        )
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        raise FileNotFoundError("there is no nvcc: its folder has ptxas and libdevice")
    folder = Path(nvcc).resolve().parent.parent
    return (
        os.environ
        | added
        | {
            "JAX_PLATFORMS": "cuda,cpu",
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "XLA_FLAGS": " ".join([*GPU_FLAGS, f"--xla_gpu_cuda_data_dir={folder}"]),
        }
    )


def versions(platform: str) -> str:
    """What compiles for a platform."""
    name = {"cuda": "jax-cuda13-pjrt", "tpu": "libtpu"}[platform]
    found = importlib.metadata.distributions(path=[str(WHEELS / platform)])
    plugin = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in found}
    return f"jax {importlib.metadata.version('jax')}, {name} {plugin.get(name)}"


def compile_all(key: str, *, short: bool, only: str) -> Iterator[Result]:
    """Results as they come; the last one says so where the compiler died."""
    command = [sys.executable, "-m", "scripts.aot.worker", key, f"--only={only}"]
    command += ["--short"] if short else []
    with subprocess.Popen(
        command, env=environment(MACHINES[key]), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield from_json(line)
    if process.returncode:
        error = f"the process that compiles ended with status {process.returncode}"
        yield Result("the rest", None, (), error, 0.0)


def check(key: str, *, short: bool, only: str, write: bool) -> bool:
    """Prints a line for each program; returns whether all is well."""
    machine, by = MACHINES[key], versions(MACHINES[key].platform)
    recorded_by, recorded = document.read(key)
    print(f"{machine.name}, by {by}", flush=True)
    if recorded_by != by and not write:
        print(f"  docs/aot.md is by {recorded_by or 'nothing'}: growth is not judged")
        recorded = {}
    code = missing_code(machine.capability) if machine.capability else ""
    if code:
        print(f"  FAILED: {code}")
    good, results = not code, []
    for result in compile_all(key, short=short, only=only):
        results.append(result)
        before = None if write else recorded.get(result.title)
        found = problems(result, machine, before)
        if recorded and not write and result.title not in recorded:
            found.append("is not in docs/aot.md; --write puts it there")
        good &= not found
        print(
            f"  {'FAILED' if found else 'ok'} {result.title} ({result.seconds:.0f} s)"
        )
        for sentence in found:
            print(f"      {sentence}", flush=True)
    if not results:
        print("  FAILED: no program has such a title")
        return False
    if write:
        document.write(key, results, by, whole=not only)
    return good


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("platform", nargs="?", choices=("cuda", "tpu"))
    parser.add_argument("--short", action="store_true", help="a few, for H100 alone")
    parser.add_argument(
        "--write", action="store_true", help="the tables, anew, or those lines"
    )
    parser.add_argument("--machine", choices=MACHINES, help="that one alone")
    parser.add_argument("--only", default="", metavar="REGEX", help="titles")
    options = parser.parse_args()
    if options.write and options.short:
        parser.error("--write writes tables of all programs: leave out --short")
    keys = _SHORT if options.short else tuple(MACHINES)
    keys = (options.machine,) if options.machine else keys
    good = True
    for key in keys:
        if options.platform in (None, MACHINES[key].platform):
            good &= check(
                key, short=options.short, only=options.only, write=options.write
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
