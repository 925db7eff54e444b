"""Converts files of weights from one owner's form to another's.

    python -m dcn_jax.weights.convert model.pth detector.safetensors
    python -m dcn_jax.weights.convert model_final.pkl detector.pth --to=mmdetection

Reads what `read_detector` reads, or a torchvision ResNet alone. Writes our own form
(dcn_jax, .safetensors, which `import_detector` reads back), or the names of torchvision
or mmdetection, as .safetensors or as a file for `torch.load`. Prints what of the file
is not used and what of the network the file lacks; then the exit status is 1 and
nothing is written. What the network does otherwise than those of the names it is
written under (colours, where the stride is, ...) no tensor tells: it is printed, for
the configuration of whoever loads it.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np
from flax import nnx

from dcn_jax.backbones import ResNet
from dcn_jax.quoting import one_line, quoted
from dcn_jax.weights.architecture import backbone_arguments
from dcn_jax.weights.detector import dotted, missing_variables
from dcn_jax.weights.detector_file import DetectorFile, detector_in, translate
from dcn_jax.weights.export import TARGETS, state_dict_of, write_state_dict
from dcn_jax.weights.layouts import Axes
from dcn_jax.weights.names import RESNET
from dcn_jax.weights.own_format import write_own
from dcn_jax.weights.owners import IGNORED
from dcn_jax.weights.state_dict import WeightFile, read_weights

_OWN = "dcn_jax"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="dcn_jax.weights.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument("--to", choices=(_OWN, *TARGETS), default=_OWN)
    parser.add_argument(
        "--no-coco-ids",
        action="store_true",
        help="91 rows of torchvision's are 90 classes, not COCO's ids",
    )
    options = parser.parse_args(arguments)
    try:
        return _convert(
            options.source, options.target, options.to, not options.no_coco_ids
        )
    except (OSError, ValueError) as error:
        print(f"error: {one_line(str(error), 1000)}", file=sys.stderr)
        return 1


def _convert(source: str, target: str, to: str, coco_ids: bool) -> int:
    if to == _OWN and not target.endswith(".safetensors"):
        raise ValueError(f"OUT is {quoted(target)}; expected .safetensors for {_OWN}")
    weights, file = read_weights(source), quoted(os.path.basename(source), 260)
    detector = detector_in(weights, file, coco_ids)
    if detector is None:
        return _convert_backbone(weights, file, target, to)
    missing = missing_variables(detector)
    print(f"{file}: {detector.owner}'s {detector.network}")
    for stage, value in detector.arguments.items():
        print(f"  {stage}: {one_line(str(value), 500)}")
    if _report(detector.ignored, detector.unused, missing):
        return 1
    if to == _OWN:
        write_own(
            target,
            detector.network,
            detector.arguments,
            detector.variables,
            categories=detector.categories,
            preprocessing=detector.preprocessing,
        )
    else:
        tensors = state_dict_of(detector.variables, to)
        write_state_dict(target, tensors)
        for line in _not_carried(detector, tensors, to):
            print(line)
    _done(detector, target)
    return 0


def _not_carried(
    detector: DetectorFile, tensors: dict[str, np.ndarray], to: str
) -> list[str]:
    """A line for each argument that who reads the names of `to` takes for another."""
    again = detector_in(WeightFile(tensors, {}), "")
    assert again is not None
    lines = []
    for stage in ("backbone", "trunk", "rpn", "pool", "box"):
        theirs = again.arguments.get(stage, {})
        ours = detector.arguments.get(stage, {})
        lines += [
            f"not carried: {stage} has {name} {ours[name]}; {to}'s have {value}"
            for name, value in theirs.items()
            if name in ours and ours[name] != value
        ]
    return lines


def _convert_backbone(weights: WeightFile, file: str, target: str, to: str) -> int:
    axes = Axes(channels=1, background_first=True, bgr=False)
    variables, _, rest = translate(weights.tensors, RESNET, axes)
    if not variables:
        raise ValueError(f"{file} holds no detector and no ResNet with known names")
    arguments = backbone_arguments(variables)
    print(f"{file}: a ResNet, {arguments}")
    if to == _OWN:
        raise ValueError(
            f"{file} holds a ResNet alone; expected a detector for --to={_OWN}"
        )
    ignored = tuple(name for name in rest if IGNORED.fullmatch(name))
    unused = tuple(name for name in rest if not IGNORED.fullmatch(name))
    state = nnx.state(nnx.eval_shape(lambda: ResNet(**arguments, rngs=nnx.Rngs(0))))
    places = (dotted(path) for path, _ in nnx.to_flat_state(state))
    missing = [name for name in places if name not in variables]
    if _report(ignored, unused, missing):
        return 1
    write_state_dict(target, state_dict_of(variables, to, backbone=True))
    print(f"{len(variables)} tensors written to {quoted(target, 500)}")
    return 0


def _report(
    ignored: Sequence[str], unused: Sequence[str], missing: Sequence[str]
) -> bool:
    """Prints what has no counterpart; returns whether anything should have one."""
    if ignored:
        print(f"{len(ignored)} tensors of no use here, such as {quoted(ignored[-1])}")
    for name in unused:
        print(f"unused: {quoted(name, 200)}")
    for name in missing:
        print(f"missing: {quoted(name, 200)}")
    return bool(unused or missing)


def _done(detector: DetectorFile, target: str) -> None:
    count = sum(value.size for value in detector.variables.values())
    print(
        f"{len(detector.variables)} tensors, {count} numbers, written to "
        f"{quoted(target, 500)}"
    )


if __name__ == "__main__":
    sys.exit(main())
