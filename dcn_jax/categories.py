"""What a network's labels mean."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dcn_jax.quoting import one_line, quoted

# Name of the category of what belongs to no other.
BACKGROUND = "background"
# Characters of a name.
_MAX_NAME = 1000
_Colour = tuple[int, int, int]


class Category(NamedTuple):
    """What a label stands for."""

    id: int  # in the data set
    name: str
    colour: _Colour | None = None  # RGB, to draw it with; None: by the label


def as_categories(values: Iterable[Any], start: int) -> tuple[Category, ...]:
    """Takes names for categories, whose ids count from `start`.

    Raises:
      TypeError: A value is neither.
    """
    found = []
    for number, value in enumerate(values, start):
        if not isinstance(value, Category | str):
            raise TypeError(
                f"`categories` has {quoted(value)}; expected `Category`, or a name"
            )
        found.append(Category(number, value) if isinstance(value, str) else value)
    return tuple(found)


def categories_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Reads categories, {"id", "name"} and perhaps "colour" each.

    Raises:
      ValueError: A row is none.
    """
    return tuple(map(_category, rows))


def to_text(categories: Iterable[Category]) -> str:
    """Returns categories as JSON, without what is None."""
    rows = [
        {name: value for name, value in category._asdict().items() if value is not None}
        for category in categories
    ]
    return json.dumps(rows)


def from_text(text: str) -> tuple[Category, ...]:
    """Reads what `to_text` returned.

    Raises:
      ValueError: The text says something else.
    """
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = one_line(str(error), 200)
        raise ValueError(f"its categories are no JSON ({reason})") from None
    if not isinstance(rows, list):
        raise ValueError(f"its categories are {quoted(rows)}; expected a list")
    return categories_of(rows)


def numbered(count: int, start: int) -> tuple[Category, ...]:
    """Categories without names: "class 1", "class 2", ... for a start of 1."""
    numbers = range(start, start + count)
    return tuple(Category(number, f"class {number}") for number in numbers)


def _category(row: Any) -> Category:
    name = row.get("name") if isinstance(row, Mapping) else None
    if (
        not isinstance(name, str)
        or len(name) > _MAX_NAME
        or type(row.get("id")) is not int
    ):
        raise ValueError(
            f'a category is {quoted(row)}; expected "id", an integer, and "name", a '
            "text"
        )
    colour = row.get("colour")
    return Category(row["id"], name, None if colour is None else _colour(colour))


def _colour(value: Any) -> _Colour:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(type(part) is int and 0 <= part <= 255 for part in value)
    ):
        raise ValueError(
            f"a colour is {quoted(value)}; expected three integers from 0 to 255"
        )
    red, green, blue = value
    return red, green, blue
