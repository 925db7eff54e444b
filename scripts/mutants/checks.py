"""Plants a bug in a copy of the tree and runs a check on it."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

_ROOT = Path(__file__).parents[2]
# A check that takes longer has found a hang. Compilers may take as long as they want.
_LONGEST_S = 900
_SANITIZERS = {"address": "address,undefined,float-cast-overflow", "thread": "thread"}
_FUZZ = ("--cases=6000", "--seed=1")
FOUND, QUIET = "found", "quiet"
# Bugs are looked for in the kernels of this machine alone.
_LAUNCHER = _ROOT / "scripts" / "one_isa.sh"


class PlantingFailed(Exception):
    """A patch does not apply, or its result does not compile."""


class Copy:
    """A copy of the tree, in which one bug at a time is planted."""

    def __init__(self, path: Path):
        """Makes the copy at `path`."""
        self._path = path
        files = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in files.split("\0"):
            if (_ROOT / name).is_file():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(_ROOT / name, path / name)
        self._python = path / ".venv/bin/python"

    def apply(self, patch: Path | None) -> None:
        """Applies a patch.

        Raises:
          PlantingFailed: The patch does not fit the sources.
        """
        if patch is None:
            return
        done = self._run(["git", "apply", "-p1", "-C1", str(patch)])
        if done.returncode:
            raise PlantingFailed(f"{patch.name}: {_tail(done)}")

    def take_back(self, patch: Path | None) -> None:
        """Makes the files that a patch names what they were."""
        if patch is not None:
            for name in re.findall(r"^--- a/(\S+)", patch.read_text(), re.M):
                shutil.copyfile(_ROOT / name, self._path / name)

    def verdict(self, library: str, check: str) -> tuple[str, str]:
        """Runs a check of `table`.

        Returns:
          "found" or "quiet", and a line that says how it was found.

        Raises:
          PlantingFailed: The sources do not compile.
        """
        run = self._check_cuda if library == "cuda" else self._check_cpu
        try:
            done = run(check)
        except subprocess.TimeoutExpired:
            return FOUND, f"no end in {_LONGEST_S} s"
        return (FOUND, _tail(done)) if done.returncode else (QUIET, "")

    def _check_cuda(self, check: str) -> subprocess.CompletedProcess:
        program, mode = check.split()
        done = self._run(
            ["scripts/cuda_emulated.sh", mode],
            # One race is enough.
            {"PROGRAMS": program, "TSAN_OPTIONS": "halt_on_error=1"},
        )
        if done.returncode == 3:
            raise PlantingFailed(_tail(done))
        return done

    def _check_cpu(self, check: str) -> subprocess.CompletedProcess:
        if check in ("fuzz", *_SANITIZERS):
            self._build(check, "fuzz", sanitizers=_SANITIZERS.get(check, ""))
            callers = ["--callers=2", "--threads=4"] if check == "thread" else []
            return self._run([f"build/{check}/native/fuzz", *_FUZZ, *callers])
        self._build("fuzz", "_cpu")
        if not self._python.exists():
            # Sees the packages, but not this checkout's own modules.
            venv.create(self._path / ".venv", symlinks=True)
            site = sysconfig.get_path(
                "purelib", vars={"base": str(self._path / ".venv")}
            )
            (Path(site) / "packages.pth").write_text(
                sysconfig.get_path("purelib") + "\n"
            )
        files = [f"tests/xla_ops/{name}" for name in check.split()]
        flags = ("-n", "0", "-x", "-q", "--hypothesis-profile=first_failure")
        done = self._run([str(self._python), "-m", "pytest", *flags, *files])
        if done.returncode > 1:  # of pytest itself, as where a file is missing
            raise PlantingFailed(_tail(done))
        return done

    def _build(self, name: str, target: str, *, sanitizers: str = "") -> None:
        build = self._path / "build" / name
        if not (build / "build.ninja").exists():
            done = self._run(
                [
                    *("cmake", "-S", "xla_ops", "-B", str(build), "-G", "Ninja"),
                    f"-DPython_EXECUTABLE={sys.executable}",
                    *("-DXLA_OPS_FUZZ=ON", "-DXLA_OPS_CUDA=OFF"),
                    f"-DXLA_OPS_SANITIZE={sanitizers}",
                    f"-DCMAKE_CXX_COMPILER_LAUNCHER={_LAUNCHER};{_isa()}",
                ]
            )
            if done.returncode:
                raise PlantingFailed(_tail(done))
        done = self._run(["ninja", "-C", str(build), "-j2", target], seconds=None)
        if done.returncode:
            raise PlantingFailed(_tail(done))

    def _run(
        self,
        command: list[str],
        added: dict[str, str] | None = None,
        seconds: float | None = _LONGEST_S,
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            cwd=self._path,
            env=os.environ | (added or {}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )


def _tail(done: subprocess.CompletedProcess) -> str:
    """The line of a finding, else the last one."""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    marks = ("FINDING", "FAILED", "ERROR:", "WARNING:", "runtime error", "error:")
    told = [line for line in lines if any(mark in line for mark in marks)]
    return (told or lines or [f"status {done.returncode}"])[0].strip()[:110]


def _isa() -> str:
    return importlib.import_module("xla_ops._cpu").instruction_set()
