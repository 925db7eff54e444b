"""What tasks share whose networks are those of `dcn_jax.networks`."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.categories import Category, categories_of
from dcn_jax.networks import NETWORKS
from dcn_jax.trunk import Trunk
from train.config_dict import ConfigDict
from train.preprocessing import preprocessing_of
from train.sections import construct, settings_of
from train.skeleton import variables_of
from train.task import Network, Passes, Start
from train.whole_file import whole_file

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Sections of the model that weights depend on, though shapes may not tell ...
_ARCHITECTURE = (
    *("backbone", "trunk", "neck", "rpn", "pool_layer", "pool", "box", "psroi"),
    *("mask_pool", "mask"),
)
# ... but for these fields of them. Which weights were kept fixed, and what they were
# taught, is no property of the result, nor is how many boxes are looked at.
_PASSING = {
    "model.backbone.frozen_stages",
    "model.rpn.loss_beta",
    "model.rpn.sampling",
    "model.rpn.train",
    "model.rpn.test",
    "model.box.loss_beta",
    "model.psroi.loss_beta",
    "model.mask.aligned_targets",
    "model.mask.binary_targets",
}


class Fields(Protocol):
    """The module of `train.configs` that has a task's fields."""

    def get_config(self, network: str) -> ConfigDict:
        """Returns the defaults for a network."""
        ...

    def constructors(self, network: str) -> dict[str, Any]:
        """Returns section of `model` -> what is made of it."""
        ...

    def check(self, config: ConfigDict) -> None:
        """Refuses what is no configuration of the task."""
        ...


class Composed:
    """The part of `train.task.Task` that is about the network.

    Attributes:
      fields: Of the task's configurations; a task sets it.
      network_file: Name of the file with the trained network; a task sets it.
    """

    fields: Fields
    network_file: str
    kept_fields: tuple[str, ...] = ("model.backbone.frozen_stages",)

    def check(self, config: ConfigDict) -> None:
        """Refuses what is no configuration of the task."""
        self.fields.check(config)

    def architecture(self, config: ConfigDict) -> dict[str, Any]:
        """The sections of the stages, without what only training or testing reads."""
        fields = {"network": config.network}
        for section in _ARCHITECTURE:
            if section in config.model:  # else of another network
                fields |= _flat(f"model.{section}", config.model[section])
        return fields

    def build(self, config: ConfigDict, num_classes: int, rngs: nnx.Rngs) -> Network:
        """Returns the network that the configuration names."""
        if config.dtype not in _DTYPES:
            raise ValueError(
                f"`dtype` is {config.dtype!r}; expected one of {tuple(_DTYPES)}."
            )
        return NETWORKS[config.network](
            num_classes,
            **self.arguments(config),
            dtype=_DTYPES[config.dtype],
            rngs=rngs,
        )

    def passes(self, network: Any) -> Passes:
        """The last map of the backbone, as the papers show it, and no RoIs."""
        trunk = getattr(network, "trunk", None)
        if not isinstance(trunk, Trunk):
            raise ValueError(
                f"The network is a {type(network).__name__} without a `trunk`; "
                "expected one that has it, or a task with `passes` of its own."
            )
        r, g, b = trunk.pixel_mean
        return Passes(_conv5, None, (r, g, b))

    def arguments(self, config: ConfigDict) -> dict[str, Any]:
        """Returns the stages' settings, and the records of the network as a whole."""
        return {
            name: construct(make, config.model[name])
            if isinstance(make, type) and dataclasses.is_dataclass(make)
            else settings_of(make, config.model[name])
            for name, make in self.fields.constructors(config.network).items()
        }

    def usual(self, config: ConfigDict) -> ConfigDict:
        """Returns the defaults for the configured network."""
        return self.fields.get_config(config.network)

    def conventions(self, config: ConfigDict) -> dict[str, Any]:
        """What the owner of a whole detector does otherwise."""
        if not config.init_from:
            return {}
        from train.tasks import owner

        return owner.conventions(config, self.usual(config))

    def weights(self, config: ConfigDict, network: Any) -> Start:
        """Reads the weights of a whole detector, or of its backbone."""
        if not config.init_from:
            if config.model.backbone.norm == "frozen_bn":
                raise ValueError(
                    "`model.backbone.norm` is 'frozen_bn', whose statistics come with "
                    "pretrained weights; expected `init_from` to name their file, or "
                    "'group_norm'."
                )
            return Start({}, ())
        from dcn_jax.weights import init_from

        report = init_from(network, Path(os.path.expanduser(config.init_from)))
        values = {
            name: np.asarray(value)
            for name, value in variables_of(network).items()
            # The others are shapes still.
            if isinstance(value, jax.Array)
        }
        notes = [f"init_from: {sentence}" for sentence in report.differences]
        if report.restarted:
            notes.append(
                "init_from: another number of classes: these start anew: "
                + ", ".join(report.restarted)
            )
        return Start(values, tuple(notes))

    def write_network(
        self,
        folder: Path,
        config: ConfigDict,
        categories: Sequence[Mapping[str, Any]],
        variables: Mapping[str, np.ndarray],
    ) -> None:
        """Writes our own form, which `dcn_jax.Detector` and `init_from` read."""
        from dcn_jax.weights.own_format import write_own

        if type(self).build is not Composed.build:
            raise ValueError(
                f"{type(self).__name__} builds a network of its own, which "
                "`dcn_jax.networks` cannot build again"
            )
        arguments = {"num_classes": len(categories), **self.arguments(config)}
        with whole_file(folder / self.network_file) as path:
            write_own(
                path,
                config.network,
                arguments,
                variables,
                categories=self.categories(categories),
                preprocessing=preprocessing_of(config.data),
            )

    def categories(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
        """Returns what is written of categories of the data set."""
        return categories_of(rows)


def _conv5(network: Any, images: jax.Array, sizes: jax.Array) -> jax.Array:
    trunk = network.trunk
    images = trunk.normalise(images, sizes)
    return trunk.backbone(images, sizes if trunk.clear_padding else None)["c5"]


def _flat(path: str, value: Any) -> dict[str, Any]:
    """Fields at and below a path that weights depend on."""
    if path in _PASSING:
        return {}
    if not isinstance(value, ConfigDict):
        return {path: value}
    fields = {}
    for name, inner in value.items():
        fields |= _flat(f"{path}.{name}", inner)
    return fields
