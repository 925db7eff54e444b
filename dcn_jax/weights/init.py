"""Initialisation of a module from the weights of a file, in place."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.backbones.resnet import ResNet
from dcn_jax.modules import DeformConv
from dcn_jax.quoting import one_line, quoted
from dcn_jax.weights.detector import abstract_detector, dotted
from dcn_jax.weights.detector_file import DetectorFile, detector_in
from dcn_jax.weights.layouts import COCO_SLOTS
from dcn_jax.weights.own_format import is_own
from dcn_jax.weights.resnet_file import resnet_in
from dcn_jax.weights.state_dict import WeightFile, read_weights

# Layers with rows for every class.
_CLASS_LAYERS = (
    *("roi.classifier.", "roi.regressor.", "mask.predictor.", "mimic.classifier."),
    # Of R-FCN, the class-aware RPN and DeepLab.
    *("roi.scores.", "rpn.classifier.", "head.score."),
)
# Parts that one detector may have and another not.
_OPTIONAL_PARTS = ("mask.", "mimic.", "roi.pool.")
_OFFSET_BRANCH = ".offset_conv."
_PYRAMID = "trunk.neck.lateral.0.kernel"


class InitReport(NamedTuple):
    """What `init_from` did, by name."""

    loaded: tuple[str, ...]  # tensors of the file that were copied into the module
    kept: tuple[str, ...]  # variables of the module that the file says nothing about
    unused: tuple[str, ...]  # tensors of the file that were not used
    # Variables of the module that start anew, as it has another number of classes.
    restarted: tuple[str, ...] = ()
    # What the file's network does otherwise, which the module should not: a sentence
    # for each.
    differences: tuple[str, ...] = ()


def init_from(module: nnx.Module, path: str | os.PathLike) -> InitReport:
    """Copies weights into a backbone or a detector, in place.

    A detector with a pyramid takes a whole detector, see `read_detector`, and any
    network takes one of its kind in our own form: with another number of classes the
    layers with rows for each class start anew (91 rows of torchvision's are COCO's 80
    classes, unless the module has 90). The module may deform where the file's network
    does not, and have a mask head, deformable RoI pooling or mimicking; these keep
    their values.

    Any other model takes the backbone alone, of a detector or of a torchvision ResNet.
    Offset branches that are not in the file, the classifier (fc) and the batch counters
    are left out. Where the ResNet is a part of the model that was saved, its names have
    a prefix ("backbone.", "module.encoder."): whatever it is, it is found.

    Values are cast to the module's types and placed as its variables are. If anything
    is refused, nothing is changed.

    Args:
      module: A `ResNet`, or a model that has one as `backbone` or as `trunk.backbone`.
        Its norm is "frozen_bn", unless the file is of our own form.
      path: Any file that `read_state_dict` reads.

    Returns:
      The names that were loaded, kept, not used and started anew.

    Raises:
      OSError: The file cannot be opened.
      TypeError: `module` is not such a model.
      ValueError: The file cannot be read (see `read_state_dict`), lacks a tensor, has
        one of another shape or type, has two ResNets, or belongs to another network;
        the message names the tensor and the file.
    """
    trunk = getattr(module, "trunk", module)
    backbone = getattr(trunk, "backbone", trunk)
    if not isinstance(backbone, ResNet):
        raise TypeError(
            f"`module` is {type(module).__name__}; expected a ResNet, or a model with "
            "a ResNet as `backbone`"
        )
    weights, file = read_weights(path), quoted(os.path.basename(path), 260)
    own = is_own(weights.texts)
    if backbone.norm != "frozen_bn" and not own:
        raise ValueError(
            f"`module` has norm {backbone.norm!r}; weights that are not of our own "
            f"form, as in {file}, belong to 'frozen_bn'"
        )
    paths = {dotted(path) for path, _ in nnx.to_flat_state(nnx.state(module))}
    if _PYRAMID in paths or own:
        # As many rows as COCO has ids are ids, unless there are as many classes.
        coco_ids = _num_classes(module) != COCO_SLOTS - 1
        detector = _detector_in(weights, file, coco_ids)
        if detector is not None and (
            _PYRAMID in paths or _frame(paths) == _frame(detector.variables)
        ):
            return _init_detector(module, detector, weights, file)
    return _init_backbone(module, backbone, weights, file)


def _num_classes(module: Any) -> int | None:
    """Of a whole network; None of a backbone."""
    for part in ("roi", "head", "rpn"):
        if hasattr(module, part):
            return getattr(module, part).num_classes
    return None


def _frame(paths: Iterable[str]) -> set[str]:
    """Paths that all networks of a kind have, whatever their backbone."""
    return {
        path
        for path in paths
        if not path.startswith("trunk.backbone.") and not _is_optional(path)
    }


def _detector_in(
    weights: WeightFile, file: str, coco_ids: bool = True
) -> DetectorFile | None:
    """As `detector_in`; the arguments of our own form are tried."""
    detector = detector_in(weights, file, coco_ids)
    if detector is not None and detector.owner == "dcn_jax":
        try:
            abstract_detector(detector)
        except ValueError as error:
            raise ValueError(f"{file}: {one_line(str(error), 400)}") from error
    return detector


def _init_backbone(
    module: nnx.Module, backbone: ResNet, weights: WeightFile, file: str
) -> InitReport:
    variables = {dotted(p): v for p, v in nnx.to_flat_state(nnx.state(backbone))}
    shapes = {path: variable.shape for path, variable in variables.items()}
    try:
        detector = _detector_in(weights, file)
    except ValueError:
        # Of a network whose other parts are not known.
        detector = None
    differences: tuple[str, ...] = ()
    if detector is None:
        values, names = resnet_in(weights.tensors, shapes, file)
    else:
        values, names = _backbone_of(detector, shapes, file)
        differences = _differences(module, backbone, detector)
        values |= _stem(values, "", module, detector)
    _set(backbone, values, names, file)
    report = _report(weights, variables, names)
    return report._replace(differences=differences)


def _backbone_of(detector, shapes, file):
    """Values and names by path, of a detector's backbone."""
    prefix = "trunk.backbone."
    values = {
        path.removeprefix(prefix): value
        for path, value in detector.variables.items()
        if path.startswith(prefix)
    }
    names = {path: detector.names[prefix + path] for path in values}
    for path in shapes:
        if path not in values and _OFFSET_BRANCH not in f".{path}":
            raise ValueError(f"{file} has nothing for {quoted(prefix + path)}")
    _check_places(values, shapes, names, file)
    return values, names


def _init_detector(
    module: nnx.Module, detector: DetectorFile, weights: WeightFile, file: str
) -> InitReport:
    model: Any = module
    variables = {dotted(p): v for p, v in nnx.to_flat_state(nnx.state(module))}
    shapes = {path: variable.shape for path, variable in variables.items()}
    values, names = dict(detector.variables), dict(detector.names)
    restarted = []
    if detector.arguments["num_classes"] != _num_classes(module):
        # Boxes or masks that do not depend on the class have the same rows in both.
        restarted = [
            p
            for p in shapes
            if p.startswith(_CLASS_LAYERS) and p in values
            if values[p].shape != shapes[p]
        ]
    for path in (*restarted, *(p for p in values if _is_spare(p, shapes))):
        del values[path], names[path]
    for path in shapes:
        if path not in values and path not in restarted and not _is_optional(path):
            raise ValueError(f"{file} has nothing for {quoted(path)}")
    _check_places(values, shapes, names, file)
    differences = _differences(module, model.trunk.backbone, detector)
    values |= _stem(values, "trunk.backbone.", module, detector)
    _set(module, values, names, file)
    report = _report(weights, variables, names)
    kept = tuple(path for path in report.kept if path not in restarted)
    return report._replace(
        kept=kept, restarted=tuple(restarted), differences=differences
    )


def _is_optional(path: str) -> bool:
    return path.startswith(_OPTIONAL_PARTS) or _OFFSET_BRANCH in path


def _is_spare(path: str, shapes: Mapping[str, Any]) -> bool:
    """Whether it is of a part that the module does not have, and need not."""
    return path not in shapes and path.startswith(_OPTIONAL_PARTS)


def _check_places(values, shapes, names, file) -> None:
    for path, value in values.items():
        if path not in shapes:
            raise ValueError(
                f"{file} has {quoted(names[path])}, for which the module has no place; "
                "is it of another network?"
            )
        if value.shape != shapes[path]:
            raise ValueError(
                f"{quoted(names[path])} in {file} has shape {value.shape} in our "
                f"layout; expected {shapes[path]}"
            )


def _stem(values, prefix: str, module: Any, detector: DetectorFile):
    """The first kernel, for images that the module divides by its own deviations."""
    ours = getattr(getattr(module, "trunk", None), "pixel_std", None)
    theirs = detector.arguments.get("trunk", {}).get("pixel_std", ours)
    if ours is None or tuple(theirs) == tuple(ours):
        return {}
    name = f"{prefix}conv1.kernel"
    scale = np.asarray(ours) / np.asarray(theirs)
    return {name: values[name].astype(np.float64) * scale[:, None]}


def _differences(
    module: Any, backbone: ResNet, detector: DetectorFile
) -> tuple[str, ...]:
    stage = detector.arguments["backbone"]
    blocks: Any = backbone
    epsilon, strided = blocks.norm1.epsilon, blocks.layer1[0].stride_in_1x1
    pairs = [
        ("norm_epsilon", stage.get("norm_epsilon", 1e-5), epsilon),
        ("stride_in_1x1", stage.get("stride_in_1x1", False), strided),
    ]
    if stage.get("modulated") and any(stage.get("deform_blocks", ())):
        scale = stage.get("mask_scale", 1)
        pairs.append(("mask_scale", scale, _mask_scale(backbone, scale)))
    mean = getattr(getattr(module, "trunk", None), "pixel_mean", None)
    if mean is not None:
        theirs = detector.arguments.get("trunk", {}).get("pixel_mean", mean)
        pairs.append(("pixel_mean", theirs, mean))
    return tuple(
        f"`{name}` of the file's network is {theirs}, the module's {ours}"
        for name, theirs, ours in pairs
        if not np.allclose(theirs, ours, rtol=1e-5, atol=1e-9)
    )


def _mask_scale(backbone: ResNet, default: int) -> int:
    """Of the deformable layers; the default where there are none."""
    layers = (m for _, m in nnx.iter_modules(backbone) if isinstance(m, DeformConv))
    return next((layer.mask_scale for layer in layers), default)


def _set(module: nnx.Module, values, names, file: str) -> None:
    """Puts values in the place of variables: all, or none."""
    variables = {dotted(p): (p, v) for p, v in nnx.to_flat_state(nnx.state(module))}
    new = []
    for path, value in values.items():
        if not jnp.issubdtype(value.dtype, np.floating):
            raise ValueError(
                f"{quoted(names[path])} has dtype {value.dtype.name} in {file}; "
                "expected a float type"
            )
        place, variable = variables[path]
        old = variable.get_value()
        new.append((place, variable, value.astype(old.dtype), old.sharding))
    for _, variable, value, sharding in new:
        variable.set_value(jax.device_put(value, sharding))
    nnx.update(module, nnx.from_flat_state([(p, v) for p, v, _, _ in new]))


def _report(weights: WeightFile, variables, names) -> InitReport:
    used = set(names.values())
    return InitReport(
        loaded=tuple(names.values()),
        kept=tuple(path for path in variables if path not in names),
        unused=tuple(name for name in weights.tensors if name not in used),
    )
