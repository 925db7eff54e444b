"""What the runs of an ablation study left, as a table."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# Section of evaluation.json -> the scores of the table, that of choices first.
SCORES = {
    "bbox": ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100"),
    "pixels": ("mIoU",),
}


class Result(NamedTuple):
    """Of one run.

    Attributes:
      scores: On the test images, by the names of `SCORES`.
      val: The first of them, on the images that choices are made by.
      offset: Mean size of the offsets at the end, in pixels of their map; None where
        nothing deforms.
      seconds: Of the median step.
    """

    scores: dict[str, float]
    val: float
    offset: float | None
    seconds: float


def read_result(folder: Path) -> Result | None:
    """Returns the result of a run's folder; None where it is not finished."""
    judged, own = folder / "test" / "evaluation.json", folder / "evaluation.json"
    if not (judged.exists() and own.exists()):
        return None
    found = json.loads(judged.read_text())
    config = json.loads((folder / "config.json").read_text())
    # A run that was stopped leaves a checkpoint too.
    if found["step"] != config["steps"]:
        return None
    (section,) = SCORES.keys() & found.keys()
    names = SCORES[section]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    offsets = [r["offset/mean_abs"] for r in records if "offset/mean_abs" in r]
    rates = [r["images/s"] for r in records if "images/s" in r]
    return Result(
        {name: found[section][name] for name in names},
        json.loads(own.read_text())[section][names[0]],
        offsets[-1] if offsets else None,
        config["batch_size"] / statistics.median(rates),
    )


def table(
    results: Mapping[str, Sequence[Result]], parameters: Mapping[str, int]
) -> list[str]:
    """Returns the lines of the table: mean and spread over seeds.

    Args:
      results: Row -> its finished runs, at least one.
      parameters: Row -> how many the network has.
    """
    scores = list(next(iter(results.values()))[0].scores)
    names = [f"{scores[0]} val", *scores]
    lines = [
        "| row | seeds | "
        + " | ".join(names)
        + " | offsets, px | parameters | s a step |",
        "| --- |" + " --- |" * (len(names) + 4),
    ]
    for row, runs in results.items():
        columns = [[run.val for run in runs]]
        columns += [[run.scores[name] for run in runs] for name in scores]
        offsets = [run.offset for run in runs if run.offset is not None]
        cells = [
            row,
            str(len(runs)),
            *map(_spread, columns),
            f"{statistics.mean(offsets):.2f}" if offsets else "-",
            f"{parameters[row]:,}",
            f"{statistics.median(run.seconds for run in runs):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    """The mean, and how far the lowest and the highest are from it."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} (-{mean - min(values):.3f}, +{max(values) - mean:.3f})"
