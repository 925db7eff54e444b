"""Tables of names: ours beside somebody else's, read in both directions."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from dcn_jax.weights.layouts import LAYOUTS, Layout

# Names of a table are shorter; others are not looked at.
_MAX_NAME = 200
_FIELD = re.compile(r"\{(\w)(?:\+(\d))?\}")


class Row(NamedTuple):
    """A module, or several whose names differ in numbers, `{i}` or `{i+1}`."""

    ours: str
    theirs: str
    kind: str  # of LAYOUTS


class Place(NamedTuple):
    """Where a tensor belongs, and how it comes there."""

    name: str
    layout: Layout


class Table:
    """Translates names.

    Args:
      rows: Tried in this order.
      older: Further rows, for names that are read but no longer written.
    """

    def __init__(self, rows: Iterable[Row], older: Iterable[Row] = ()):
        rows = tuple(rows)
        self._ours = [_compiled(row.theirs, row.ours, row) for row in (*rows, *older)]
        self._theirs = [_compiled(row.ours, row.theirs, row) for row in rows]

    def ours(self, name: str) -> Place | None:
        """The path of our variable for somebody's name; None: there is none."""
        module, _, leaf = name.rpartition(".")
        for row, found in _matches(self._ours, module):
            for variable, (theirs, layout) in LAYOUTS[row.kind].items():
                if theirs == leaf:
                    return Place(f"{found}.{variable}", layout)
        return None

    def theirs(self, path: str) -> Place | None:
        """Somebody's name for the path of our variable; None: there is none."""
        module, _, leaf = path.rpartition(".")
        for row, found in _matches(self._theirs, module):
            if leaf in LAYOUTS[row.kind]:
                name, layout = LAYOUTS[row.kind][leaf]
                return Place(f"{found}.{name}", layout)
        return None


def _matches(rows, module):
    if len(module) > _MAX_NAME:
        return
    for pattern, template, row in rows:
        if match := pattern.fullmatch(module):
            numbers = {}
            for name, text in match.groupdict().items():
                letter, _, more = name.partition("_")
                numbers[letter] = int(text) - int(more)
            if min(numbers.values(), default=0) >= 0:
                yield row, _numbered(template, numbers)


def _numbered(template: str, numbers: dict[str, int]) -> str:
    """The template with its fields filled in."""
    return _FIELD.sub(lambda m: str(numbers[m[1]] + int(m[2] or 0)), template)


def _compiled(template: str, other: str, row: Row):
    """The template as a pattern, whose group `i_1` is the number i + 1."""
    parts = re.split(r"(\{[^}]*\})", template)
    pattern = "".join(
        f"(?P<{field[1]}_{field[2] or 0}>0|[1-9][0-9]{{0,2}})"
        if (field := _FIELD.fullmatch(part))
        else re.escape(part)
        for part in parts
    )
    return re.compile(pattern), other, row
