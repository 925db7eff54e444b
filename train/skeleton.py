"""Between a module and its arrays, which live under dotted paths."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from train.config_dict import ConfigDict
from train.task import Task

# Dotted path ("trunk.backbone.conv1.kernel") -> array.
Variables = dict[str, jax.Array]


class Skeleton:
    """A module's structure without its arrays, which live under dotted paths.

    A flat dictionary, such as {"trunk.backbone.conv1.kernel": ...}, is what the
    optimiser masks, checkpoints name and jit sees; `model` puts it back together.
    """

    def __init__(self, build: Callable[[nnx.Rngs], Any]):
        self._build = build
        # The module with shapes in place of arrays.
        self.abstract: Any = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        self._graph, state = nnx.split(self.abstract)
        flat = nnx.to_flat_state(state)
        self._paths = {_dotted(path): path for path, _ in flat}
        # Dotted path -> shape and type.
        self.variables = {_dotted(path): v.get_value() for path, v in flat}
        # The paths that hold parameters.
        self.parameters = {_dotted(p) for p, v in flat if isinstance(v, nnx.Param)}

    def init(self, seed: int) -> Variables:
        """Returns fresh variables; meant to be called under `jax.jit`."""
        return variables_of(self._build(nnx.Rngs(seed)))

    def model(self, variables: Variables) -> Any:
        """Returns the module with these variables in it."""
        flat = {path: variables[name] for name, path in self._paths.items()}
        return nnx.merge(self._graph, nnx.from_flat_state(flat))


def build_skeleton(config: ConfigDict, task: Task, num_classes: int) -> Skeleton:
    """Returns the configured network without its arrays."""
    return Skeleton(lambda rngs: task.build(config, num_classes, rngs))


def variables_of(model: nnx.Module) -> Variables:
    """Returns the arrays of a module under their dotted paths."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {_dotted(path): variable.get_value() for path, variable in flat}


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
