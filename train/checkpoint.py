"""Checkpoints: everything that a run needs to go on to the same bits.

A checkpoint is a folder <workdir>/checkpoints/<step> with the items `model` (variables
under dotted paths), `train` (optimiser, counters), `place` (of the data iterator and
the log) and `description` (configuration, categories). An unfinished one is ignored.
"""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from train.step import TrainState


class Checkpoints:
    """The checkpoints of one work folder.

    Saving is synchronous: when `save` returns, the checkpoint is committed, and
    a failure is raised there and then. State is small beside the time between saves.
    """

    def __init__(self, workdir: str | Path, *, keep: int | None = None):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                create=keep is not None,
                read_only=keep is None,
            ),
        )

    def latest(self) -> int | None:
        """Returns the newest finished step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, place: dict, description: dict) -> None:
        """Writes a checkpoint of `state.step`, if there is none yet.

        Args:
          state: What to save.
          place: State of the data iterator and the log, as JSON holds it.
          description: Configuration, categories: what `check` compares.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        variables = {**state.params, **state.frozen}
        arrays = {path: list(value.shape) for path, value in variables.items()}
        description = {**description, "arrays": arrays}
        items = {
            "model": ocp.args.StandardSave(variables),
            "train": ocp.args.StandardSave(_counters(state)),
            "place": ocp.args.JsonSave(place),
            "description": ocp.args.JsonSave(description),
        }
        self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """Returns the state and the place saved at `step`.

        Args:
          step: A step that `latest` returned.
          like: Shapes, types and placement (`jax.ShapeDtypeStruct` with sharding).
        """
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore({**like.params, **like.frozen}),
            train=ocp.args.StandardRestore(_counters(like)),
            place=ocp.args.JsonRestore(),
        )
        saved: Any = self._manager.restore(step, args=args)
        state = TrainState(
            params={path: saved.model[path] for path in like.params},
            frozen={path: saved.model[path] for path in like.frozen},
            **saved.train,
        )
        return state, saved.place

    def restore_variables(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """Returns only the model's variables saved at `step`."""
        args = ocp.args.Composite(model=ocp.args.StandardRestore(like))
        saved: Any = self._manager.restore(step, args=args)
        return saved.model

    def description(self, step: int) -> dict:
        """Returns what was written beside the state at `step`."""
        args = ocp.args.Composite(description=ocp.args.JsonRestore())
        saved: Any = self._manager.restore(step, args=args)
        return saved.description

    def check(self, step: int, description: dict, variables: dict[str, Any]) -> None:
        """Refuses a checkpoint whose model is not the configured one.

        Args:
          step: A step that `latest` returned.
          description: What `train.model.describe` says of the configured model.
          variables: Its variables, or their shapes.

        Raises:
          ValueError: Names the first field, category or array that differs.
        """
        where = f"The checkpoint {self.folder / str(step)} is of another model:"
        saved = self.description(step)
        # What JSON makes of tuples must not look like a difference.
        ours = json.loads(json.dumps(description["model"]))
        for name in sorted(saved["model"].keys() | ours.keys()):
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
        """Releases the manager's threads."""
        self._manager.close()


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
