"""Detectors built from files."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dcn_jax.networks import NETWORKS, Network
from dcn_jax.quoting import one_line, quoted
from dcn_jax.weights.detector_file import DetectorFile, read_detector


def import_detector(
    path: str | os.PathLike, *, coco_ids: bool = True, dtype: Any = None
) -> Network:
    """Builds the detector of a file, which does what its owner's does.

    Of our own form it is any network of `dcn_jax.networks`, DeepLab among them.

    Args:
      path: Of torchvision, mmdetection or detectron2, or of our own form, as
        `dcn_jax.weights.convert` and runs of `train.main` write it; see
        `read_detector`.
      coco_ids: As in `read_detector`.
      dtype: Of the computation; None takes that of the parameters, float32.

    Returns:
      The network, ready to `predict` on RGB images of 0 to 255 that have the size they
      should have: the owners' ways to resize them are their own.

    Raises:
      OSError: The file cannot be opened.
      ValueError: It cannot be read, holds no such detector, lacks a tensor or has one
        for which the network has no place; the message names the file.
    """
    file = quoted(os.path.basename(path), 260)
    return build(read_detector(path, coco_ids=coco_ids), file, dtype)


def build(detector: DetectorFile, file: str, dtype: Any = None) -> Network:
    """Builds the network of a file that has nothing else.

    Args:
      detector: Of the file.
      file: Its name, quoted.
      dtype: As in `import_detector`.

    Raises:
      ValueError: A tensor is lacking or has no place; the message names the file.
    """
    if detector.unused:
        raise ValueError(
            f"{file} has {_listed(detector.unused)}, for which the network has no place"
        )
    try:
        return build_detector(detector, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{file}: {one_line(str(error), 400)}") from error


def build_detector(
    detector: DetectorFile, *, dtype: Any = None, param_dtype: Any = jnp.float32
) -> Network:
    """Builds the network of a description and fills it.

    Raises:
      ValueError: An argument does not fit, a variable has nothing or another shape.
    """
    abstract = abstract_detector(detector, dtype, param_dtype)
    return with_variables(abstract, detector.variables)


def with_variables(abstract: Any, variables: Mapping[str, np.ndarray]) -> Any:
    """A module like an abstract one, of `nnx.eval_shape`, with these values.

    Args:
      abstract: Its variables have shapes and types.
      variables: By dotted path, in our layouts.

    Raises:
      ValueError: A variable has nothing or another shape, or a value has no place.
    """
    graph, state = nnx.split(abstract)
    leaves = []
    for path, variable in nnx.to_flat_state(state):
        name = dotted(path)
        if name not in variables:
            raise ValueError(f"it has nothing for {quoted(name)}")
        value = _fitted(variables[name], variable, name)
        leaves.append((path, variable.replace(value)))
    surplus = variables.keys() - {dotted(path) for path, _ in leaves}
    if surplus:
        raise ValueError(
            f"it has {_listed(sorted(surplus))}, for which the network has no place"
        )
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def abstract_detector(
    detector: DetectorFile, dtype: Any = None, param_dtype: Any = jnp.float32
) -> Network:
    """The network without values: its variables have shapes and types.

    Raises:
      ValueError: An argument does not fit.
    """
    arguments, variables = detector.arguments, detector.variables
    try:
        # Each block has variables; a claim of more would only take time.
        if sum(arguments["backbone"]["depths"]) > len(variables):
            raise ValueError("it claims more blocks than it has tensors")
        if arguments.get("mask", {}).get("num_convs", 1) > len(variables):
            raise ValueError("it claims more layers than it has tensors")
        return nnx.eval_shape(
            lambda: NETWORKS[detector.network](
                **arguments, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)
            )
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"its arguments do not fit: {one_line(str(error), 300)}"
        ) from error


def variables_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """The variables of a module, by dotted path."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {dotted(path): np.asarray(variable[...]) for path, variable in flat}


def dotted(path: tuple[Any, ...]) -> str:
    """The path of a variable as a name."""
    return ".".join(map(str, path))


def _fitted(value: np.ndarray, variable: nnx.Variable, name: str) -> jax.Array:
    """A value in the variable's type."""
    if value.shape != variable.shape:
        raise ValueError(
            f"{quoted(name)} has shape {value.shape}; expected {variable.shape}"
        )
    if not jnp.issubdtype(value.dtype, np.floating):
        raise ValueError(
            f"{quoted(name)} has dtype {value.dtype.name}; expected a float type"
        )
    return jnp.asarray(value.astype(variable.dtype, copy=False))


def missing_variables(detector: DetectorFile) -> tuple[str, ...]:
    """Paths of the network for which the file has nothing.

    Raises:
      ValueError: An argument does not fit, or a variable has another shape, or no place
        in the network.
    """
    state = nnx.state(abstract_detector(detector))
    shapes = {dotted(path): v.shape for path, v in nnx.to_flat_state(state)}
    for name, value in detector.variables.items():
        if name not in shapes:
            raise ValueError(
                f"it has {quoted(name)}, for which the network has no place"
            )
        if value.shape != shapes[name]:
            raise ValueError(
                f"{quoted(name)} has shape {value.shape}; expected {shapes[name]}"
            )
    return tuple(name for name in shapes if name not in detector.variables)


def _listed(names: Sequence[str]) -> str:
    first, *more = names
    return quoted(first) + (f" (and {len(more)} more)" if more else "")
