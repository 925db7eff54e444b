"""Whose network a file holds: told from its names, or refused by them."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from dcn_jax.weights import conventions
from dcn_jax.weights.conventions import Arguments, Pixels
from dcn_jax.weights.names import DETECTRON2, MMDETECTION, TORCHVISION, Table

Tensors = Mapping[str, np.ndarray]
Texts = Mapping[str, str]


class Owner(NamedTuple):
    """Somebody with detectors.

    Args:
      mark: Found at the beginning of a name of each of its detectors, and of nobody
        else's.
      table: Its names.
      background_first: See `layouts.Axes`.
      pixels: How a file's network wants its images.
      arguments: What the network does and no tensor tells.
    """

    mark: str
    table: Table
    background_first: bool
    pixels: Callable[[Tensors, Texts], Pixels]
    arguments: Callable[[Tensors, Texts, Pixels], Arguments]


OWNERS = {
    "torchvision": Owner(
        "rpn.head.",
        TORCHVISION,
        background_first=True,
        pixels=lambda tensors, texts: Pixels(),
        arguments=lambda tensors, texts, pixels: conventions.torchvision_arguments(
            tensors, pixels
        ),
    ),
    "mmdetection": Owner(
        "rpn_head.",
        MMDETECTION,
        background_first=False,
        pixels=lambda tensors, texts: conventions.mmdetection_pixels(texts),
        arguments=lambda tensors, texts, pixels: conventions.mmdetection_arguments(
            texts, pixels
        ),
    ),
    "detectron2": Owner(
        "proposal_generator.",
        DETECTRON2,
        background_first=False,
        pixels=lambda tensors, texts: conventions.detectron2_pixels(tensors),
        arguments=lambda tensors, texts, pixels: conventions.detectron2_arguments(
            tensors, pixels
        ),
    ),
}

# Tensors that are of no use here: counters, and what is made or set anew.
IGNORED = re.compile(
    r"(.*\.)?num_batches_tracked|pixel_mean|pixel_std|fc\.(weight|bias)"
    r"|proposal_generator\.anchor_generator\.cell_anchors\.\d+"
)

# Names of networks that are known, and of another kind.
_REFUSED = (
    (
        r"roi_head\.(bbox|mask)_head\.\d+\.|roi_heads\.box_predictor\.\d+\.",
        "a Cascade R-CNN",
    ),
    (
        r"roi_heads\.box_head\.\d+\.|backbone\.fpn\.\w+_blocks\.\d+\.1\.|"
        r"rpn\.head\.conv\.1\.",
        "one of torchvision's second Faster or Mask R-CNN (*_v2, with batch norms in "
        "FPN and heads)",
    ),
    (
        r"(bbox_head|mask_head|bbox_roi_extractor)\.(?!retina)|"
        r"backbone\.layer\d+\.\d+\.conv2_offset\.",
        "a network of mmdetection 1.x, which counts in other pixels; "
        "save it again with mmdetection 2 or 3",
    ),
    (
        r"roi_heads\.res5\.|roi_head\.shared_head\.",
        "a Faster R-CNN on conv4 (C4), without a pyramid",
    ),
    (
        r".*\.gn\d?\.|roi_head\.bbox_head\.shared_convs\.|backbone\.fpn_\w+\.norm\.",
        "a network with group normalisation",
    ),
)


def owner_of(names: Iterable[str]) -> str | None:
    """The key in `OWNERS` of whose detector it is; None: of no detector.

    Args:
      names: Of the file's tensors.

    Raises:
      ValueError: It is of a detector that is known and not read.
    """
    names = [name for name in names if len(name) < 200]
    found = [
        owner
        for owner, description in OWNERS.items()
        if any(name.startswith(description.mark) for name in names)
    ]
    if not found:
        return None
    for pattern, network in _REFUSED:
        if any(re.match(pattern, name) for name in names):
            raise ValueError(f"it is {network}; expected Faster or Mask R-CNN with FPN")
    if len(found) > 1:
        raise ValueError(
            f"it has names of {found[0]} and of {found[1]}; expected one network"
        )
    return found[0]
