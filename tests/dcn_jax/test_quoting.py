"""Somebody's text in a line for a terminal."""

import time

import pytest

from dcn_jax.quoting import one_line, quoted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("layer1.0", "'layer1.0'"),
        ("it's", '"it\'s"'),
        ("a\x1b[31m\nb\x00\u202e", r"'a\x1b[31m\nb\x00\u202e'"),
        (b"\x1b]0;", r"b'\x1b]0;'"),
        ([1, -2.5, None, True, "x"], "[1, -2.5, None, True, 'x']"),
        ({"a": [1, (2,)]}, "{'a': [1, (2,)]}"),
        (10**30, str(10**30)),
    ],
)
def test_short_values_are_written_as_repr_does(value, text):
    assert quoted(value) == text


def doubled(levels):
    value = ("\x1b",)
    for _ in range(levels):
        value = (value, value)
    return value


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        "\x1b[31m" * 10**6,
        "\n" * 10**7,
        b"\x1b" * 10**7,
        [1.5] * 10**6,
        [[["\x1b" * 99] * 99] * 99] * 99,
        dict.fromkeys(range(10**6), "\x00"),
        10**4000,
        -(10**100_000),
        doubled(200),
        endless(),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("limit", [20, 80])
def test_anything_is_bounded_and_printable(value, limit):
    start = time.process_time()
    text = quoted(value, limit)
    assert len(text) <= limit
    assert text.isprintable()
    # Not a step of it takes as long as the value is.
    assert time.process_time() - start < 0.5


def test_both_ends_of_a_long_value_are_shown():
    assert quoted("head" + "x" * 1000 + "tail", 20) == "'headxxx...xxxxtail'"
    assert quoted(10**4000) == "<integer of about 4001 digits>"


def test_one_line_keeps_what_is_printable():
    assert one_line("cannot read 'größe.pth':\n  reason") == (
        "cannot read 'größe.pth': reason"
    )
    assert one_line("a\x1b[31mb\x00\x7f\udc80") == r"a\x1b[31mb\x00\x7f\udc80"
    assert one_line("") == ""


@pytest.mark.parametrize("text", ["x" * 10**7, "\x1b" * 10**7, " \n" * 10**7])
def test_one_line_is_bounded(text):
    line = one_line("file.pth: " + text + ": reason", 100)
    assert len(line) <= 100
    assert line.isprintable()
    assert line.startswith("file.pth: ")
    assert line.endswith(": reason")
