"""Builds, tests and measures the CUDA kernels on a machine with a GPU, without network.

    scripts/gpu_check.sh [--emulated] [--only=REGEX] [REPORT]

See there. This file says what the stages are; they are processes of their own, which
`scripts.gpu_check_runner` runs. It needs the standard library alone.
"""

import argparse
import datetime
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.gpu_check_machine import gpu_names
from scripts.gpu_check_runner import Outcome, Stage, run_stages, write_report

ROOT = Path(__file__).resolve().parent.parent
# Below 9 minutes, with what starts and ends the run.
SECONDS = 525
# A dry run compiles on any machine, and emulates: it may take so much longer.
_DRY = 4
# XLA tries out no algorithms: programs compile faster, and the same products have the
# same bits in different programs.
_NO_AUTOTUNING = "--xla_gpu_autotune_level=0"
# cuBLAS and cuDNN alone: to try out Triton's products too takes longer than the check.
_NO_TRITON = "--xla_gpu_enable_triton_gemm=false"
# Without it a library that does not load would be measured as its plain jnp form.
_KERNELS = {"DCN_JAX_IMPLEMENTATION": "ffi"}


def stages(emulated: bool, only: str | None = None) -> list[Stage]:
    """All stages, in order; what matters most comes first.

    Those whose titles match the expression `only` have all time to themselves.
    """

    def stage(title, module, *arguments, least, most, environment=None, spare=False):
        command = [sys.executable, "-m", f"scripts.gpu_check_{module}", *arguments]
        environment = {"XLA_FLAGS": "", **(environment or {})}
        if emulated:
            command.append("--emulated")
        slower = _DRY if emulated else 1
        most = SECONDS if only is not None else most
        return Stage(title, command, least, most * slower, environment, spare)

    same = {"XLA_FLAGS": f"{_NO_AUTOTUNING} {_NO_TRITON}"}
    tests: dict[str, Any] = dict(environment=same)
    check: dict[str, Any] = dict(environment={**same, **_KERNELS})
    speed: dict[str, Any] = dict(environment={"XLA_FLAGS": _NO_TRITON, **_KERNELS})
    found = [
        stage("Machine", "machine", least=2, most=90),
        stage("Build", "build", least=20, most=180),
        # From here on, what tells most of kernels that no GPU has run.
        stage("Compilation", "compile", least=10, most=60, **check),
        stage("Every target", "calls", "check", least=10, most=60, **check),
        stage("Golden vectors", "tests", "golden", least=15, most=90, **tests),
        stage("Speed", "speed", least=60, most=130, **speed),
        stage("Parts of the backward pass", "parts", least=15, most=45, **speed),
        stage("Train step", "step", "check", least=20, most=80, **check),
        stage("Time of a train step", "step", "time", least=30, most=100, **speed),
        stage("Sanitizers", "sanitizer", least=30, most=100, **check),
        stage("Operator tests", "tests", "others", least=60, most=300, **tests),
        stage(
            "Generated layers",
            "tests",
            "generated",
            least=60,
            most=240,
            spare=True,
            **tests,
        ),
    ]
    return [s for s in found if only is None or re.search(only, s.title)]


def environment(emulated: bool, stand_ins: Path) -> dict[str, str]:
    """What all stages have in their environment."""
    added = {
        "JAX_PLATFORMS": "cpu" if emulated else "cuda,cpu",
        # Several processes share the GPU.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
    if emulated:
        added["XLA_OPS_EMULATE_CUDA"] = "1"
    if importlib.util.find_spec("jaxtyping") is None:
        (stand_ins / "jaxtyping.py").write_bytes(
            (ROOT / "scripts" / "gpu_check_jaxtyping.py").read_bytes()
        )
        path = [str(ROOT), str(stand_ins), os.environ.get("PYTHONPATH", "")]
        added["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return added


def head(emulated: bool, only: str | None, names: list[str]) -> str:
    """The first lines of the report."""
    command = "scripts/gpu_check.sh" + (" --emulated" if emulated else "")
    command += "" if only is None else f" --only='{only}'"
    revision = "unknown"
    if shutil.which("git") is not None:
        revision = (
            subprocess.run(
                ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
                capture_output=True,
                text=True,
            ).stdout.strip()
            or revision
        )
    lines = [
        f"# GPU check: {'dry run' if emulated else ', '.join(names) or 'no GPU'}",
        "",
        f"By `{command}`, {datetime.date.today().isoformat()}, revision {revision}.",
    ]
    if emulated:
        lines += [
            "",
            "**This is a dry run without a GPU: CUDA kernels compiled for the CPU, "
            "tiny sizes, few tests. It shows that the stages run. Its figures mean "
            "nothing.**",
        ]
    return "\n".join(lines)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulated", action="store_true", help="a dry run, no GPU")
    parser.add_argument(
        "--only", metavar="REGEX", help="stages whose titles it matches; no others"
    )
    parser.add_argument("report", nargs="?", type=Path)
    options = parser.parse_args()
    chosen = stages(options.emulated, options.only)
    if not chosen:
        titles = ", ".join(stage.title for stage in stages(options.emulated))
        parser.error(f"--only={options.only} matches none of: {titles}")
    names = [] if options.emulated else gpu_names()
    path = options.report
    if path is None:
        name = "dry-run" if options.emulated else (names or ["no-gpu"])[0]
        # Beside the report of all stages, not in its place.
        name += f" {options.only or ''}"
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        folder = "build" if options.emulated else "docs/benchmarks"
        path = ROOT / folder / f"{name}.md"
    path = path.absolute()
    os.chdir(ROOT)
    # So that stages are killed with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    with tempfile.TemporaryDirectory() as stand_ins:
        os.environ.update(environment(options.emulated, Path(stand_ins)))
        first = head(options.emulated, options.only, names)

        def report(outcomes: Sequence[Outcome]) -> None:
            write_report(path, first, outcomes)

        seconds = SECONDS * (_DRY if options.emulated else 1)
        outcomes = run_stages(chosen, seconds, report)
    print(path)
    return int(any(outcome.is_bad for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
