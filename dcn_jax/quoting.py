"""Somebody's text and values in a line for a terminal: bounded and printable.

What a file holds may be megabytes long, nested without end, or full of control
characters, which a terminal obeys.
"""

import itertools
import reprlib


def quoted(value: object, limit: int = 80) -> str:
    """A short form of `value`, as `repr` writes it.

    Takes time and memory that do not depend on the size of texts, bytes, integers,
    lists, tuples and dictionaries.

    Args:
      value: Anything; of other types `repr` is used.
      limit: The most characters. Of more, the middle is left out ("...").

    Returns:
      Printable characters, without line breaks.
    """
    return one_line(_Bounded(limit).repr(value), limit)


def one_line(text: str, limit: int = 1000) -> str:
    r"""`text` on one line, without quotes.

    Args:
      text: Line breaks and other white space become single spaces, other characters
        that are not printable their escapes ("\x1b").
      limit: The most characters. Of more, the middle is left out ("..."): both what a
        message is about and its reason remain.
    """
    text = " ".join(_cut(text, 8 * limit).split())
    # What was cut stays cut where the escapes are longer than the characters.
    return _cut("".join(map(_escaped, text)), limit)


def _escaped(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = max(0, limit - 3)
    start = (kept + 1) // 2
    return text[:start] + "..." + text[len(text) - (kept - start) :]


class _Bounded(reprlib.Repr):
    """`repr` of which no step is longer than the limit allows."""

    def __init__(self, limit: int):
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = 8
        self.maxstring = self.maxlong = self.maxother = limit

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out integers of thousands of digits.
        if x.bit_length() > 3 * self.maxlong:
            digits = int(x.bit_length() * 0.30103) + 1
            return f"<integer of about {digits} digits>"
        return repr(x)

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(_cut_bytes(x, self.maxstring))

    def repr_dict(self, x: dict, level: int) -> str:
        # The base class sorts all keys.
        if level <= 0:
            return "{...}"
        shown = [
            f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}"
            for k, v in itertools.islice(x.items(), self.maxdict)
        ]
        return "{" + ", ".join(shown + ["..."] * (len(x) > self.maxdict)) + "}"


def _cut_bytes(data: bytes, limit: int) -> bytes:
    return data if len(data) <= limit else data[:limit] + b"..."
