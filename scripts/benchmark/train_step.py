"""The train step and the detector of a configuration, as the programs build them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from dcn_jax.detection.records import Batch
from dcn_jax.segmentation.records import Batch as LabelledBatch
from train import sharding
from train.config_dict import ConfigDict
from train.evaluator import make_predict
from train.optim import learning_rate, make_optimizer, trainable
from train.skeleton import build_skeleton
from train.step import TrainState, init_state, make_train_step
from train.tasks import TASKS


class TrainStep(NamedTuple):
    """A step without its arrays.

    Attributes:
      step: `(state, batch) -> (state, metrics)`, compiled when it is called.
      start: Makes the first state, where it belongs; compiled when it is called.
      state: Shapes, types and places of the state.
    """

    step: Any
    start: Any
    state: TrainState


def make_step(config: ConfigDict, num_classes: int, mesh: Mesh) -> TrainStep:
    """Returns the step of `train.main` over the mesh."""
    skeleton = build_skeleton(config, TASKS[config.task], num_classes)
    names = trainable(skeleton.parameters, config.optim, skeleton.abstract.frozen_paths)
    optimizer = make_optimizer(config.optim, names)

    def start() -> TrainState:
        return init_state(skeleton.init(0), names, optimizer)

    state = jax.eval_shape(start)
    shardings = sharding.state_shardings(state, mesh)
    step = make_train_step(
        skeleton,
        names,
        optimizer,
        learning_rate(config.optim, 1000),
        seed=0,
        mesh=mesh,
        shardings=shardings,
    )
    return TrainStep(
        step, jax.jit(start, out_shardings=shardings), _placed(state, shardings)
    )


def make_detection(config: ConfigDict, num_classes: int, mesh: Mesh) -> tuple[Any, Any]:
    """Returns `predict(variables, images, sizes)` of an evaluation, and variables.

    The variables are shapes, types and places.
    """
    skeleton = build_skeleton(config, TASKS[config.task], num_classes)
    shardings = sharding.state_shardings(skeleton.variables, mesh)
    return make_predict(skeleton, mesh), _placed(skeleton.variables, shardings)


def abstract_batch(
    config: ConfigDict, images: int, canvas: tuple[int, int], place: NamedSharding
) -> Batch | LabelledBatch:
    """Shapes, types and places of a batch of so many images, as `train.main` has it."""

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((images, *shape), dtype, sharding=place)

    pixels, sizes = array(jnp.uint8, *canvas, 3), array(jnp.int32, 2)
    if config.task == "segmentation":
        return LabelledBatch(pixels, sizes, array(jnp.uint8, *canvas))
    boxes, mask_size = config.data.max_boxes, config.data.mask_size
    return Batch(
        images=pixels,
        sizes=sizes,
        boxes=array(jnp.float32, boxes, 4),
        labels=array(jnp.int32, boxes),
        valid=array(jnp.bool_, boxes),
        masks=array(jnp.uint8, boxes, mask_size, mask_size) if mask_size else None,
        mask_windows=array(jnp.float32, boxes, 4) if mask_size else None,
    )


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        tree,
        shardings,
    )
