"""A run: data, steps, logs, checkpoints, evaluation, from any point to the end."""

import contextlib
import json
import logging
import math
import os
import signal
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dcn_jax.explain import offset_health
from dcn_jax.quoting import one_line
from train import conventions, inputs, sharding
from train import workdir as workdir_lock
from train.announcements import Compilations, log_file, say_run
from train.checkpoint import Checkpoints, abstract, describe
from train.config_dict import ConfigDict
from train.draw import save_curves
from train.evaluator import Evaluator, write_evaluation
from train.interrupt import Interrupts
from train.metrics import Clock, MetricWriter, log_line, read_metrics
from train.optim import highest_rate, learning_rate, make_optimizer, trainable
from train.resume import say_changes
from train.run_config import config_path
from train.run_page import write_page
from train.skeleton import Skeleton, build_skeleton
from train.step import (
    Metrics,
    SkippedInARow,
    TrainState,
    init_state,
    make_train_step,
)
from train.task import Start, Task
from train.whole_file import write_whole

_log = logging.getLogger("train")

# The initialisation runs once, and optimising it takes longer than running it.
_COMPILE_FAST = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def train(config: ConfigDict, workdir: Path, task: Task) -> None:
    """Trains from the newest checkpoint in `workdir`, or from the start.

    Returns when the last step was done, saved and evaluated, or when SIGTERM came and
    the state was saved.

    Args:
      config: The configuration.
      workdir: The folder of the run.
      task: What is trained on what, and how it is judged.

    Raises:
      ValueError: The configuration, the data or a checkpoint is at fault, or another
        run uses the folder.
      OSError: A file or folder is missing or broken.
      KeyboardInterrupt: Ctrl-C was pressed; the state was saved, if there was any.
    """
    task.check(config)
    mesh = sharding.make_mesh(config.mesh.model)
    sharding.check_batch_size(config.batch_size, mesh, "batch_size")
    sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
    # All that a configuration says wrong of the network shows in its constructors, and
    # all that is wrong with the weights in reading them: before data are prepared.
    started = any((workdir / "checkpoints").glob("[0-9]*"))
    adopted: dict[str, Any] = {}
    if started:
        config = conventions.kept(config, workdir)
    else:
        config, adopted = conventions.adopt(config, task)
    trial = build_skeleton(config, task, num_classes=1)
    if not started:
        _read_weights(config, task, trial)
    if config.compile_cache:
        folder = os.path.expanduser(config.compile_cache)
        jax.config.update("jax_compilation_cache_dir", folder)
    with Interrupts() as interrupts, workdir_lock.claim(workdir):
        if not started:
            conventions.keep(adopted, workdir)
        with log_file(workdir, active=jax.process_index() == 0):
            _train(config, workdir, task, mesh, interrupts)


def _read_weights(config: ConfigDict, task: Task, skeleton: Skeleton) -> Start:
    return task.weights(config, skeleton.model(skeleton.variables))


def _train(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    mesh: Mesh,
    interrupts: Interrupts,
) -> None:
    source, held_out = inputs.open_sources(config, task)
    skeleton = build_skeleton(config, task, len(source.categories))
    evaluator = Evaluator(config, task, skeleton, mesh, held_out)
    with interrupts.held():
        run = _Run(config, workdir, task, mesh, skeleton, source, evaluator)
        try:
            if run.advance(interrupts):
                run.finish()
        finally:
            run.close()


class _Run:
    """State of a run, in memory and in its folder."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        task: Task,
        mesh: Mesh,
        skeleton: Skeleton,
        source: Any,
        evaluator: Evaluator,
    ):
        self._config, self._workdir = config, workdir
        self._task, self._mesh = task, mesh
        self._skeleton, self._evaluator = skeleton, evaluator
        self._loader = inputs.open_train_loader(config, task, source)
        self._steps = inputs.count_steps(config, task, source)
        self._description = describe(config, task, source.categories)
        _say_low_rate(config, self._steps)

        paths = trainable(
            skeleton.parameters, config.optim, skeleton.abstract.frozen_paths
        )
        optimizer = make_optimizer(config.optim, paths)
        say_run(
            config,
            mesh,
            {path: skeleton.variables[path] for path in skeleton.parameters},
            paths,
            self._steps,
            inputs.count_images(config, task, source),
        )

        def init() -> TrainState:
            return init_state(skeleton.init(config.seed), paths, optimizer)

        like = jax.eval_shape(init)
        shardings = sharding.state_shardings(like, mesh)
        self._train_step = make_train_step(
            skeleton,
            paths,
            optimizer,
            learning_rate(config.optim, self._steps),
            seed=config.seed,
            mesh=mesh,
            shardings=shardings,
        )
        self._checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
        # The metrics of the steps since the last log line.
        self._window: list[Metrics] = []
        step = self._checkpoints.recover()
        if step is None:
            self._state = jax.jit(
                init, out_shardings=shardings, compiler_options=_COMPILE_FAST
            )()
            # Once more: the classes are known now.
            start = _read_weights(config, task, skeleton)
            for note in start.notes:
                _log.info("%s", note)
            self._load_weights(start.values, shardings)
            step = 0
        else:
            self._checkpoints.check(step, self._description, skeleton.variables)
            self._check_optimizer(step)
            self._state, place = self._checkpoints.restore(
                step, abstract(like, shardings)
            )
            self._loader.set_state(place["data"])
            self._window = place["window"]
            _log.info("going on from the checkpoint of step %d", step)
            say_changes(
                self._checkpoints.description(step)["config"],
                self._description["config"],
                steps_were=place.get("steps", self._steps),
                steps=self._steps,
            )
            if step > self._steps:
                _log.warning(
                    "WARNING: the checkpoint of step %d is beyond the run's %d steps; "
                    "no step is left",
                    step,
                    self._steps,
                )
        self._step = step
        self._skipped = SkippedInARow(step, int(self._state.skipped))
        active = jax.process_index() == 0
        if active:
            text = json.dumps(self._description["config"], indent=2)
            write_whole(config_path(workdir), text + "\n")
        self._writer = MetricWriter(
            workdir, step=step, active=active, wandb=_wandb(config, workdir, active)
        )

        def health(state: TrainState, images: jax.Array, sizes: jax.Array):
            model = skeleton.model(state.variables)
            return offset_health(model, lambda model: model.features(images, sizes))

        self._offset_health = jax.jit(health, out_shardings=sharding.replicated(mesh))

    def _check_optimizer(self, step: int) -> None:
        """Refuses to go on where the optimiser, or what it trains, is another."""
        saved = ConfigDict(self._checkpoints.description(step)["config"])
        config = self._config
        for field in ("optim.name", *self._task.kept_fields):
            was, now = (reduce(getitem, field.split("."), c) for c in (saved, config))
            if was != now:
                raise ValueError(
                    f"`{field}` is {now!r}; the run's checkpoint of step {step} was "
                    f"trained with {was!r}, which a run keeps to its end."
                )
        parameters = self._skeleton.parameters
        before = trainable(parameters, saved.optim)
        differing = before ^ trainable(parameters, config.optim)
        if differing:
            raise ValueError(
                f"`optim.lr_multipliers` freezes other parameters than in the run's "
                f"checkpoint of step {step}, such as {min(differing)}; a run keeps "
                f"them to its end."
            )

    def _load_weights(self, weights: dict[str, np.ndarray], shardings: Any) -> None:
        """Puts arrays by dotted path in the place of the fresh ones."""
        loaded = {
            path: jax.make_array_from_callback(
                value.shape, shardings.variables[path], value.__getitem__
            )
            for path, value in weights.items()
        }
        self._state = self._state._replace(variables=self._state.variables | loaded)

    def advance(self, interrupts: Interrupts) -> bool:
        """Steps to the end; returns False where a signal ended it before."""
        # A run that was stopped while it evaluated does so again.
        if not self._evaluate_if_due(interrupts):
            return False
        if _stopped(interrupts):
            # It came before the first step: there is nothing new to save.
            return False
        config = self._config
        clock = Clock(config.batch_size, self._steps)
        crop = tuple(config.data.crop)
        compilations = Compilations((crop,) if crop else config.data.canvases)
        while self._step < self._steps:
            batch = inputs.to_batch(next(self._loader), self._task, self._mesh)
            canvas = batch.images.shape[1:3]
            compiled = canvas in compilations
            with contextlib.nullcontext() if compiled else compilations.of(canvas):
                self._state, metrics = self._train_step(self._state, batch)
                if not compiled:
                    jax.block_until_ready(metrics)
            self._step += 1
            self._window.append(metrics)
            # Bounds how many batches wait on the devices.
            behind = min(len(self._window), 2) - 1
            done = jax.block_until_ready(self._window[-1 - behind])
            self._skipped.update(self._step - behind, int(done["skipped"]))
            if compiled:
                clock.step()
            last = self._step == self._steps
            # Alone, a process may stop anywhere; several agree at log steps.
            stop = _stopped(interrupts)
            if self._step % config.log.every == 0 or last:
                self._report(batch, clock)
                stop = _stopped_anywhere(interrupts)
            self._skipped.check(config.optim.lr, last=last)
            if self._step % config.checkpoint.every == 0 or last or stop:
                self._save()
            if stop and not last:
                self._say_saved(interrupts)
                return False
            if not self._evaluate_if_due(interrupts):
                return False
            clock.skip()
        return True

    def _report(self, batch: Any, clock: Clock) -> None:
        """Logs what happened since the last report."""
        window = _floats(self._window)
        scalars = _mean(window)
        self._skipped.update(self._step, int(scalars["skipped"]))
        if self._skipped.count >= len(window):
            _log.warning(
                "WARNING: the last %d steps were all skipped, as loss or gradient was "
                "not finite; %d of them end the run",
                self._skipped.count,
                SkippedInARow.LIMIT,
            )
        self._window = []
        scalars["images/s"], left = clock.tick(self._step)
        log_line(self._step, self._steps, scalars, left)
        every = self._config.log.offset_health_every
        if every and (self._step % every == 0 or self._step == self._steps):
            health = self._offset_health(self._state, batch.images, batch.sizes)
            scalars |= {name: float(value) for name, value in health.items()}
        self._writer.write(self._step, scalars)

    def finish(self) -> None:
        """Writes the network alone."""
        place = sharding.replicated(self._mesh)
        variables = jax.jit(lambda arrays: arrays, out_shardings=place)(
            self._state.variables
        )
        if jax.process_index() == 0:
            self._write_network(jax.device_get(variables))

    def _write_network(self, variables: dict[str, np.ndarray]) -> None:
        categories = self._description["categories"]
        try:
            self._task.write_network(self._workdir, self._config, categories, variables)
        except ValueError as error:
            # The checkpoint has everything.
            _log.info("no file of the network alone: %s", one_line(str(error)))

    def close(self) -> None:
        """Ends the workers and closes the files."""
        self._loader.close()
        self._writer.close()
        self._checkpoints.close()

    def _save(self) -> None:
        place = {
            "data": self._loader.get_state(),
            "window": _floats(self._window),
            "steps": self._steps,
        }
        self._checkpoints.save(self._state, place, self._description)

    def _say_saved(self, interrupts: Interrupts) -> None:
        name = (interrupts.received or signal.SIGTERM).name
        _log.info("%s: saved step %d", name, self._step)

    def _evaluate_if_due(self, interrupts: Interrupts) -> bool:
        """Evaluates when it is time; returns False where a signal ended it before."""
        if not evaluation_due(self._step, self._steps, self._config.eval.every):
            return True
        result = self._evaluator(
            self._state.variables, stop=lambda: _stopped(interrupts)
        )
        if result is None:
            self._save()
            self._say_saved(interrupts)
            return False
        if jax.process_index() == 0:
            write_evaluation(self._workdir, self._step, result)
        self._writer.write(self._step, result.scalars())
        if jax.process_index() == 0:
            self._writer.show(self._step, result.scalars_by_class(), result.shown())
            records = read_metrics(self._workdir / "metrics.jsonl")
            save_curves(self._workdir / "curves.png", records)
            write_page(self._workdir)
        return True


def evaluation_due(step: int, steps: int, every: float) -> bool:
    """Returns whether a run is evaluated after a step.

    Args:
      step: From 0, which is before the first.
      steps: Of the run.
      every: Steps between evaluations, or below 1 the share of the run; 0: none but
        that at the end.
    """
    if step >= steps or not (step and every):
        return step >= steps
    period = every if every >= 1 else every * steps
    return step // period > (step - 1) // period


def _stopped(interrupts: Interrupts) -> bool:
    """Returns whether a process that is alone should save and end."""
    return interrupts.received is not None and jax.process_count() == 1


def _stopped_anywhere(interrupts: Interrupts) -> bool:
    """Returns whether any process got a signal; all of them ask at the same step."""
    received = interrupts.received is not None
    if jax.process_count() == 1:
        return received
    return bool(multihost_utils.process_allgather(np.asarray([received])).any())


def _say_low_rate(config: ConfigDict, steps: int) -> None:
    """Logs where no step of the run has the rate that the configuration asks for."""
    highest = highest_rate(config.optim, steps)
    if highest < (1 - 1e-6) * config.optim.lr:
        _log.warning(
            "WARNING: the learning rate never reaches `optim.lr`, %g: in the %d steps "
            "of the run it is %.3g at most (`optim.warmup_steps` is %d, "
            "`optim.decay_at` %s)",
            config.optim.lr, steps, highest, config.optim.warmup_steps,
            tuple(config.optim.decay_at),
        )  # fmt: skip


def _floats(window: list[Metrics]) -> list[dict[str, float]]:
    """Returns the metrics as numbers of the host, which JSON can hold."""
    return [{k: float(v) for k, v in m.items()} for m in jax.device_get(window)]


def _mean(window: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of each loss over the steps in which it is finite."""
    scalars = dict(window[-1])
    for name in scalars:
        if name.startswith("loss"):
            finite = [m[name] for m in window if math.isfinite(m[name])]
            scalars[name] = sum(finite) / len(finite) if finite else math.nan
    return scalars


def _wandb(config: ConfigDict, workdir: Path, active: bool) -> Any:
    if not (config.log.wandb and active):
        return None
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(
            "`log.wandb` is set, but wandb is not installed: pip install .[wandb]"
        ) from error
    return wandb.init(
        project="dcn-jax", name=config.name, dir=str(workdir), config=config.to_dict()
    )
