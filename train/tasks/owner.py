"""What a configuration takes from the owner of the weights that it starts from."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcn_jax.quoting import quoted
from dcn_jax.weights.detector_file import detector_in
from dcn_jax.weights.state_dict import read_weights
from train.config_dict import ConfigDict

# Fields that a backbone depends on, ...
_BACKBONE = {
    "backbone": ("norm_epsilon", "stride_in_1x1"),
    "trunk": ("pixel_mean", "pixel_std"),
}
# ... and those of a whole detector. Padding is not among them: it changes no result
# here, whatever it did where the weights come from.
_DETECTOR = {
    **_BACKBONE,
    "rpn": (
        *("anchor_sizes", "aspect_ratios", "round_anchors", "strides_of_canvas"),
        "code",
    ),
    "pool": ("sampling_ratio", "aligned"),
    "mask_pool": ("sampling_ratio", "aligned"),
    "box": ("code",),
}


def conventions(config: ConfigDict, usual: ConfigDict) -> dict[str, Any]:
    """Returns what the detector that `init_from` names wants: dotted path -> value.

    Nothing where it names a backbone alone: torchvision's are what our defaults are.
    A field that is not what the defaults have was chosen by the user, and stays.

    Args:
      config: Of the run.
      usual: The defaults for its network and its RoI pooling.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It cannot be read.
    """
    path = Path(os.path.expanduser(config.init_from))
    weights = read_weights(path)
    try:
        detector = detector_in(weights, quoted(path.name, 260))
    except ValueError:
        # Of a network that is not built here; its backbone may be.
        return {}
    if detector is None:
        return {}
    # Every detector of others that is read has a pyramid.
    whole = config.network in (detector.network, "faster_rcnn_fpn", "mask_rcnn_fpn")
    fields = {}
    for section, names in (_DETECTOR if whole else _BACKBONE).items():
        given = detector.arguments.get(section, {})
        for name in names:
            own = config.model.get(section, {})
            if (
                name in given
                and name in own
                and own[name] == usual.model[section][name]
            ):
                fields |= dict(_flat(f"model.{section}.{name}", given[name]))
    return fields


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield f"{path}.{field.name}", getattr(value, field.name)
    else:
        yield path, value
