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


def table(results: Sequence[Result], versions: str) -> str:
    """Of the programs that compiled, with what compiled them."""
    good = [result for result in results if result.figures is not None]
    headings = [_PROGRAM, *(cells(good[0]) if good else ()), _COLLECTIVES, _CALLS]
    rows = []
    for result in good:
        figures = result.figures
        assert figures is not None
        numbers = [_number(value) for value in cells(result).values()]
        collectives = ", ".join(f"{n} {k}" for k, n in figures.collectives.items())
        rows.append([result.title, *numbers, collectives, _calls(figures.calls)])
    lines = [headings, ["---"] * len(headings), *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"By {versions}.\n\n{body}"


def write(key: str, results: Sequence[Result], versions: str) -> None:
    """Replaces the table of a machine.

    Raises:
      ValueError: The document has no place for it.
    """
    replace_section(DOCUMENT, table(results, versions), *markers(key))


def read(key: str) -> tuple[str, dict[str, dict[str, float]]]:
    """What compiled the table of a machine, and its figures by program.

    Raises:
      ValueError: The document has no such table.
    """
    begin, end = map(re.escape, markers(key))
    found = re.search(f"{begin}(.*){end}", DOCUMENT.read_text(), re.S)
    if found is None:
        raise ValueError(f"{DOCUMENT} has no {markers(key)[0]}")
    versions = re.search(r"^By (.*)\.$", found[1], re.M)
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
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
