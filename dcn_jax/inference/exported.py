"""Programs and weights of a network in one file, which needs no definition of it.

The file is .safetensors: the network's variables by dotted path, a program of
`jax.export` for each canvas as bytes, "program HxW", and texts in the header. Programs
are run as they are: load only files whose origin is trusted.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export

from dcn_jax.categories import Category, from_text, to_text
from dcn_jax.images.preprocessing import Preprocessing
from dcn_jax.inference.predictor import Network
from dcn_jax.quoting import one_line, quoted
from dcn_jax.weights.detector import dotted
from dcn_jax.weights.safetensors_file import read_safetensors, write_safetensors
from xla_ops import custom_call_targets

_FORMAT = "dcn_jax.export"
_PROGRAM = "program "
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class ExportedNetwork:
    """The programs of an export, in the place of the network that they were made of.

    Args:
      programs: By (height, width) of the canvas.
      variables: By dotted path.
    """

    def __init__(
        self,
        programs: dict[tuple[int, int], export.Exported],
        variables: dict[str, np.ndarray],
    ):
        self._calls = {
            canvas: jax.jit(program.call) for canvas, program in programs.items()
        }
        self._variables = jax.device_put(variables)

    def predict(self, images: Any, sizes: Any) -> Any:
        """Runs the program of the images' canvas.

        Args:
          images: [1, H, W, 3] uint8, RGB, padded at the right and bottom.
          sizes: [1, 2] int32, the (height, width) of what is image.

        Raises:
          ValueError: There is no program for that canvas.
        """
        canvas = images.shape[1:3]
        if canvas not in self._calls:
            raise ValueError(
                f"`images` has shape {images.shape}; expected (1, H, W, 3) with (H, W) "
                f"of {tuple(self._calls)}, for which there are programs"
            )
        return self._calls[canvas](self._variables, images, sizes)


def write_export(
    path: str | os.PathLike,
    kind: str,
    network: Network,
    categories: Sequence[Category],
    preprocessing: Preprocessing,
    platforms: Sequence[str],
) -> None:
    """Writes a network's programs for all canvases, and its variables.

    Args:
      path: The file.
      kind: What uses it, as "detector".
      network: An NNX module with `predict`.
      categories: What its labels mean.
      preprocessing: Has the canvases.
      platforms: Names that jax gives them.

    Raises:
      OSError: The file cannot be written.
      ValueError: A platform is not known, or the network is no module.
    """
    unknown = [name for name in platforms if name not in _PLATFORMS]
    if isinstance(platforms, str) or not platforms or unknown:
        raise ValueError(
            f"`platforms` is {quoted(platforms)}; expected some of {_PLATFORMS}"
        )
    if not isinstance(network, nnx.Module):
        raise ValueError(
            f"the network is a {type(network).__name__}; expected a Flax module: an "
            "export cannot be exported again, but copied"
        )
    graph, state = nnx.split(network)
    flat = nnx.to_flat_state(state)
    paths = {dotted(place): (place, variable) for place, variable in flat}
    variables = {name: variable[...] for name, (_, variable) in paths.items()}

    def predict(values, images, sizes):
        leaves = [
            (place, variable.replace(values[name]))
            for name, (place, variable) in paths.items()
        ]
        module = nnx.merge(graph, nnx.from_flat_state(leaves))
        return module.predict(images, sizes)

    make = export.export(
        jax.jit(predict),
        platforms=platforms,
        disabled_checks=list(map(_allowed, custom_call_targets())),
    )
    tensors = {name: np.asarray(value) for name, value in variables.items()}
    for height, width in preprocessing.canvases:
        images = jax.ShapeDtypeStruct((1, height, width, 3), np.uint8)
        sizes = jax.ShapeDtypeStruct((1, 2), np.int32)
        program = make(variables, images, sizes).serialize()
        tensors[f"{_PROGRAM}{height}x{width}"] = np.frombuffer(program, np.uint8)
    texts = {
        "format": _FORMAT,
        "kind": kind,
        "jax": jax.__version__,
        "categories": to_text(categories),
        "preprocessing": preprocessing.to_text(),
    }
    # An export that is interrupted leaves the one before it.
    target = os.path.expanduser(path)
    write_safetensors(f"{target}.tmp", tensors, texts)
    os.replace(f"{target}.tmp", target)


def read_export(
    path: str | os.PathLike, kind: str
) -> tuple[ExportedNetwork, tuple[Category, ...], Preprocessing]:
    """Reads what `write_export` wrote.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It is damaged, or of another kind.
    """
    path = os.path.expanduser(path)
    tensors, texts = read_safetensors(path)
    shown = quoted(os.path.basename(path), 260)
    if texts.get("format") != _FORMAT or texts.get("kind") != kind:
        raise ValueError(
            f"{shown} is no export of a {kind}; expected a file that `export` wrote"
        )
    try:
        categories = from_text(texts.get("categories", ""))
        preprocessing = Preprocessing.from_text(texts.get("preprocessing", ""))
        programs = {}
        for height, width in preprocessing.canvases:
            program = tensors.pop(f"{_PROGRAM}{height}x{width}", None)
            if program is None:
                raise ValueError(f"it has no program for {height} x {width}")
            programs[height, width] = _program(program)
        for program in programs.values():
            _check_variables(program, tensors)
    except ValueError as error:
        raise ValueError(f"{shown}: {one_line(str(error), 400)}") from error
    return ExportedNetwork(programs, tensors), categories, preprocessing


def _check_variables(
    program: export.Exported, variables: dict[str, np.ndarray]
) -> None:
    """Refuses variables that are not those that a program takes."""
    # Arguments are the variables by name, sorted, then images and sizes.
    tree = jax.tree.structure(((variables, 0, 0), {}))
    taken = [(aval.shape, aval.dtype) for aval in program.in_avals[:-2]]
    values = [variables[name] for name in sorted(variables)]
    given = [(value.shape, value.dtype) for value in values]
    if program.in_tree != tree or taken != given:
        raise ValueError("its tensors are not those that its programs take")


def _allowed(target: str) -> export.DisabledSafetyCheck:
    """That a program calls one of our kernels, whose interface is kept."""
    return export.DisabledSafetyCheck.custom_call(target)


def _program(data: np.ndarray) -> export.Exported:
    try:
        return export.deserialize(bytearray(data.tobytes()))
    except ImportError:
        raise
    # It reads a flatbuffer without checking it.
    except Exception as error:
        reason = one_line(str(error), 200)
        raise ValueError(f"its program cannot be read ({reason})") from error
