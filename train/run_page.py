"""index.html in the folder of a run: what it is and what it has reached, on one page.

It needs no server, and shows files that lie beside it: keep the folder together.
"""

import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from train.announcements import LOG_FILE
from train.evaluator import figures_of
from train.metrics import read_metrics
from train.run_config import config_path
from train.whole_file import write_whole

_TEMPLATE = Path(__file__).with_name("run_page.html")
_PER_CLASS = "_per_class"
# What of an evaluation is no group of scores.
_NO_SCORES = ("step", "data", "figures")
# Of figures that runs have.
_TITLES = {
    "precision_recall": "Precision-recall curves",
    "confusion": "Confusion matrix",
    "offsets": "Offsets",
}
# How much of the log is shown, and looked at for that.
_LOG_LINES, _LOG_BYTES = 60, 1 << 16


def write_page(workdir: Path) -> None:
    """Writes the page of what lies in the folder of a run now.

    Args:
      workdir: The folder, with at least config.json in it.

    Raises:
      OSError: A file cannot be read or written.
      ValueError: A file is damaged.
    """
    config = _read(config_path(workdir))
    evaluation = _read(workdir / "evaluation.json")
    page = Template(_TEMPLATE.read_text()).substitute(
        title=html.escape(str(config.get("name", workdir.name))),
        status=html.escape(_status(workdir, evaluation)),
        scores=_scores(evaluation),
        curves=_curves(workdir),
        pictures=_pictures(workdir),
        by_class=_by_class(evaluation),
        figures=_figures(workdir, evaluation),
        log=_log(workdir),
        settings=_table(_flat(config)),
    )
    write_whole(workdir / "index.html", page)


def _read(path: Path) -> dict[str, Any]:
    """What a file of JSON holds; nothing where there is no file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _status(workdir: Path, evaluation: Mapping[str, Any]) -> str:
    path = workdir / "metrics.jsonl"
    steps = [r for r in (read_metrics(path) if path.exists() else []) if "loss" in r]
    sentences = []
    if steps:
        sentences.append(
            f"Step {steps[-1]['step']}, loss {_number(steps[-1]['loss'])}."
        )
    if evaluation:
        data = evaluation["data"]
        sentences.append(
            f"Evaluated at step {evaluation['step']} on {data['images']} images of "
            f"{data['name']}, {data['split']}."
        )
    return " ".join(sentences) or "Nothing was logged yet."


def _scores(evaluation: Mapping[str, Any]) -> str:
    parts = []
    for group, scores in evaluation.items():
        if group not in _NO_SCORES and not group.endswith(_PER_CLASS):
            rows = [(name, _number(value)) for name, value in scores.items()]
            parts.append(f"<h2>{html.escape(group)}</h2>\n{_table(rows)}")
    return "\n".join(parts)


def _by_class(evaluation: Mapping[str, Any]) -> str:
    groups = {g: s for g, s in evaluation.items() if g.endswith(_PER_CLASS)}
    if not groups:
        return ""
    titles = [g.removesuffix(_PER_CLASS).replace("_", " ") for g in groups]
    head = "".join(f'<th class="number">{html.escape(title)}</th>' for title in titles)
    lines = [f"<tr><th>class</th>{head}</tr>"]
    for name in dict.fromkeys(name for scores in groups.values() for name in scores):
        values = [scores.get(name) for scores in groups.values()]
        cells = "".join(f'<td class="number">{_number(value)}</td>' for value in values)
        bar = f'<meter min="0" max="1" value="{values[0] or 0}"></meter>'
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}<td>{bar}</td></tr>")
    return "<h2>By class</h2>\n<table>\n" + "\n".join(lines) + "\n</table>"


def _curves(workdir: Path) -> str:
    if not (workdir / "curves.png").exists():
        return ""
    return '<h2>Curves</h2>\n<img src="curves.png" alt="losses, offsets, evaluations">'


def _figures(workdir: Path, evaluation: Mapping[str, Any]) -> str:
    parts = []
    for name in figures_of(evaluation):
        if (workdir / name).exists():
            stem = Path(name).stem
            title = _TITLES.get(stem, stem.replace("_", " "))
            parts.append(
                f"<h2>{html.escape(title)}</h2>\n"
                f'<a href="{name}"><img src="{name}" alt="{html.escape(title)}"></a>'
            )
    return "\n".join(parts)


def _pictures(workdir: Path) -> str:
    # Those of the evaluation; any other is somebody's own.
    paths = sorted(
        path
        for path in (workdir / "pictures").glob("*.png")
        if re.fullmatch(r"\d{3,}", path.stem, re.ASCII)
    )
    if not paths:
        return ""
    shown = "\n".join(
        f'<a href="pictures/{path.name}"><img loading="lazy" src="pictures/{path.name}"'
        f' alt="image {path.stem}: ground truth, and what is predicted of it"></a>'
        for path in paths
    )
    return f'<h2>Predictions</h2>\n<div class="pictures">\n{shown}\n</div>'


def _log(workdir: Path) -> str:
    path = workdir / LOG_FILE
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
    text = html.escape("\n".join(lines))
    return (
        f"<h2>Log</h2>\n<details><summary>The last lines of {LOG_FILE}</summary>\n"
        f"<pre>{text}</pre>\n</details>"
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values."""
    lines = [
        f'<tr><th>{html.escape(name)}</th><td class="number">{html.escape(value)}</td>'
        "</tr>"
        for name, value in rows
    ]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _flat(config: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", json.dumps(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
