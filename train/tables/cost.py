"""What a configured detector costs: parameters, and multiply-adds of an image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dcn_jax.explain import multiply_adds
from train.config_dict import ConfigDict
from train.task import Task

# RoIs of an image that the head looks at, in the paper's count too.
_ROIS = 1000
# Of a frozen batch norm two tensors are parameters; two are statistics.
_STATISTICS = ("mean", "var")


class Cost(NamedTuple):
    """Of one network.

    Attributes:
      params: Numbers in its parameters, those of frozen norms among them.
      flops: Multiply-adds of one image, see `dcn_jax.explain.multiply_adds`: trunk,
        proposals, and the box head on 1000 RoIs. Masks, whose number depends on what
        is found, are not in it.
    """

    params: int
    flops: int


def cost_of(
    config: ConfigDict, task: Task, num_classes: int, height_width: tuple[int, int]
) -> Cost:
    """Counts; nothing is computed.

    Args:
      config: Of a two-stage detector.
      task: Its task.
      num_classes: Foreground classes.
      height_width: Of the image.
    """
    model = _abstract(config, task, num_classes)

    def detect(model, images, rois):
        features = model.trunk.levels_of(images, None)
        return model.rpn(features), model.roi(features, rois)

    flops = multiply_adds(
        detect,
        model,
        jax.ShapeDtypeStruct((1, *height_width, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, _ROIS, 4), jnp.float32),
    )
    return Cost(_parameters(model), flops)


def parameters_of(config: ConfigDict, task: Task, num_classes: int) -> int:
    """Counts the parameters of any network, as `Cost` does.

    Args:
      config: Of the network.
      task: Its task.
      num_classes: As the task counts them.
    """
    return _parameters(_abstract(config, task, num_classes))


def _abstract(config: ConfigDict, task: Task, num_classes: int) -> Any:
    return nnx.eval_shape(lambda: task.build(config, num_classes, nnx.Rngs(0)))


def _parameters(model: Any) -> int:
    return sum(
        variable.get_value().size
        for path, variable in nnx.to_flat_state(nnx.state(model))
        if path[-1] not in _STATISTICS
    )
