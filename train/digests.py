"""Digests of a folder's files, by which damage is found before anything is read."""

import hashlib
import json
from pathlib import Path

_NAME = "digests.json"


def write_digests(folder: Path) -> None:
    """Writes <folder>/digests.json: the SHA-256 of every file below, by its path."""
    digests = {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / _NAME).write_text(json.dumps(digests, indent=1) + "\n")


def find_damage(folder: Path) -> str | None:
    """Returns what is wrong with a folder of `write_digests`, or None if it is sound.

    Files that came later are not looked at. The first damage is told, as in
    "'model/manifest.ocdbt' is missing".
    """
    try:
        digests = json.loads((folder / _NAME).read_bytes())
    except FileNotFoundError:
        return f"{_NAME!r} is missing"
    except (OSError, ValueError, RecursionError):
        return f"{_NAME!r} cannot be read"
    if not (isinstance(digests, dict) and digests):
        return f"{_NAME!r} holds no digests"
    for name, expected in digests.items():
        # A name from a damaged list may be any text.
        shown = repr(name[:200])
        try:
            path = folder / name
            if not path.is_file():
                return f"{shown} is missing"
            if _digest(path) != expected:
                return f"{shown} has other bytes than were written"
        except (OSError, ValueError):
            return f"{shown} cannot be read"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
