"""The real detector's training step on eight devices, against one."""

import math

import cv2
import jax
import numpy as np
import pytest

from tests.support import double
from tests.support.collectives import moves
from train import inputs, sharding
from train.configs import digits
from train.optim import learning_rate, make_optimizer, trainable
from train.skeleton import build_skeleton
from train.step import init_state, make_train_step
from train.tasks.detection import Detection


def tiny_config():
    """The demo's configuration, as small as it gets with everything in it."""
    config = digits.get_config()
    model = config.model
    model.backbone.depths = (1, 1, 1, 1)
    model.backbone.stem_features = 8
    model.backbone.deform_blocks = (0, 0, 0, -1)
    model.backbone.frozen_stages = 1
    model.rpn.anchor_sizes = (16.0, 32.0)
    model.rpn.features = model.neck.features = model.box.features = 16
    for selection in (model.rpn.train, model.rpn.test):
        selection.update({"pre_nms_top_n": 16, "post_nms_top_n": 16})
    model.sampling.samples = 8
    model.pool.hidden_features = 16
    model.pool.output_size = 3
    model.mimic.crop_size = 32
    config.optim.update({"name": "sgd", "lr": 0.02, "warmup_steps": 0})
    return config


def _smooth(image):
    coarse = np.ascontiguousarray(image[:6, :6])
    return cv2.resize(coarse, image.shape[:2], interpolation=cv2.INTER_CUBIC)


def values(variables):
    """Plausible parameters, without compiling an initialisation."""
    rng = np.random.default_rng(0)
    filled = {}
    for path, leaf in variables.items():
        if path.endswith("scale"):
            filled[path] = np.ones(leaf.shape, np.float32)
        else:
            fan_in = max(1, math.prod(leaf.shape[:-1]))
            spread = 0.0 if leaf.ndim == 1 else fan_in**-0.5
            filled[path] = np.float32(rng.normal(0, spread, leaf.shape))
    return filled


@pytest.fixture(scope="module")
def setup():
    config = tiny_config()
    task = Detection()
    skeleton = build_skeleton(config, task, 3)
    frozen = skeleton.abstract.frozen_paths
    paths = trainable(skeleton.parameters, config.optim, frozen)
    optimizer = make_optimizer(config.optim, paths)
    state = init_state(values(skeleton.variables), paths, optimizer)
    state = jax.tree.map(np.asarray, state)

    def on(devices):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        shardings = sharding.state_shardings(state, mesh)
        step = make_train_step(
            skeleton,
            paths,
            optimizer,
            learning_rate(config.optim, 100),
            seed=0,
            mesh=mesh,
            shardings=shardings,
        )
        placed = jax.device_put(state, shardings)
        arrays = double.batch(n=8, side=64)
        # Noise would magnify the rounding of a box's corners into its crop's pixels.
        arrays["images"] = np.stack([_smooth(image) for image in arrays["images"]])
        # Counts of positives differ from device to device.
        arrays["valid"][5] = False
        batch = inputs.to_batch(arrays, task, mesh)
        compiled = step.lower(placed, batch).compile(
            compiler_options={
                "xla_backend_optimization_level": 0,
                "xla_llvm_disable_expensive_passes": True,
            }
        )
        after = jax.tree.map(np.asarray, compiled(placed, batch))
        return compiled.as_text(), after

    return state, paths, on(1), on(8)


def test_only_sums_cross_devices(setup):
    _, _, _, (text, _) = setup
    assert " all-reduce" in text
    assert not moves(text)


def test_eight_devices_take_the_step_of_one(setup):
    before, paths, (_, (one, metrics_one)), (_, (eight, metrics_eight)) = setup
    assert metrics_one.keys() == metrics_eight.keys()
    for name in metrics_one:
        np.testing.assert_allclose(
            metrics_one[name], metrics_eight[name], rtol=1e-5, err_msg=name
        )
    for path, value in one.variables.items():
        other = eight.variables[path]
        np.testing.assert_allclose(value, other, atol=1e-5, err_msg=path)
    changed = {p for p in paths if (before.variables[p] != one.variables[p]).any()}
    assert len(changed) > 0.9 * len(paths)


def test_frozen_stages_are_no_part_of_the_gradient(setup):
    before, paths, (_, (one, _)), _ = setup
    frozen = before.variables.keys() - paths
    assert {"trunk.backbone.conv1.kernel", "trunk.backbone.norm1.scale"} <= frozen
    for path in frozen:
        np.testing.assert_array_equal(before.variables[path], one.variables[path])
    assert not any(path.startswith("trunk.backbone.conv1") for path in paths)
    kept = {name for state in one.opt_state for name in getattr(state, "trace", {})}
    assert kept == paths
