"""What a compiled program sends between devices."""

import re

# Anything that moves pieces of arrays between devices; an all-reduce adds them.
_MOVES = re.compile(
    r" (all-gather|all-to-all|collective-permute|collective-broadcast)(-start)?\("
)


def moves(text: str) -> list[str]:
    """The lines of a program that move arrays."""
    return [line for line in text.splitlines() if _MOVES.search(line)]
