"""Runs stages one after another within a time, and keeps a report of them.

Needs the standard library alone. A stage is a process: what it writes to standard
output, in Markdown, is its part of the report, so that a stage that is killed leaves
what it had. Neither an exception nor a stage that hangs keeps the next from running.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# Exit statuses of a stage beside 0 and failure.
CUT_SHORT = 75
SKIPPED = 77
# In its environment: the seconds that it may run.
SECONDS = "GPU_CHECK_SECONDS"

_STATES = {0: "passed", CUT_SHORT: "cut short", SKIPPED: "skipped"}
_BAD = ("failed", "killed")
# Lines of standard error that a failure shows.
_SHOWN = 40


class Stage(NamedTuple):
    """A process that makes a part of the report.

    Attributes:
      title: Heading of that part.
      command: The process.
      least: Seconds. With less time left the stage does not start, and the stages
        before it leave it so much, but for `spare`.
      most: Seconds after which it is killed.
      environment: Added to this process's.
      spare: True for a stage that has what the others leave: they keep nothing for it.
    """

    title: str
    command: Sequence[str]
    least: float
    most: float
    environment: dict[str, str] = {}  # noqa: RUF012
    spare: bool = False


class Outcome(NamedTuple):
    """What became of a stage.

    Attributes:
      title: See `Stage`.
      state: "passed", "failed", "skipped", "cut short" (what ran is well, time ended),
        "killed" (after `Stage.most`, or at the end of all time), "not started",
        "running".
      seconds: That it took.
      text: Its part of the report.
    """

    title: str
    state: str
    seconds: float
    text: str

    @property
    def is_bad(self) -> bool:
        """Whether something is wrong, or may be."""
        return self.state in _BAD


def run_stages(
    stages: Sequence[Stage],
    seconds: float,
    report: Callable[[Sequence[Outcome]], None],
) -> list[Outcome]:
    """Runs the stages, and calls `report` with all outcomes whenever one is added."""
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for number, stage in enumerate(stages):
        left = end - time.monotonic()
        if left < stage.least:
            text = f"Skipped: {left:.0f} s were left, and it takes {stage.least:.0f}."
            outcomes.append(Outcome(stage.title, "not started", 0, text))
        else:
            report([*outcomes, Outcome(stage.title, "running", 0, "")])
            later = stages[number + 1 :]
            kept = sum(other.least for other in later if not other.spare)
            limit = min(stage.most, max(left - kept, stage.least))
            print(f"{stage.title} (at most {limit:.0f} s) ...", file=sys.stderr)
            outcomes.append(run_stage(stage, limit))
            last = outcomes[-1]
            print(f"  {last.state} after {last.seconds:.0f} s", file=sys.stderr)
        report(outcomes)
    return outcomes


def run_stage(stage: Stage, limit: float) -> Outcome:
    """Runs a stage, for `limit` seconds at most."""
    begin = time.monotonic()
    # Unbuffered: what a stage said before it was killed is there.
    given = {SECONDS: f"{limit:.1f}", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                stage.command,
                env={**os.environ, **stage.environment, **given},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(stage.title, "failed", 0, f"It could not start: {error}")
        try:
            state = _STATES.get(process.wait(limit), "failed")
        except subprocess.TimeoutExpired:
            state = "killed"
        finally:
            # What it started goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - begin
        parts = [_text(output).strip()]
        if state == "killed":
            parts.append(f"Skipped: the rest. Killed after {seconds:.0f} s.")
        if state in _BAD:
            last = "\n".join(_text(errors).splitlines()[-_SHOWN:])
            parts.append(f"End of its standard error:\n\n```text\n{last}\n```")
    # Paths within the checkout; where it lies says nothing to readers.
    text = "\n\n".join(filter(None, parts)).replace(f"{ROOT}/", "")
    return Outcome(stage.title, state, seconds, text)


def _text(file) -> str:
    file.seek(0)
    # A killed process may have left half a character.
    return file.buffer.read().decode(errors="replace")


def write_report(path: Path, head: str, outcomes: Sequence[Outcome]) -> None:
    """Replaces the report by one of the outcomes so far."""
    lines = [head, "", "| stage | outcome | seconds |", "| --- | --- | --- |"]
    lines += [f"| {o.title} | {o.state} | {o.seconds:.0f} |" for o in outcomes]
    total = sum(o.seconds for o in outcomes)
    lines += [f"| all | | {total:.0f} |"]
    skipped = [
        f"- {o.title}: {line.removeprefix('Skipped: ')}"
        for o in outcomes
        for line in o.text.splitlines()
        if line.startswith("Skipped: ")
    ]
    if skipped:
        lines += ["", "What was skipped, and why:", "", *skipped]
    for o in outcomes:
        lines += ["", f"## {o.title}", "", o.text]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never half a report, even if this process is killed.
    new = path.with_name(path.name + ".new")
    new.write_text("\n".join(lines).rstrip() + "\n")
    new.replace(path)


def seconds_left(begin: float) -> float:
    """Of the stage that asks, which began at `time.monotonic()` = `begin`."""
    return float(os.environ.get(SECONDS, "inf")) - (time.monotonic() - begin)
