"""The stage that runs all kernels under compute-sanitizer.

    python -m scripts.gpu_check.sanitizer [--emulated]

The calls run once alone, which fills a cache of compiled programs, and then under all
tools at the same time: their figures do not matter.
"""

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.gpu_check.calls import LAST
from scripts.gpu_check.runner import CUT_SHORT, SKIPPED, seconds_left

_CALLS = [sys.executable, "-m", "scripts.gpu_check.calls"]
# Its exit status where it finds something.
_FOUND = 86
_OURS = ("--kernel-name", "kns=xla_ops")
_TOOLS = {
    # Our handlers see failed launches themselves; what XLA tries out is its own.
    "memcheck": (*_OURS, "--report-api-errors=no"),
    "racecheck": _OURS,
    "synccheck": _OURS,
    # It has to see who writes, so it watches all kernels.
    "initcheck": (),
}
# Our namespace as it is written, and as the linker writes it.
_OUR_NAME = re.compile(r"\bxla_ops::|7xla_ops")
# It counts as an error that it found.
_BROKEN = "Internal Sanitizer Error"
_FINDING = re.compile(r"Race|Invalid|Uninitialized|Barrier|hazard detected|xla_ops")
_RESERVE = 3


class Found(NamedTuple):
    """What a tool said.

    Attributes:
      state: "nothing found", "found something", "broke off" (the tool failed, before it
        found anything), "failed" or "stopped".
      calls: How many calls it saw end.
      lines: The tool's own first lines, those about our kernels before the others.
      names_ours: Whether any of its lines, shown or not, names a kernel of ours.
    """

    state: str
    calls: int
    lines: Sequence[str]
    names_ours: bool = False


def sanitize(tool: str, seconds: float, folder: Path, environment: dict) -> Found:
    """Runs the calls under a tool."""
    path = folder / tool
    command = ["compute-sanitizer", f"--tool={tool}", f"--error-exitcode={_FOUND}"]
    with path.open("w") as file:
        process = subprocess.Popen(
            [*command, *_TOOLS[tool], *_CALLS],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
            process.kill()
            process.wait()
    return judge(status, path.read_text(errors="replace"))


def judge(status: int | None, output: str) -> Found:
    """What an exit status (None: it was stopped) and the output mean."""
    lines = output.splitlines()
    calls = sum(line.startswith("called ") for line in lines)
    own = ours_first([line for line in lines if line.startswith("=========")])
    shown = [line[:160] for line in own[:40]]
    names_ours = any(map(_OUR_NAME.search, own))
    if status is None:
        return Found("stopped", calls, shown, names_ours)
    if status == 0 and f"called {LAST}" in lines:
        return Found("nothing found", calls, [])
    others = [line for line in own if _FINDING.search(line) and _BROKEN not in line]
    if _BROKEN in output and not others:
        return Found("broke off", calls, shown)
    if status == _FOUND:
        return Found("found something", calls, shown, names_ours)
    return Found("failed", calls, lines[-20:], names_ours)


def ours_first(lines: Sequence[str]) -> list[str]:
    """The findings, which empty lines part: those that name our kernels come first."""
    findings: list[list[str]] = [[]]
    for line in lines:
        if line.strip("= "):
            findings[-1].append(line)
        else:
            findings.append([])
    findings.sort(key=lambda finding: not any(map(_OUR_NAME.search, finding)))
    return [line for finding in findings for line in finding]


def is_of_others(tool: str, found: Found) -> bool:
    """Whether initcheck found something in XLA's kernels, and in none of ours."""
    return (
        tool == "initcheck"
        and found.state == "found something"
        and not found.names_ours
    )


def main() -> int:
    """Returns the exit status."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            # An allocation for each array, so that memcheck sees where it ends.
            "XLA_PYTHON_CLIENT_ALLOCATOR": "platform",
        }
        alone = subprocess.run(_CALLS, env=environment, stdout=sys.stderr).returncode
        if alone:
            print(f"The calls alone ended with exit status {alone}.")
            return 1
        if "--emulated" in sys.argv or shutil.which("compute-sanitizer") is None:
            print(
                "Skipped: compute-sanitizer, which is not here or has no GPU to watch; "
                "the calls that it would watch ended well."
            )
            return SKIPPED
        left = seconds_left(begin) - _RESERVE
        with concurrent.futures.ThreadPoolExecutor(len(_TOOLS)) as pool:
            results = {
                tool: pool.submit(sanitize, tool, left, Path(folder), environment)
                for tool in _TOOLS
            }
    status = 0
    print(
        "Calls of every kernel under compute-sanitizer, which watches those of "
        "`xla_ops`, and with initcheck XLA's too:\n"
    )
    for tool, result in results.items():
        found = result.result()
        print(f"- {tool}: {found.state}, {found.calls} calls")
        if found.lines:
            print("\n```text\n" + "\n".join(found.lines) + "\n```\n")
        if found.state == "stopped":
            print(f"\nSkipped: the rest of {tool}, stopped after {left:.0f} s.\n")
            status = 1 if found.names_ours else status or CUT_SHORT
        elif found.state == "broke off":
            print(f"\nSkipped: the rest of {tool}, which failed itself.\n")
            status = status or CUT_SHORT
        elif found.state != "nothing found" and not is_of_others(tool, found):
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
