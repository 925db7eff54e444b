"""Measures the effective dilation of a detector's deformable convolutions.

`python -m train.effective_dilation --workdir=DIR [--output=DIR]` runs
the newest checkpoint of a run over the images of its evaluation and prints, as Table 2
of the DCNv1 paper, mean and deviation of each layer for filters on small, medium and
large objects and on the background; see `dcn_jax.explain.effective_dilation`. The same
is written to effective_dilation.json in DIR, or else in the run's folder.

Objects are those that training learns from, at most `data.max_boxes` of an image; on
others, as crowds, lies background. `--size_bounds=32,96` are the sides of squares:
smaller objects, by the area of their box in the annotated image, are small and medium.
They are COCO's. Those of the paper are not known, so a table beside its own is a guess.
"""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

import contextlib
import copy
import json
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from dcn_jax.explain import GROUPS, SIZE_BOUNDS, Moments, effective_dilation, merge
from dcn_jax.quoting import quoted
from train import cli, conventions, inputs, interrupt, sharding
from train.config_dict import ConfigDict
from train.evaluate import load_variables, output_folder
from train.skeleton import Skeleton, Variables
from train.task import Task
from train.whole_file import write_whole

_log = logging.getLogger("train")

_BOUNDS = flags.DEFINE_list(
    "size_bounds",
    [f"{bound:g}" for bound in SIZE_BOUNDS],
    "Sides of squares as large as the smallest medium and the smallest large object.",
)


def measure_run(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    output: Path | None = None,
    bounds: Sequence[float] = SIZE_BOUNDS,
) -> None:
    """Measures the newest checkpoint of a run, prints and writes the result.

    Args:
      config: The configuration of the run.
      workdir: Its folder.
      task: Its task.
      output: Folder for the result; None is the run's.
      bounds: Of small and medium objects.

    Raises:
      OSError: There is no checkpoint, or a file cannot be read or written.
      ValueError: The configuration, the data or the checkpoint is at fault; the task
        knows no boxes, or the network has no deformable convolution.
    """
    if not {"boxes", "valid"} <= set(task.Batch._fields):
        raise ValueError(
            f"`task` is {config.task!r}, whose ground truth has no boxes; expected a "
            "task that has, as 'detection'."
        )
    config = conventions.kept(config, workdir)
    mesh = sharding.make_mesh(config.mesh.model)
    sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
    source = inputs.open_source(config, task, config.data.eval_split)
    step, skeleton, variables, _ = load_variables(
        config, task, workdir, mesh, source.categories
    )
    if not task.usable(source).any():
        raise ValueError(
            f"`data.eval_split` is {config.data.eval_split!r}, which has no ground "
            "truth; expected a split with objects."
        )
    layers = _measure(config, task, source, skeleton, variables, mesh, bounds)
    names = {path: paper_name(path, skeleton.variables) for path in layers}
    record = {
        "step": step,
        "data": inputs.describe_data(config, source),
        "size_bounds": list(bounds),
        "layers": {
            path: {"name": names[path], **_numbers(moments)}
            for path, moments in layers.items()
        },
    }
    folder = output or workdir
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2) + "\n"
    write_whole(folder / "effective_dilation.json", text)
    print(table(layers, names, bounds))
    _log.info("effective dilation of step %d: see %s", step, folder)


def _measure(
    config: ConfigDict,
    task: Task,
    source: Any,
    skeleton: Skeleton,
    variables: Variables,
    mesh: Mesh,
    bounds: Sequence[float],
) -> dict[str, Moments]:
    """Returns path of a layer -> moments over all images, in float64.

    Raises:
      ValueError: The network has no deformable convolution.
    """

    def measure(variables, images, sizes, counted, original_sizes, boxes, valid):
        # Boxes were annotated on the images before they were resized.
        sides = (boxes[..., 2:] - boxes[..., :2])[..., ::-1]
        scales = sizes.astype(boxes.dtype) / original_sizes.astype(boxes.dtype)
        return effective_dilation(
            skeleton.model(variables),
            lambda model: model.features(images, sizes),
            canvas=images.shape[1:3],
            sizes=sizes * counted[:, None],
            boxes=boxes,
            areas=(sides / scales[:, None]).prod(-1),
            valid=valid,
            bounds=bounds,
        )

    compiled = jax.jit(measure, out_shardings=sharding.replicated(mesh))
    config = copy.deepcopy(config)
    if "mask_size" in config.data:
        config.data.mask_size = 0  # nobody looks at them
    parts: dict[str, list[Moments]] = {}
    with contextlib.closing(inputs.open_eval_loader(config, source, task)) as batches:
        for batch in batches:
            names = ("images", "sizes", "original_sizes", "boxes", "valid")
            arrays = {name: batch[name] for name in names}
            # Other rows complete a batch.
            arrays["counted"] = (batch["image_id"] >= 0).astype(np.int32)
            found = compiled(variables, **sharding.to_devices(arrays, mesh))
            if not found:
                raise ValueError(
                    "The network has no deformable convolution to measure."
                )
            for path, moments in jax.device_get(found).items():
                parts.setdefault(path, []).append(moments)
    return {path: _merged(moments) for path, moments in parts.items()}


def _merged(parts: Sequence[Moments]) -> Moments:
    stacked = jax.tree.map(lambda *fields: np.stack(fields).astype(float), *parts)
    return merge(stacked)


def paper_name(path: str, variables: Collection[str]) -> str | None:
    """Returns what the papers call a 3x3 convolution of a ResNet, such as "res5c".

    Blocks of a stage are a, b, c, ..., but a, b1, b2, ... in the stages between first
    and last of a ResNet-101 or -152.

    Args:
      path: Of the layer.
      variables: Paths of the network's arrays.

    Returns:
      The name, or None where the layer is not of a ResNet.
    """
    match = re.fullmatch(r"(.*\.)?layer([1-4])\.(\d+)\.conv2", path)
    if match is None:
        return None
    before, stage, block = match[1] or "", int(match[2]), int(match[3])
    # ResNet-50 has six blocks in its third stage.
    deep = any(name.startswith(f"{before}layer3.6.") for name in variables)
    numbered = deep and stage in (2, 3) and block > 0
    return f"res{stage + 1}" + (f"b{block}" if numbered else chr(ord("a") + block))


def table(
    layers: Mapping[str, Moments],
    names: Mapping[str, str | None],
    bounds: Sequence[float],
) -> str:
    """Returns the table that is printed: one line for a layer."""
    small, medium = (f"{bound:g}^2" for bound in bounds)
    sizes = (f"< {small}", f"{small} to {medium}", f">= {medium}", "no object")
    rows = [("layer", *GROUPS), ("", *sizes)]
    for path, moments in layers.items():
        shown = [_cell(**numbers) for numbers in _numbers(moments).values()]
        rows.append((" ".join(filter(None, (names[path], path))), *shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "Effective dilation, mean ± deviation (filters), by the object at the centre.",
        "Sizes: area of the box in pixels of the annotated image; the paper's bounds "
        "are not known.",
        *(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ),
    ]
    return "\n".join(map(str.rstrip, lines))


def _numbers(moments: Moments) -> dict[str, dict[str, Any]]:
    """Returns the numbers of a layer by group; None where there are no filters."""
    return {
        group: {
            "mean": _number(mean, count),
            "deviation": _number(deviation, count),
            "count": int(count),
        }
        for group, count, mean, deviation in zip(
            GROUPS, moments.count, moments.mean, moments.deviation, strict=True
        )
    }


def _number(value: float, count: float) -> float | None:
    # Of offsets that are no numbers there is no mean either.
    return float(value) if count and math.isfinite(value) else None


def _cell(mean: float | None, deviation: float | None, count: int) -> str:
    if mean is None or deviation is None:
        return f"- ({count})"
    return f"{mean:.2f} ± {deviation:.2f} ({count})"


def size_bounds(given: Sequence[str]) -> tuple[float, float]:
    """Returns what `--size_bounds` says.

    Raises:
      ValueError: It is not two positive numbers, the smaller one first.
    """
    try:
        small, medium = map(float, given)
        rising = 0 < small < medium < math.inf
    except ValueError:
        rising = False
    if not rising:
        raise ValueError(
            f"`--size_bounds` is {quoted(','.join(given))}; expected two sides in "
            "pixels, the smaller one first, such as 32,96."
        )
    return small, medium


@interrupt.interruptible
def main(arguments: list[str], task: Task) -> None:
    """Measures the newest checkpoint of a run."""
    if arguments:
        raise ValueError(f"Unexpected arguments: {' '.join(arguments)}")
    bounds = size_bounds(_BOUNDS.value)
    measure_run(cli.config(), cli.workdir(), task, output_folder(), bounds)


if __name__ == "__main__":
    cli.run(main)
