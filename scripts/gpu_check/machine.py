"""The stage that says what it found: GPU, driver, compilers, Python and its packages.

    python -m scripts.gpu_check.machine [--emulated]

Fails where what the others cannot do without is missing.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "numpy",
    "torch", "torchvision", "pybind11", "pytest", "pytest-xdist", "hypothesis",
    "flatbuffers", "jaxtyping",
)  # fmt: skip
_NEEDED = ("jax", "flax", "optax", "numpy", "pytest", "pybind11")
_TOOLS = {
    "nvcc": r"release (\S+),",
    "cmake": r"version (\S+)",
    "ninja": r"(\S+)",
    "compute-sanitizer": r"Version (\S+)",
    "c++": r"(.+)",
}


def ask_gpus(field: str) -> list[str]:
    """What nvidia-smi says of each GPU, or nothing."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def gpu_names() -> list[str]:
    """Of all GPUs."""
    return ask_gpus("name")


def compute_capabilities() -> list[str]:
    """Of all GPUs, as CMake wants them: "90"."""
    return sorted({found.replace(".", "") for found in ask_gpus("compute_cap")})


def tool_version(tool: str) -> str | None:
    """The version of a program on the path, or None."""
    if shutil.which(tool) is None:
        return None
    done = subprocess.run([tool, "--version"], capture_output=True, text=True)
    found = re.search(_TOOLS[tool], done.stdout)
    return found[1] if found else "of unknown version"


def package_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def floors() -> dict[str, str]:
    """The oldest versions that pyproject.toml allows, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(r for e in project["project"]["optional-dependencies"].values() for r in e),
    ]
    found = (re.fullmatch(r"([\w-]+)(?:\[.*\])?[>=]=([\d.]+)", r) for r in wanted)
    return {match[1]: match[2] for match in found if match}


def is_older(version: str, floor: str) -> bool:
    """Whether a version, such as "0.10.2.dev1", comes before another one."""
    numbers = ([int(n) for n in re.findall(r"\d+", v)] for v in (version, floor))
    found, least = numbers
    return found[: len(least)] < least


def torch_python() -> str | None:
    """An interpreter that has torch: TORCH_PYTHON, or else this one, or none."""
    if chosen := os.environ.get("TORCH_PYTHON"):
        return chosen
    found = all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))
    return sys.executable if found else None


def main() -> int:
    """Prints the list; returns the exit status."""
    emulated = "--emulated" in sys.argv
    fields = "name,driver_version,compute_cap,memory.total,power.limit"
    gpus = ask_gpus(fields)
    for gpu in gpus:
        print(f"- GPU ({fields.replace(',', ', ')}): {gpu}")
    if not gpus:
        print("- No GPU: nvidia-smi is not there, or finds none.")
    print(f"- {os.cpu_count()} processors, {platform.platform()}")
    print(f"- Python {platform.python_version()}")
    for names, version in ((_TOOLS, tool_version), (_PACKAGES, package_version)):
        found = {name: version(name) for name in names}
        there = [f"{name} {v}" for name, v in found.items() if v is not None]
        print(f"- {', '.join(there)}")
        missing = [name for name, v in found.items() if v is None]
        if missing:
            print(f"- Not found: {', '.join(missing)}")
    for name, floor in floors().items():
        version = package_version(name)
        if name in _PACKAGES and version is not None and is_older(version, floor):
            print(f"- **{name} {version} is older than {floor}**, which it should have")
    if package_version("jaxtyping") is None:
        print("- A stand-in for jaxtyping is used: annotations are not checked.")

    needed = {name: package_version(name) for name in _NEEDED}
    lacking = [name for name, version in needed.items() if version is None]
    tools = ("cmake", "ninja", "c++") if emulated else ("cmake", "ninja", "c++", "nvcc")
    lacking += [tool for tool in tools if tool_version(tool) is None]
    if not (gpus or emulated):
        lacking.append("a GPU")
    if lacking:
        print(f"\nNeeded and not found: {', '.join(lacking)}.")
        return 1
    import jax

    print(f"- jax's devices: {', '.join(str(d) for d in jax.devices())}")
    if not emulated and jax.default_backend() != "gpu":
        print(f"\njax runs on {jax.default_backend()}, not on the GPU.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
