"""The benchmarks' tables as Markdown, and their place in docs/benchmarks.md."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmark.case import PARTS, Case, Ratio, Table
from scripts.benchmark.memory import Scratch

BEGIN = "<!-- benchmark ops: begin -->"
END = "<!-- benchmark ops: end -->"

# Of each process, of each case: milliseconds by "candidate part".
Found = Sequence[Sequence[dict[str, float]]]


def timing_table(table: Table, found: Found) -> str:
    """A table of `scripts.benchmark.case`, without the columns that have no figures."""
    times = [name for name in table.candidates if _measured(found, name)]
    ratios = [
        ratio
        for ratio in table.ratios
        if _measured(found, ratio.over) and _measured(found, ratio.under)
    ]
    rows = []
    for number, case in enumerate(table.cases):
        processes = [process[number] for process in found]
        for part in PARTS:
            if any(f"{times[0]} {part}" in process for process in processes):
                cells = [_time(processes, name, part) for name in times]
                cells += [_ratio(processes, ratio, part, case) for ratio in ratios]
                rows.append([f"{case.title}, {part}", *cells])
    headings = ["milliseconds", *times, *(ratio.heading for ratio in ratios)]
    return section(table.title, table.text, headings, rows)


def memory_table(scratch: dict[str, Scratch]) -> str:
    """Scratch memory by title of the row."""
    headings = ["MiB", "XLA's plan", "peak RSS", "bound", "torchvision, peak RSS"]
    fields = [[s.xla, s.resident, s.bound, s.torchvision] for s in scratch.values()]
    if all(s.torchvision is None for s in scratch.values()):
        headings.pop()
        fields = [row[:-1] for row in fields]
    rows = [
        [title, *("" if b is None else f"{b / 2**20:.1f}" for b in row)]
        for title, row in zip(scratch, fields, strict=True)
    ]
    text = (
        "Forward and backward in float32, beyond arguments and results. The bound is "
        "16 MiB, the packed kernel, and a weight gradient for each image."
    )
    return section("Scratch memory of deform_conv2d", text, headings, rows)


def replace_section(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Puts `text` between the markers of a file.

    Raises:
      ValueError: The file has not exactly one pair of markers.
    """
    old = path.read_text()
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.S)
    new, count = pattern.subn(lambda _: f"{begin}\n\n{text}\n\n{end}", old)
    if count != 1:
        raise ValueError(f"{path} has {count} pairs of {begin} and {end}; expected 1")
    path.write_text(new)


def replace_family(path: Path, text: str, name: str, family: str) -> None:
    """Puts `text` where a file has the table of a family of processors.

    Tables of other families stay; the first of a family comes after them.

    Args:
      path: Of the file.
      text: Of the table.
      name: Of the benchmark.
      family: See `scripts.benchmark.timing.family`.

    Raises:
      ValueError: The file has no place for the benchmark's tables.
    """
    begin, end = (f"<!-- benchmark {name}, {family}: {w} -->" for w in ("begin", "end"))
    last = f"<!-- benchmark {name}: end -->"
    old = path.read_text()
    if begin not in old:
        if old.count(last) != 1:
            raise ValueError(f"{path} has {old.count(last)} of {last}; expected 1")
        path.write_text(old.replace(last, f"{begin}\n{end}\n\n{last}"))
    replace_section(path, text, begin, end)


def _measured(found: Found, name: str) -> bool:
    return any(
        f"{name} {part}" in case
        for process in found
        for case in process
        for part in PARTS
    )


def _time(processes: Sequence[dict[str, float]], name: str, part: str) -> str:
    key = f"{name} {part}"
    if key not in processes[0]:
        return ""
    value = statistics.median(process[key] for process in processes)
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _ratio(
    processes: Sequence[dict[str, float]], ratio: Ratio, part: str, case: Case
) -> str:
    over, under = f"{ratio.over} {part}", f"{ratio.under} {part}"
    if over not in processes[0] or under not in processes[0]:
        return ""
    value = case.factor * statistics.median(
        process[over] / process[under] for process in processes
    )
    return f"{value:.0%}" if ratio.percent else f"{value:.2f}"


def section(
    title: str, text: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """A heading, a paragraph and a table."""
    lines = [headings, ["---"] * len(headings), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {title}\n\n{text}\n\n{table}"
