"""The tables of docs/aot.md: written from results, and read again."""

import re
from collections.abc import Sequence
from pathlib import Path

from scripts.aot.figures import OURS
from scripts.aot.judge import MUST_NOT_GROW, cells
from scripts.aot.worker import Result
from scripts.benchmark.markdown import replace_section

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "aot.md"
_LIBRARIES = {"__cublas": "cuBLAS", "__cudnn": "cuDNN"}
_PROGRAM = "program"
_CALLS = "calls"
_COLLECTIVES = "collectives"


def markers(key: str) -> tuple[str, str]:
    """What stands around the table of a machine."""
    return f"<!-- aot {key}: begin -->", f"<!-- aot {key}: end -->"


def table(results: Sequence[Result], versions: str, kept: Sequence[str] = ()) -> str:
    """Of the programs that compiled, with what compiled them.

    Args:
      results: Of the programs.
      versions: What compiled them.
      kept: Lines of an older table, for programs that are not among the results.
    """
    good = [result for result in results if result.figures is not None]
    headings = [_PROGRAM, *(cells(good[0]) if good else ()), _COLLECTIVES, _CALLS]
    rows = []
    for result in good:
        figures = result.figures
        assert figures is not None
        numbers = [_number(value) for value in cells(result).values()]
        collectives = ", ".join(f"{n} {k}" for k, n in figures.collectives.items())
        rows.append([result.title, *numbers, collectives, _calls(figures.calls)])
    lines = [f"| {' | '.join(line)} |" for line in rows]
    head = [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings))]
    return f"By {versions}.\n\n" + "\n".join([*head, *kept, *lines])


def write(
    key: str, results: Sequence[Result], versions: str, *, whole: bool = True
) -> None:
    """Replaces the table of a machine, or the lines of some programs in it.

    Args:
      key: Of the machine.
      results: Of the programs.
      versions: What compiled them.
      whole: Whether programs that are not among the results lose their lines.

    Raises:
      ValueError: The document has no place for it, or the lines that stay were compiled
        by something else.
    """
    kept: list[str] = []
    if not whole:
        by, rows = _rows(key)
        if by not in ("", versions):
            raise ValueError(
                f"docs/aot.md is by {by}, this by {versions}: --write without --only"
            )
        titles = {result.title for result in results}
        kept = [line for title, line in rows.items() if title not in titles]
    replace_section(DOCUMENT, table(results, versions, kept), *markers(key))


def _rows(key: str) -> tuple[str, dict[str, str]]:
    """What compiled the table of a machine, and its lines by program."""
    found = _section(key)
    versions = re.search(r"^By (.*)\.$", found, re.M)
    lines = [line for line in found.splitlines() if line.startswith("|")][2:]
    rows = {line[1:].split("|")[0].strip(): line for line in lines}
    return (versions[1] if versions else ""), rows


def _section(key: str) -> str:
    begin, end = map(re.escape, markers(key))
    found = re.search(f"{begin}(.*){end}", DOCUMENT.read_text(), re.S)
    if found is None:
        raise ValueError(f"{DOCUMENT} has no {markers(key)[0]}")
    return found[1]


def read(key: str) -> tuple[str, dict[str, dict[str, float]]]:
    """What compiled the table of a machine, and its figures by program.

    Raises:
      ValueError: The document has no such table.
    """
    found = _section(key)
    versions = re.search(r"^By (.*)\.$", found, re.M)
    lines = [line for line in found.splitlines() if line.startswith("|")]
    if versions is None or not lines:
        return "", {}
    headings, _, *rows = (
        [cell.strip() for cell in line[1:-1].split("|")] for line in lines
    )
    recorded = {}
    for row in rows:
        by_heading = dict(zip(headings, row, strict=True))
        recorded[by_heading[_PROGRAM]] = {
            heading: float(by_heading[heading]) for heading in MUST_NOT_GROW
        }
    return versions[1], recorded


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _calls(calls: dict[str, int]) -> str:
    """Ours by name; those of a library together."""
    counted: dict[str, int] = {}
    for target, count in calls.items():
        library = _LIBRARIES.get(target.split("$")[0])
        name = library or (target.removeprefix(OURS) if OURS in target else target)
        counted[name] = counted.get(name, 0) + count
    return ", ".join(f"{count} {name}" for name, count in counted.items())
