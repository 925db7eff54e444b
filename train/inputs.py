"""From a configuration to data: sources, training batches, evaluation batches."""

import functools
import logging
import os
import warnings
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dcn_jax.quoting import quoted
from train import sharding
from train.config_dict import ConfigDict
from train.data.batch_iterator import BatchIterator
from train.data.loader import eval_loader, train_loader
from train.data.source import DataSet, OrientationWarning, Source, check_options
from train.task import Task

_log = logging.getLogger("train")


def open_source(config: ConfigDict, task: Task, split: str) -> Source:
    """Opens (and first prepares, where it is not yet) a split of the data set.

    Logs one line about what of it is used.
    """
    return _opened(config, task, split, _data_set(config, split))


def open_sources(config: ConfigDict, task: Task) -> tuple[Source, Source]:
    """Opens the splits for training and evaluation, as `open_source` does.

    What is wrong with the annotations or the categories of the one is told before the
    other is prepared.

    Raises:
      ValueError: The splits have different categories, or as `make_source`.
      OSError: As `make_source`.
    """
    splits = config.data.train_split, config.data.eval_split
    sets = [_data_set(config, split) for split in splits]
    ours, theirs = ({c["id"]: c["name"] for c in s.categories} for s in sets)
    for number in sorted(ours.keys() | theirs.keys()):
        if ours.get(number) != theirs.get(number):
            shown = [
                f"{quoted(names[number])} in {split!r}"
                if number in names
                else f"missing in {split!r}"
                for split, names in zip(splits, (ours, theirs), strict=True)
            ]
            raise ValueError(
                f"The splits have different categories: the one with id {number} is "
                f"{shown[0]} and {shown[1]}."
            )
    train, held_out = (
        _opened(config, task, *pair) for pair in zip(splits, sets, strict=True)
    )
    return train, held_out


def _data_set(config: ConfigDict, split: str) -> DataSet:
    data = config.data
    check_options(data.name, data.options)
    # Options may be paths, which a shell does not expand within --config.FIELD=...
    options = {
        name: os.path.expanduser(value) if isinstance(value, str) else value
        for name, value in data.options.items()
    }
    return DataSet(
        data.name,
        split,
        data.data_dir,
        max_pixels=data.max_pixels,
        upright=data.upright,
        **options,
    )


def _opened(config: ConfigDict, task: Task, split: str, data_set: DataSet) -> Source:
    with warnings.catch_warnings():
        # The line says it.
        warnings.simplefilter("ignore", OrientationWarning)
        source = data_set.open()
    _log.info("%s", task.summary(source, split, config.data))
    return source


def _used(config: ConfigDict, task: Task, source: Source) -> np.ndarray:
    """Returns the indices of the images that training uses."""
    if config.data.skip_empty:
        return np.flatnonzero(task.usable(source))
    return np.arange(len(source))


def count_images(config: ConfigDict, task: Task, source: Source) -> int:
    """Returns how many images training uses."""
    return len(_used(config, task, source))


def count_steps(config: ConfigDict, task: Task, source: Source) -> int:
    """Returns the length of a run in steps: `steps`, or `epochs` over the images."""
    used = count_images(config, task, source)
    steps = config.steps or round(config.epochs * used / config.batch_size)
    if steps < 1:
        raise ValueError(
            f"The run has {steps} steps; expected `steps` of at least 1, or 0 and "
            f"`epochs` of at least one batch."
        )
    return steps


def open_train_loader(config: ConfigDict, task: Task, source: Source) -> BatchIterator:
    """Returns the endless iterator over training batches, at its start."""
    data = config.data
    if not task.usable(source).any():
        raise ValueError(
            f"The split {data.train_split!r} (`data.train_split`) has no ground truth "
            f"to train on in its {len(source)} images."
        )
    return train_loader(
        source,
        functools.partial(task.targets, data=data),
        index=_used(config, task, source),
        batch_size=config.batch_size,
        canvases=data.canvases,
        short_sides=data.short_sides,
        max_side=data.max_side,
        crop=tuple(data.crop) or None,
        flip=data.flip,
        seed=config.seed,
        workers=data.workers,
    )


def open_eval_loader(
    config: ConfigDict, source: Source, task: Task | None = None
) -> BatchIterator:
    """Returns an iterator over the images of an evaluation, once each.

    They have the task's ground truth with them if there is a task.
    """
    data = config.data
    return eval_loader(
        source,
        functools.partial(task.targets, data=data) if task else None,
        batch_size=config.eval.batch_size,
        canvases=data.canvases,
        short_side=data.eval_short_side,
        max_side=data.max_side,
        workers=data.workers,
    )


def describe_data(config: ConfigDict, source: Source) -> dict[str, Any]:
    """Returns what files about an evaluation say of its data."""
    return {
        "name": config.data.name,
        "split": config.data.eval_split,
        "options": config.data.options.to_dict(),
        "images": len(source),
    }


def to_batch(arrays: dict[str, np.ndarray], task: Task, mesh: Mesh) -> Any:
    """Puts this process's share of a training batch on the devices."""
    return task.Batch(**sharding.to_devices(arrays, mesh))
