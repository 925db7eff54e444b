"""Checkpoints: everything that a run needs to go on to the same bits.

A checkpoint is a folder <workdir>/checkpoints/<step> with the items `model` (variables
under dotted paths), `train` (optimiser, counters), `place` (of the data iterator and
the log) and `description` (configuration, categories), and the digests of all files.
It gets its name when it is whole: one that is still written ends in "tmp". One whose
files are no longer what was written is named <step>.damaged by the run that finds it.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dcn_jax.quoting import one_line
from train.config_dict import ConfigDict
from train.digests import find_damage, write_digests
from train.step import TrainState
from train.task import Task

_log = logging.getLogger("train")

# Of what the items hold and the description says; no other is read.
LAYOUT = 2
# What stands for a step where there is none.
_NONE, _NONE_SOUND = -1, -2


def describe(
    config: ConfigDict, task: Task, categories: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns what a checkpoint says of its model: `model`, `categories`, `config`."""
    return {
        "model": {"task": config.task, **task.architecture(config)},
        "categories": [dict(category) for category in categories],
        "config": config.to_dict(),
    }


class Checkpoints:
    """The checkpoints of one work folder.

    Saving is synchronous: when `save` returns, the checkpoint is committed, and
    a failure is raised there and then. State is small beside the time between saves.

    Args:
      workdir: The work folder.
      keep: How many of the newest checkpoints stay; None only reads.
    """

    def __init__(self, workdir: str | Path, *, keep: int | None = None):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self._keep = keep
        # The step that this process saved, or goes on from.
        self._saved: int | None = None
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        if keep is not None and jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._drop_unfinished()

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, from the oldest on."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        # Only the names that `save` gives.
        return sorted(
            int(n) for n in names if n.isascii() and n.isdecimal() and n == str(int(n))
        )

    def latest(self) -> int | None:
        """Returns the newest finished step, unless it is damaged; None without one.

        Raises:
          ValueError: It is damaged. Says how, and which step is sound.
        """
        while steps := self.steps():
            damage = self._damage(steps[-1])
            if damage is None:
                return steps[-1]
            path = self.folder / str(steps[-1])
            # A run that goes on meanwhile drops its old checkpoints.
            if path.exists():
                sound = next((s for s in steps[-2::-1] if not self._damage(s)), None)
                rest = "No other is sound."
                if sound is not None:
                    rest = f"Without that folder, step {sound} is the newest."
                raise ValueError(f"The checkpoint {path} is damaged: {damage}. {rest}")
        return None

    def recover(self) -> int | None:
        """Returns the newest sound step for a run to go on from; None without any.

        Damaged checkpoints that are newer are put aside, and this is logged.

        Raises:
          ValueError: There are checkpoints, and none is sound.
        """
        step, problem = self._recover() if jax.process_index() == 0 else (0, "")
        if jax.process_count() > 1:
            # The processes of a run must not come to different answers.
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == _NONE_SOUND:
            raise ValueError(problem or f"No checkpoint in {self.folder} is sound.")
        self._saved = None if step == _NONE else step
        return self._saved

    def _recover(self) -> tuple[int, str]:
        """Returns a step or _NONE; or _NONE_SOUND and what is wrong with each."""
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage is None:
                break
            damaged.append((step, damage))
        else:
            if not damaged:
                return _NONE, ""
            listed = "; ".join(f"step {s}: {damage}" for s, damage in damaged[:3])
            return _NONE_SOUND, (
                f"None of the {len(damaged)} checkpoints in {self.folder} is sound "
                f"({listed}). Without that folder the run starts anew."
            )
        for newer, damage in damaged:
            aside = self._free_name(f"{newer}.damaged")
            (self.folder / str(newer)).rename(aside)
            _log.warning(
                "WARNING: the checkpoint of step %d is damaged (%s) and now called %s; "
                "going on from step %d instead",
                newer, damage, aside.name, step,
            )  # fmt: skip
        return step, ""

    def _damage(self, step: int) -> str | None:
        """Returns what is wrong with the files of a checkpoint, or None."""
        path = self.folder / str(step)
        try:
            return find_damage(path) if any(path.iterdir()) else "it is empty"
        except OSError:
            return "it is no folder that can be read"

    def _free_name(self, name: str) -> Path:
        path, count = self.folder / name, 1
        while os.path.lexists(path):
            count += 1
            path = self.folder / f"{name}-{count}"
        return path

    def save(self, state: TrainState, place: dict, description: dict) -> None:
        """Writes a checkpoint of `state.step`, unless it was the last that was saved.

        Args:
          state: What to save.
          place: State of the data iterator and the log, as JSON holds it.
          description: Configuration, categories: what `check` compares.

        Raises:
          OSError: It cannot be written, as on a full disk; the older ones stay.
        """
        step = int(state.step)
        if step == self._saved:
            return
        arrays = {path: list(value.shape) for path, value in state.variables.items()}
        description = {**description, "arrays": arrays, "layout": LAYOUT}
        items = {
            "model": ocp.args.StandardSave(state.variables),
            "train": ocp.args.StandardSave(_counters(state)),
            "place": ocp.args.JsonSave(place),
            "description": ocp.args.JsonSave(description),
        }
        unfinished = self.folder / f"{step}.tmp"
        try:
            self._orbax.save(unfinished, args=ocp.args.Composite(**items))
            if jax.process_index() == 0:
                write_digests(unfinished)
                unfinished.rename(self.folder / str(step))
                self._drop_old()
        # Tensorstore says ValueError where there is no space.
        except (OSError, ValueError, RuntimeError) as error:
            if jax.process_index() == 0:
                self._drop_unfinished()
            raise OSError(
                f"Cannot save the checkpoint of step {step} in {self.folder}: "
                f"{_reason(error)}. Kept: the checkpoints of steps {self.steps()}."
            ) from error
        # Nobody may see the folder as it was before.
        multihost_utils.sync_global_devices(f"saved {step}")
        self._saved = step

    def _drop_old(self) -> None:
        assert self._keep is not None
        for step in self.steps()[: -self._keep]:
            # Under this name a half deleted one is no checkpoint.
            going = self.folder / f"{step}.old.tmp"
            (self.folder / str(step)).rename(going)
            shutil.rmtree(going)

    def _drop_unfinished(self) -> None:
        """Deletes what a killed process, or a failure, left half written."""
        for path in self.folder.glob("[0-9]*.*tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _read(self, step: int, **items: Any) -> Any:
        path = self.folder / str(step)
        try:
            return self._orbax.restore(path, args=ocp.args.Composite(**items))
        # What orbax raises depends on what it stumbles over.
        except Exception as error:
            raise ValueError(
                f"The checkpoint {path} cannot be read: {_reason(error)}"
            ) from error

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """Returns the state and the place saved at `step`.

        Args:
          step: A step that `latest` or `recover` returned.
          like: Shapes, types and placement (`jax.ShapeDtypeStruct` with sharding).

        Raises:
          ValueError: It cannot be read.
        """
        saved = self._read(
            step,
            model=ocp.args.StandardRestore(like.variables),
            train=ocp.args.StandardRestore(_counters(like)),
            place=ocp.args.JsonRestore(),
        )
        return TrainState(variables=saved.model, **saved.train), saved.place

    def restore_variables(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Returns only the model's variables saved at `step`."""
        return self._read(step, model=ocp.args.StandardRestore(like)).model

    def description(self, step: int) -> dict:
        """Returns what was written beside the state at `step`."""
        return self._read(step, description=ocp.args.JsonRestore()).description

    def check(self, step: int, description: dict, variables: dict[str, Any]) -> None:
        """Refuses a checkpoint whose model is not the configured one.

        Args:
          step: A step that `latest` or `recover` returned.
          description: What `describe` says of the configured model.
          variables: Its variables, or their shapes.

        Raises:
          ValueError: It has another layout; or names the first field, category or array
            that differs.
        """
        path = self.folder / str(step)
        saved = self.description(step)
        if (layout := saved.get("layout", 1)) != LAYOUT:
            raise ValueError(
                f"The checkpoint {path} has layout {layout}, of another version of "
                f"this program, which reads layout {LAYOUT}. Without the folder "
                f"{self.folder} the run starts anew."
            )
        where = f"The checkpoint {path} is of another model:"
        # What JSON makes of tuples must not look like a difference.
        ours = json.loads(json.dumps(description["model"]))
        fields = saved["model"].keys() | ours.keys()
        # What only one of them has follows from another choice, which says more.
        both = saved["model"].keys() & ours.keys()
        for name in sorted(fields, key=lambda name: (name not in both, name)):
            was, now = saved["model"].get(name), ours.get(name)
            if was != now:
                raise ValueError(
                    f"{where} `{name}` was {was}, the configuration says {now}."
                )
        was = [(c["id"], c["name"]) for c in saved["categories"]]
        now = [(c["id"], c["name"]) for c in description["categories"]]
        for a, b in zip_longest(was, now):
            if a != b:
                raise ValueError(
                    f"{where} its {len(was)} categories are not the {len(now)} of the "
                    f"data; the first (id, name) to differ was {a}, now {b}."
                )
        shapes = saved["arrays"]
        for path in sorted(shapes.keys() | variables.keys()):
            if path not in shapes or path not in variables:
                has = "lacks" if path not in shapes else "has"
                raise ValueError(f"{where} it {has} the array {path}.")
            if shapes[path] != list(variables[path].shape):
                raise ValueError(
                    f"{where} {path} has shape {tuple(shapes[path])}; expected "
                    f"{tuple(variables[path].shape)}."
                )

    def close(self) -> None:
        """Releases orbax's threads."""
        self._orbax.close()


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Returns every array of a checkpoint, whichever devices it was saved from.

    Args:
      folder: <workdir>/checkpoints/<step>.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arrays = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("model", "train"):
            path = folder.absolute() / item
            saved = checkpointer.metadata(path).item_metadata.tree
            like = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), saved
            )
            leaves = jax.tree.leaves_with_path(checkpointer.restore(path, like))
            for key, leaf in leaves:
                arrays[item + jax.tree_util.keystr(key)] = np.asarray(leaf)
    return arrays


def _reason(error: BaseException) -> str:
    """Returns what an error of orbax says, in at most a line or two."""
    full = "No space left on device"
    if full in str(error):
        return full
    return one_line(str(error), 300) or type(error).__name__


def _counters(state: TrainState) -> dict[str, Any]:
    return {
        "opt_state": state.opt_state,
        "step": state.step,
        "skipped": state.skipped,
    }


def abstract(tree: Any, shardings: Any) -> Any:
    """Returns shapes, types and placement of a tree, as `restore` takes them."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
    )
