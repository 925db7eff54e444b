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


# What runs any task: it knows neither boxes nor detectors.
RUNS = (
    "loop", "step", "evaluator", "evaluate", "checkpoint", "predict", "inputs",
    "data.loader", "optim", "sharding", "skeleton", "sections", "metrics", "task",
)  # fmt: skip
# All that they may take from `dcn_jax`, none of which is a detector's.
NEUTRAL = {"quoting", "regular_file", "modules.offset_health"}


def modules_of_train(path: Path) -> set[str]:
    """The files of `train` that a file imports, as "data.loader"."""
    found = set()
    for name in imported_modules(path):
        parts = name.split(".")[1:] if name.startswith("train.") else []
        for end in range(1, len(parts) + 1):
            if ROOT.joinpath("train", *parts[:end]).with_suffix(".py").exists():
                found.add(".".join(parts[:end]))
            elif ROOT.joinpath("train", *parts[:end], "__init__.py").exists():
                found.add(".".join([*parts[:end], "__init__"]))
    return found


@pytest.mark.parametrize("module", RUNS)
def test_what_runs_a_task_knows_none(module):
    path = ROOT / "train" / f"{module.replace('.', '/')}.py"
    names = imported_modules(path)
    tasks = [n for n in names if n.startswith(("train.tasks", "train.evaluation"))]
    assert not tasks, f"{module} imports {tasks}"
    of_detectors = {
        name
        for name in names
        if name.startswith("dcn_jax")
        and not any(name.startswith(f"dcn_jax.{n}.") for n in NEUTRAL)
    }
    assert not of_detectors, f"{module} imports {of_detectors}"


def test_only_the_command_line_names_tasks():
    importers = {
        path.relative_to(ROOT / "train").as_posix()
        for path in files_of("train")
        if any(m.split(".")[0] == "tasks" for m in modules_of_train(path))
    }
    assert importers == {"cli.py", "tasks/__init__.py"}


def test_a_run_reaches_no_task_through_others():
    reached, new = set(), {"loop"}
    while new:
        reached |= new
        paths = (ROOT / "train" / f"{m.replace('.', '/')}.py" for m in new)
        new = set().union(*map(modules_of_train, paths)) - reached
    assert {"step", "evaluator", "data.loader", "data.__init__"} <= reached
    found = {m for m in reached if m.startswith(("tasks", "evaluation."))}
    assert not found
