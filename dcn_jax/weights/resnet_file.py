"""A ResNet among the tensors of a file, under torchvision's names.

timm's ResNets of the same kind ("resnet50" and so on) have the same names, and with
deformable layers mmdetection's.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from dcn_jax.quoting import quoted
from dcn_jax.weights.layouts import Axes
from dcn_jax.weights.names import RESNET

# Tensors of the part that `ResNet` builds; one that finds no place there is a sign of
# another network. (fc.* is the classifier.)
_BACKBONE = re.compile(r"(conv1|bn1|layer\d+)\.(?!.*num_batches_tracked$)")
_AXES = Axes(channels=1, background_first=True, bgr=False)


def resnet_in(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], file: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a file has for the variables of a ResNet.

    Offset branches need not be there. Where the ResNet is a part of the model that was
    saved, its names have a prefix ("backbone.", "backbone.body.", "module.encoder."):
    whatever it is, it is found.

    Args:
      tensors: Of the file.
      shapes: Of the variables, by dotted path.
      file: Its name, quoted.

    Returns:
      Values, in our layouts, and names in the file, both by dotted path.

    Raises:
      ValueError: The file lacks a tensor, has one of another shape, has two ResNets, or
        belongs to another network; the message names the tensor and the file.
    """
    places = {path: RESNET.theirs(path) for path in shapes}
    known = {path: place for path, place in places.items() if place is not None}
    required = [p.name for path, p in known.items() if "offset_conv" not in path]
    prefix = _prefix(tensors, set(required), file)
    missing = [prefix + name for name in required if prefix + name not in tensors]
    if missing:
        raise ValueError(
            f"{file} has no {_listed(missing)}; is it of a ResNet of other "
            f"depths?{_beginning(tensors, prefix)}"
        )
    names = {
        path: prefix + place.name
        for path, place in known.items()
        if prefix + place.name in tensors
    }
    used = set(names.values())
    foreign = [
        name
        for name in tensors
        if name not in used
        and name.startswith(prefix)
        and _BACKBONE.match(name, len(prefix))
    ]
    if foreign:
        raise ValueError(
            f"{file} has {_listed(foreign)}, for which the module has no place; is "
            "it of another network?"
        )
    values = {}
    for path, name in names.items():
        layout = known[path].layout
        # Of no memory.
        like = np.broadcast_to(np.float32(0), shapes[path])
        expected = layout.write(like, _AXES).shape
        if tensors[name].shape != expected:
            raise ValueError(
                f"{quoted(name)} has shape {tensors[name].shape} in {file}; expected "
                f"{expected}"
            )
        values[path] = layout.read(tensors[name], _AXES)
    return values, names


def _prefix(names: Iterable[str], expected: set[str], file: str) -> str:
    """What stands in the file before the expected names; "" if they are not there."""
    depth = max(name.count(".") for name in expected) + 1
    found: Counter[str] = Counter()
    for name in names:
        # A name of the file may have any number of parts; the last ones matter.
        parts = name.rsplit(".", depth)
        for i in range(len(parts)):
            tail = ".".join(parts[i:])
            if tail in expected:
                found[name.removesuffix(tail)] += 1
    complete = [p for p, count in found.items() if count == len(expected)]
    if "" in complete or not found:
        return ""
    if len(complete) > 1:
        raise ValueError(
            f"{file} has a ResNet under {quoted(complete[0])} and another under "
            f"{quoted(complete[1])}; expected one: save its weights alone"
        )
    prefix, count = found.most_common(1)[0]
    # Fewer are of some other network that has a conv1 here and there.
    return prefix if 4 * count >= len(expected) else ""


def _beginning(names: Iterable[str], prefix: str) -> str:
    """Says how the names begin, if all do so alike."""
    if not prefix:
        shared = os.path.commonprefix(list(names))  # noqa: RUF071, of characters
        prefix = shared[: shared.rfind(".") + 1]
    return f" (Its names begin with {quoted(prefix)}.)" if prefix else ""


def _listed(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{quoted(names[0])}{more}"
