"""Imports go one way: xla_ops <- dcn_jax <- train <- tests, scripts; inside too."""

import ast
import functools
import inspect
from pathlib import Path

import pytest

import xla_ops

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("xla_ops", "dcn_jax", "train", "tests", "scripts")
# What no file of a room may import.
FORBIDDEN = {
    "xla_ops": {"dcn_jax", "train", "tests", "flax", "optax", "torch"},
    "dcn_jax": {"train", "tests", "torch", "ml_collections", "grain", "absl"},
    "train": {"tests", "torch", "tensorflow"},
    "tests": {"torch"},
    "scripts": {"tests"},
}
# What the folders and files of a room may import of it, beside themselves.
INNER = {
    "xla_ops": {
        "__init__": {"_jax", "deform_conv", "non_max_suppression", "roi"},
        "_jax": set(),
        "arguments": set(),
        "deform_conv": {"_jax", "arguments"},
        "non_max_suppression": {"_jax", "arguments"},
        "roi": {"_jax", "arguments"},
    },
    "dcn_jax": {
        "__init__": {"inference", "modules", "networks", "torch_layout"},
        "categories": {"quoting"},
        "quoting": set(),
        "torch_layout": set(),
        "regular_file": {"quoting"},
        "images": {"quoting", "regular_file"},
        "padding": set(),
        "losses": set(),
        "boxes": set(),
        "modules": {"padding", "quoting", "torch_layout"},
        "backbones": {"modules", "padding"},
        "necks": {"modules", "padding"},
        "trunk": {"backbones", "necks", "padding"},
        "detection": {"boxes", "losses", "modules", "padding", "trunk"},
        "segmentation": {"losses", "modules", "padding", "trunk"},
        "explain": {"backbones", "modules"},
        "inference": {
            *("categories", "detection", "images", "networks", "quoting"),
            *("segmentation", "weights"),
        },
        "networks": {
            *("backbones", "detection", "modules", "necks", "segmentation", "trunk"),
        },
        "weights": {
            *("backbones", "boxes", "detection", "modules", "networks", "trunk"),
            *("categories", "images", "quoting", "regular_file", "torch_layout"),
        },
    },
}
# What of `train` may know a task; the rest runs any, and knows neither boxes nor
# detectors.
KNOWING = {
    *("cli.py", "tables", "tasks", "evaluation", "configs"),
    # Measures by the size of objects, and refuses tasks without boxes.
    "effective_dilation.py",
}
# All that they may take from `dcn_jax`, none of which is a detector's.
NEUTRAL = (
    *("dcn_jax.quoting", "dcn_jax.regular_file", "dcn_jax.images", "dcn_jax.explain"),
    *("dcn_jax.categories", "dcn_jax.inference.predictor"),
)
TASKS = (
    *("train.tasks", "train.evaluation"),
    *("train.configs._detection", "train.configs._segmentation"),
)
# jax's interfaces that still move, and where they may be touched.
MOVING = ("jax.extend", "jax.interpreters", "jax.ffi")
MOVING_ROOMS, MOVING_FOLDER = ("xla_ops", "dcn_jax", "train"), "xla_ops/_jax"


def files_of(root: Path, room: str) -> list[Path]:
    return sorted((root / room).rglob("*.py"))


@functools.cache
def nodes_of(text: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(text)))


def imported_names(root: Path, path: Path) -> set[str]:
    """Full names of what a file imports, wherever it does so."""
    package = path.relative_to(root).parent.parts
    names = set()
    for node in nodes_of(path.read_text()):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = list(package[: len(package) - node.level + 1]) if node.level else []
            parts += [node.module] if node.module else []
            names.update(".".join([*parts, alias.name]) for alias in node.names)
    return names


def jax_attributes(path: Path) -> set[str]:
    """What a file names of jax by attributes, such as "jax.ffi.ffi_call"."""
    return {
        ast.unparse(node)
        for node in nodes_of(path.read_text())
        if isinstance(node, ast.Attribute) and root_of(node) == "jax"
    }


def root_of(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def begins_with(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def upward_imports(root: Path) -> list[str]:
    """What imports a room that it must not know."""
    return [
        f"{path.relative_to(root)} imports {name}"
        for room, forbidden in FORBIDDEN.items()
        for path in files_of(root, room)
        for name in sorted(imported_names(root, path))
        if name.split(".")[0] in forbidden
    ]


def inner_imports(root: Path) -> list[str]:
    """What imports a part of its own room against `INNER`, or has no row there."""
    found = []
    for room, allowed in INNER.items():
        for path in files_of(root, room):
            part = path.relative_to(root / room).with_suffix("").parts[0]
            if part not in allowed:
                found.append(f"{path.relative_to(root)} has no row in INNER")
                continue
            for name in sorted(imported_names(root, path)):
                first, *rest = name.split(".")
                if first == room and rest[:1] != [part]:
                    known = rest and rest[0] in allowed[part]
                    if not known:
                        found.append(f"{path.relative_to(root)} imports {name}")
    return found


def private_jax(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} uses {name}"
        for room in ROOMS
        for path in files_of(root, room)
        for name in sorted(imported_names(root, path) | jax_attributes(path))
        if begins_with(name, ("jax._src",))
    ]


def moving_jax(root: Path) -> list[str]:
    """What touches an interface of jax that moves, outside of the folder for that."""
    return [
        f"{path.relative_to(root)} uses {name}"
        for room in MOVING_ROOMS
        for path in files_of(root, room)
        if not path.is_relative_to(root / MOVING_FOLDER)
        for name in sorted(imported_names(root, path) | jax_attributes(path))
        if begins_with(name, MOVING)
    ]


def runs_that_know_a_task(root: Path) -> list[str]:
    """What runs any task and imports one, or what is a detector's."""
    return [
        f"{path.relative_to(root)} imports {name}"
        for path in files_of(root, "train")
        if path.relative_to(root / "train").parts[0] not in KNOWING
        for name in sorted(imported_names(root, path))
        if begins_with(name, TASKS)
        or (begins_with(name, ("dcn_jax",)) and not begins_with(name, NEUTRAL))
    ]


CHECKS = [
    upward_imports,
    inner_imports,
    private_jax,
    moving_jax,
    runs_that_know_a_task,
]


@pytest.mark.parametrize("check", CHECKS)
def test_imports(check):
    assert all(files_of(ROOT, room) for room in ROOMS)
    assert check(ROOT) == []


# A file, a line to put into it, and what the check says of it.
TURNED_ROUND = [
    (upward_imports, "xla_ops/roi/bilinear.py", "from dcn_jax import trunk", "dcn_jax"),
    (upward_imports, "dcn_jax/trunk.py", "import train.loop", "train.loop"),
    (inner_imports, "xla_ops/roi/bilinear.py", "import xla_ops.deform_conv", "xla_ops"),
    (inner_imports, "xla_ops/roi/bilinear.py", "from .. import deform_conv", "xla_ops"),
    (inner_imports, "xla_ops/roi/bilinear.py", "from xla_ops import nms", "xla_ops.n"),
    (inner_imports, "xla_ops/_jax/lowering.py", "from xla_ops.roi import x", "xla_ops"),
    (inner_imports, "xla_ops/arguments.py", "from xla_ops._jax import x", "xla_ops._j"),
    (inner_imports, "xla_ops/other/new.py", "import jax", "has no row"),
    (private_jax, "scripts/run.py", "def f():\n    import jax._src.core", "jax._src."),
    (inner_imports, "dcn_jax/modules/roi_pool.py", "import dcn_jax.detection", "dcn_j"),
    (
        inner_imports,
        "dcn_jax/boxes/coding.py",
        "from dcn_jax.trunk import Trunk",
        "dcn",
    ),
    (runs_that_know_a_task, "train/loop.py", "import train.tasks.detection", "train.t"),
    (runs_that_know_a_task, "train/step.py", "from dcn_jax.boxes import x", "dcn_jax."),
    (moving_jax, "xla_ops/roi/bilinear.py", "from jax.extend import core", "jax.ext"),
    (moving_jax, "xla_ops/roi/bilinear.py", "from jax import ffi", "jax.ffi"),
    (
        moving_jax,
        "dcn_jax/trunk.py",
        "import jax\njax.ffi.ffi_call('x')",
        "jax.ffi.ffi",
    ),
]


@pytest.mark.parametrize(("check", "file", "line", "said"), TURNED_ROUND)
def test_an_arrow_that_is_turned_round_is_found(check, file, line, said, tmp_path):
    sound = {
        "xla_ops/__init__.py": "from xla_ops.roi.bilinear import roi_align",
        "xla_ops/_jax/lowering.py": "import jax.ffi\nfrom xla_ops._jax import sharding",
        "xla_ops/arguments.py": "import jax",
        "xla_ops/roi/bilinear.py": "from xla_ops._jax import align\nfrom . import cuda",
        "dcn_jax/trunk.py": "from xla_ops import nms",
        "train/loop.py": "from dcn_jax.quoting import one_line\nfrom train import step",
        "train/step.py": "import jax",
        "scripts/run.py": "import train, torch",
    }
    for name, text in sound.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [fault for every in CHECKS for fault in every(tmp_path)] == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(f"{sound.get(file, '')}\n{line}\n")
    faults = check(tmp_path)
    assert faults and all(fault.startswith(file) for fault in faults)
    assert any(said in fault for fault in faults)


def test_no_module_is_named_as_a_function_of_the_package():
    """Import order would decide which of the two a name is."""
    functions = {n for n in xla_ops.__all__ if inspect.isfunction(getattr(xla_ops, n))}
    assert functions == set(xla_ops.__all__)
    names = {
        part
        for path in files_of(ROOT, "xla_ops")
        for part in path.relative_to(ROOT / "xla_ops").with_suffix("").parts
    }
    assert names & functions == set()


def test_only_command_lines_name_tasks():
    importers = {
        path.relative_to(ROOT / "train").as_posix()
        for path in files_of(ROOT, "train")
        if any(begins_with(n, ("train.tasks",)) for n in imported_names(ROOT, path))
        and path.parent.name != "tasks"
    }
    assert importers == {"cli.py", "tables/__main__.py"}
