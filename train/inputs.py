"""From a configuration to data: sources, training batches, evaluation batches."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dcn_jax.types import Batch
from train import sharding
from train.config_dict import ConfigDict
from train.data.loader import eval_loader, train_loader
from train.data.source import Source, make_source


def open_source(config: ConfigDict, split: str) -> Source:
    """Opens (and first prepares, where it is not yet) a split of the data set."""
    data = config.data
    # Options may be paths, which a shell does not expand within --config.FIELD=...
    options = {
        name: os.path.expanduser(value) if isinstance(value, str) else value
        for name, value in data.options.items()
    }
    return make_source(
        data.name, split, data.data_dir, max_pixels=data.max_pixels, **options
    )


def count_steps(config: ConfigDict, source: Source) -> int:
    """Returns the length of a run in steps: `steps`, or `epochs` over the images."""
    usable = int((source.num_boxes > 0).sum())
    steps = config.steps or round(config.epochs * usable / config.batch_size)
    if steps < 1:
        raise ValueError(
            f"The run has {steps} steps; expected `steps` of at least 1, or 0 and "
            f"`epochs` of at least one batch."
        )
    return steps


def open_train_loader(config: ConfigDict, source: Source) -> Any:
    """Returns the endless iterator over training batches, at its start."""
    data = config.data
    return train_loader(
        source,
        batch_size=config.batch_size,
        canvases=data.canvases,
        short_sides=data.short_sides,
        max_side=data.max_side,
        flip=data.flip,
        max_boxes=data.max_boxes,
        seed=config.seed,
    )


def open_eval_loader(
    config: ConfigDict, source: Source
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an iterator over the images of an evaluation, once each."""
    data = config.data
    return iter(
        eval_loader(
            source,
            batch_size=config.eval.batch_size,
            canvases=data.canvases,
            short_side=data.eval_short_side,
            max_side=data.max_side,
        )
    )


def to_batch(arrays: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """Puts this process's share of a training batch on the devices."""
    fields: dict[str, jax.Array] = sharding.to_devices(
        {name: arrays[name] for name in Batch._fields}, mesh
    )
    return Batch(**fields)
