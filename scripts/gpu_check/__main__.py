"""Runs the stages, and writes the report; see `scripts/gpu_check.sh`.

    scripts/gpu_check.sh [--emulated] [--only=REGEX] [REPORT]

Needs the standard library alone.
"""

import argparse
import datetime
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.gpu_check.machine import gpu_names
from scripts.gpu_check.runner import ROOT, Outcome, run_stages, write_report
from scripts.gpu_check.stages import DRY, SECONDS, environment, stages


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

        seconds = SECONDS * (DRY if options.emulated else 1)
        outcomes = run_stages(chosen, seconds, report)
    print(path)
    return int(any(outcome.is_bad for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
