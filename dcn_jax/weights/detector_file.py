"""Whole detectors in files: what network it is, and its tensors by our paths."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dcn_jax.categories import Category
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.quoting import one_line, quoted
from dcn_jax.weights import own_format
from dcn_jax.weights.architecture import detector_arguments
from dcn_jax.weights.conventions import with_conventions
from dcn_jax.weights.layouts import Axes
from dcn_jax.weights.names import Table
from dcn_jax.weights.owners import IGNORED, OWNERS, owner_of
from dcn_jax.weights.state_dict import WeightFile, read_weights


class DetectorFile(NamedTuple):
    """A detector, not yet built."""

    owner: str  # "torchvision", "mmdetection", "detectron2" or "dcn_jax"
    network: str  # of `dcn_jax.networks.NETWORKS`
    arguments: dict[str, Any]  # its owner's conventions among them
    variables: dict[str, np.ndarray]  # by dotted path, in our layouts
    names: dict[str, str]  # by dotted path, what the tensor is called in the file
    ignored: tuple[str, ...]  # tensors that are of no use, as counters of batches
    unused: tuple[str, ...]  # tensors with names that are not known
    # What the labels mean, and how images are prepared; None: the file does not say.
    categories: tuple[Category, ...] | None = None
    preprocessing: Preprocessing | None = None


def read_detector(path: str | os.PathLike, *, coco_ids: bool = True) -> DetectorFile:
    """Reads a detector of torchvision, mmdetection, detectron2, or our own form.

    Faster or Mask R-CNN with FPN, with ResNet or ResNeXt, deformable or not. The
    architecture is told from names and shapes; what these do not tell (where the stride
    is, colours, anchors, how RoIs are sampled, ...) is as in the owner's models; style,
    means, deviations and colour order as in the configuration that mmdetection puts
    into its files.

    Args:
      path: Any file that `read_state_dict` reads.
      coco_ids: Whether the 91 rows of a torchvision detector are COCO's ids, of which
        80 are classes; False for one that was trained on 90 classes.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It cannot be read, or holds no such detector; the message names the
        file.
    """
    weights, file = read_weights(path), quoted(os.path.basename(path), 260)
    detector = detector_in(weights, file, coco_ids)
    if detector is None:
        first = next(iter(weights.tensors))
        raise ValueError(
            f"{file} holds no detector whose names are known: its first tensor is "
            f"{quoted(first)}; expected those of torchvision, mmdetection or detectron2"
        )
    return detector


def detector_in(
    weights: WeightFile, file: str, coco_ids: bool = True
) -> DetectorFile | None:
    """The detector among these tensors, or None if there are no names of one.

    Args:
      weights: What a file holds.
      file: Its name, quoted.
      coco_ids: As in `read_detector`.

    Raises:
      ValueError: It is of a kind that is not read.
    """
    try:
        if own_format.is_own(weights.texts):
            told, tensors = own_format.description(weights.texts), weights.tensors
            return DetectorFile(
                "dcn_jax",
                told.network,
                told.arguments,
                tensors,
                names={name: name for name in tensors},
                ignored=(),
                unused=(),
                categories=told.categories,
                preprocessing=told.preprocessing,
            )
        owner = owner_of(weights.tensors)
        return None if owner is None else _translated(owner, weights, coco_ids)
    except ValueError as error:
        raise ValueError(f"{file}: {one_line(str(error), 500)}") from error


def _translated(owner: str, weights: WeightFile, coco_ids: bool) -> DetectorFile:
    tensors, texts = weights
    description = OWNERS[owner]
    pixels = description.pixels(tensors, texts)
    axes = Axes(
        channels=_pooled_channels(description.table, tensors),
        background_first=description.background_first,
        bgr=pixels.bgr,
        coco_ids=coco_ids,
    )
    variables, names, rest = translate(tensors, description.table, axes)
    network, arguments = detector_arguments(variables)
    of_owner = description.arguments(tensors, texts, pixels)
    return DetectorFile(
        owner,
        network,
        with_conventions(arguments, of_owner),
        variables,
        names,
        ignored=tuple(name for name in rest if IGNORED.fullmatch(name)),
        unused=tuple(name for name in rest if not IGNORED.fullmatch(name)),
    )


def translate(
    tensors: Mapping[str, np.ndarray], table: Table, axes: Axes
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """Tensors by our paths and in our layouts, their names, and those without a path.

    Raises:
      ValueError: Two tensors have one place, or one has a shape that cannot be, or
        repeats its numbers: in another layout it would take memory that the file does
        not bear out.
    """
    variables: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    rest = []
    for name, tensor in tensors.items():
        place = table.ours(name)
        if place is None:
            rest.append(name)
            continue
        if place.name in variables:
            raise ValueError(
                f"{quoted(name)} and {quoted(names[place.name])} are two names of one "
                "tensor"
            )
        if _repeats(tensor):
            raise ValueError(f"{quoted(name)} has the same number in several places")
        try:
            variables[place.name] = place.layout.read(tensor, axes)
        except (ValueError, IndexError):
            raise ValueError(
                f"{quoted(name)} has shape {tensor.shape}, which such a tensor never "
                "has"
            ) from None
        names[place.name] = name
    return variables, names, rest


def _repeats(tensor: np.ndarray) -> bool:
    """Whether it has more elements than lie between its first and its last."""
    if not tensor.size:
        return False
    steps = zip(tensor.shape, tensor.strides, strict=True)
    span = tensor.itemsize + sum((n - 1) * abs(stride) for n, stride in steps)
    return tensor.nbytes > span


def _pooled_channels(table: Table, tensors: Mapping[str, np.ndarray]) -> int:
    """Channels of the pyramid's levels, on which the first layer's layout depends."""
    for name, tensor in tensors.items():
        place = table.ours(name)
        if place and place.name == "trunk.neck.lateral.0.bias" and tensor.size:
            return tensor.size
    raise ValueError("it has no FPN as that of Faster R-CNN with FPN")
