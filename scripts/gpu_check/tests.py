"""The stages that run the operators' tests on the GPU.

    python -m scripts.gpu_check.tests golden|others|generated [--emulated]

pytest is stopped when time ends; what ran until then is reported.
"""

import collections
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.gpu_check.results import RESULTS
from scripts.gpu_check.runner import CUT_SHORT, seconds_left

FOLDER = "tests/xla_ops"
GENERATED = f"{FOLDER}/deform_conv/test_generated.py"
# Tests of the plain jnp form alone: it is the same everywhere.
_NO_REFERENCE = "not (reference- or -reference or [reference])"
_SELECTIONS = {
    "golden": ([FOLDER, f"--ignore={GENERATED}"], f"golden and {_NO_REFERENCE}"),
    "others": ([FOLDER, f"--ignore={GENERATED}"], f"not golden and {_NO_REFERENCE}"),
    "generated": ([GENERATED], "layers and not every_kind"),
}
# A dry run shows that pytest is started well, not what it finds.
_FEW = {
    "golden": (
        [f"{FOLDER}/deform_conv/test_deform_conv.py"],
        "golden and ffi-float32 and (basic or edge)",
    ),
    "others": (
        [
            f"{FOLDER}/deform_conv/test_deform_conv_errors.py",
            f"{FOLDER}/roi/test_roi_sharding.py",
        ],
        "shape or shard_map",
    ),
    "generated": ([GENERATED], "test_layers and [0]"),
}
# To stop pytest, and to write the report.
_RESERVE = 4
_WORKERS = 14


def without_hypothesis() -> list[str]:
    """Test files that cannot be imported where hypothesis is not installed."""
    if importlib.util.find_spec("hypothesis"):
        return []
    files = sorted(Path(FOLDER).rglob("test_*.py"))
    return [str(f) for f in files if "from hypothesis import" in f.read_text()]


def command(name: str, emulated: bool, ignored: Sequence[str]) -> list[str]:
    """The call of pytest."""
    where, expression = (_FEW if emulated else _SELECTIONS)[name]
    # The project's options name plugins that may not be here; warnings of versions
    # that nobody has seen yet are no failures.
    call = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-W", "default"]
    call += ["-p", "no:cacheprovider", "-p", "scripts.gpu_check.results"]
    call += ["--import-mode=importlib", "--continue-on-collection-errors"]
    call += [*where, "-k", expression, "-m", "not slow"]
    call += [f"--ignore={path}" for path in ignored]
    workers = min(_WORKERS, (os.cpu_count() or 1) - 2)
    if workers > 1 and not emulated and importlib.util.find_spec("xdist"):
        call += ["-n", str(workers), "--dist", "worksteal"]
    return call


def read_results(text: str) -> list[dict]:
    """Lines of `scripts.gpu_check.results`, without one that a kill cut off."""
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def summary(lines: Sequence[dict]) -> tuple[str, int, int]:
    """The results in Markdown, how many failed, and how many never ran."""
    count = max((line["tests"] for line in lines if "tests" in line), default=0)
    # A later line of a test, such as of its teardown, only counts if it failed.
    tests: dict[str, dict] = {}
    for line in lines:
        if "test" in line and (
            line["test"] not in tests or line["outcome"] == "failed"
        ):
            tests[line["test"]] = line
    by = collections.Counter(line["outcome"] for line in tests.values())
    missing = max(count - len(tests), 0)
    text = [
        f"{by['passed']} passed, {by['failed']} failed, {by['skipped']} skipped"
        + (f", {missing} did not run." if missing else ".")
    ]
    if missing:
        text.append(f"Skipped: {missing} tests, for want of time.")
    why = collections.Counter(
        line["why"] for line in tests.values() if line["outcome"] == "skipped"
    )
    text += [f"Skipped: {n} tests: {reason}" for reason, n in why.most_common()]
    failed = [line for line in tests.values() if line["outcome"] == "failed"]
    if failed:
        text.append("Failures, with the first lines of their messages:")
        text += [
            f"```text\n{_first(line['test'], 1)}\n{_first(line['why'], 12)}\n```"
            for line in failed
        ]
    slow = sorted(tests.values(), key=lambda line: -line["seconds"])[:5]
    if slow:
        text.append(
            "Slowest: "
            + ", ".join(
                f"`{_first(line['test'].split('::')[-1], 1)}` {line['seconds']:.0f} s"
                for line in slow
            )
        )
    return "\n\n".join(text), len(failed), missing


def _first(text: str, lines: int) -> str:
    return "\n".join(line[:160] for line in text.splitlines()[:lines])


def main() -> int:
    """Runs pytest, prints what it found, returns the exit status."""
    begin = time.monotonic()
    name, emulated = sys.argv[1], "--emulated" in sys.argv
    ignored = [] if name == "generated" else without_hypothesis()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results"
        path.touch()
        process = subprocess.Popen(
            command(name, emulated, ignored),
            env={**os.environ, RESULTS: str(path)},
            stdout=sys.stderr,
        )
        stopped = False
        try:
            status = process.wait(max(seconds_left(begin) - _RESERVE, 1))
        except subprocess.TimeoutExpired:
            stopped, status = True, 0
            process.kill()
            process.wait()
        lines = read_results(path.read_text(errors="replace"))
    if emulated:
        print("Skipped: all but a few tests, as this is a dry run.\n")
    if not emulated:
        print(
            "Products at the highest precision, XLA's autotuning off. Tests of the "
            "plain jnp form alone are left out.\n"
        )
    for file in ignored:
        print(f"Skipped: `{file}`, as hypothesis is not installed.\n")
    if stopped and not any("tests" in line for line in lines):
        print("Skipped: all, stopped while collecting.\n")
    text, failed, missing = summary(lines)
    print(text)
    if status and not failed:
        print(f"\npytest ended with exit status {status}.")
    if failed or status:
        return 1
    return CUT_SHORT if stopped or missing else 0


if __name__ == "__main__":
    sys.exit(main())
