"""Evaluates the newest checkpoint of a run.

`python -m train.evaluate --workdir=DIR [--output=DIR]` writes
evaluation.json, what belongs to it (of a detector, detections.json), figures with their
numbers and pictures into DIR, or else into the run's folder, in place of those that lie
there. Of each short side that the field `eval.sweep` names it writes the same into a
folder sweep/SIDE there.
"""

if __name__ == "__main__":
    from train import interrupt

    interrupt.end_at_once()

import copy
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from jax.sharding import Mesh

from train import cli, conventions, inputs, interrupt, sharding
from train.checkpoint import Checkpoints, abstract, describe
from train.config_dict import ConfigDict
from train.evaluator import Evaluator, write_evaluation
from train.run_page import write_page
from train.skeleton import Skeleton, Variables, build_skeleton
from train.task import Task

_log = logging.getLogger("train")

_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder for what is written; default: that of the run, or predictions "
    "(train.predict).",
)


def load_variables(
    config: ConfigDict,
    task: Task,
    workdir: Path,
    mesh: Mesh,
    expected: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[int, Skeleton, Variables, dict[str, Any]]:
    """Loads the newest checkpoint of a run, without its optimiser.

    Args:
      config: The configuration of the run.
      task: Its task.
      workdir: Its folder.
      mesh: Where the variables are placed.
      expected: Categories of the data, which the checkpoint must have; None: any.

    Returns:
      Step, model, variables, description.

    Raises:
      FileNotFoundError: There is no checkpoint.
      ValueError: It is damaged, of another model, or of other categories.
    """
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no checkpoint in {folder}.")
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest()
    if step is None:
        raise FileNotFoundError(f"There is no finished checkpoint in {folder}.")
    description = checkpoints.description(step)
    categories = description["categories"] if expected is None else expected
    skeleton = build_skeleton(config, task, len(categories))
    checkpoints.check(step, describe(config, task, categories), skeleton.variables)
    shardings = sharding.state_shardings(skeleton.variables, mesh)
    like = abstract(skeleton.variables, shardings)
    variables = checkpoints.restore_variables(step, like)
    checkpoints.close()
    _log.info("using the checkpoint of step %d", step)
    return step, skeleton, variables, description


def evaluate_run(
    config: ConfigDict, workdir: Path, task: Task, output: Path | None = None
) -> None:
    """Evaluates the newest checkpoint of a run, and writes what it finds.

    Args:
      config: The configuration of the run.
      workdir: Its folder.
      task: Its task.
      output: Folder for the results; None is the run's.

    Raises:
      OSError: There is no checkpoint, or a file cannot be read or written.
      ValueError: The configuration, the data or the checkpoint is at fault.
    """
    config = conventions.kept(config, workdir)
    mesh = sharding.make_mesh(config.mesh.model)
    sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
    source = inputs.open_source(config, task, config.data.eval_split)
    step, skeleton, variables, _ = load_variables(
        config, task, workdir, mesh, source.categories
    )
    folder = output or workdir
    own = config.data.eval_short_side
    for side in dict.fromkeys((own, *config.eval.sweep)):
        changed = config if side == own else at_side(config, side)
        evaluation = Evaluator(changed, task, skeleton, mesh, source)(variables)
        assert evaluation is not None
        if side == own:
            write_evaluation(folder, step, evaluation)
            if folder == workdir:
                write_page(workdir)
        if side in config.eval.sweep:
            write_evaluation(sweep_folder(folder, side), step, evaluation)


def sweep_folder(folder: Path, side: int) -> Path:
    """Where the results are, of a run in a folder, on images of a short side."""
    return folder / "sweep" / str(side)


def at_side(config: ConfigDict, side: int) -> ConfigDict:
    """Returns the configuration with images of another short side in the evaluation.

    The canvases, whole multiples of 16, and the cap of the long side are in proportion.
    """
    config = copy.deepcopy(config)
    data = config.data
    factor = side / data.eval_short_side
    data.max_side = round(data.max_side * factor)
    data.canvases = tuple(
        tuple(16 * math.ceil(length * factor / 16) for length in canvas)
        for canvas in data.canvases
    )
    data.eval_short_side = side
    return config


def output_folder() -> Path | None:
    """Returns what `--output` names, if it was given."""
    return Path(os.path.expanduser(_OUTPUT.value)) if _OUTPUT.value else None


@interrupt.interruptible
def main(arguments: list[str], task: Task) -> None:
    """Evaluates the newest checkpoint of a run."""
    if arguments:
        raise ValueError(f"Unexpected arguments: {' '.join(arguments)}")
    evaluate_run(cli.config(), cli.workdir(), task, output_folder())


if __name__ == "__main__":
    cli.run(main)
