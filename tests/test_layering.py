"""Imports go one way: xla_ops <- dcn_jax <- train <- tests, scripts."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What no file of a room may import.
FORBIDDEN = {
    "xla_ops": {"dcn_jax", "train", "tests", "flax", "optax", "torch"},
    "dcn_jax": {"train", "tests", "torch", "ml_collections", "grain", "absl"},
    "train": {"tests", "torch", "tensorflow"},
    "tests": {"torch"},
    "scripts": {"tests"},
}


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_room_imports_what_lies_above_it(room):
    assert files_of(room)
    for path in files_of(room):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        found = roots & FORBIDDEN[room]
        assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


@pytest.mark.parametrize("room", ["xla_ops", "dcn_jax", "train", "tests", "scripts"])
def test_no_private_jax(room):
    for path in files_of(room):
        found = [n for n in imported_modules(path) if n.startswith("jax._src")]
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_moving_jax_interfaces_are_touched_in_one_file():
    moving = ("jax.extend", "jax.interpreters", "jax.ffi")
    for path in files_of("xla_ops") + files_of("dcn_jax"):
        if path.name == "_call.py":
            continue
        found = [n for n in imported_modules(path) if n.startswith(moving)]
        assert not found, f"{path.relative_to(ROOT)} imports {found}"
