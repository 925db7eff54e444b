"""Train steps of a module on some of the devices, without a run around them."""

import functools

import jax
import numpy as np

from train import inputs, sharding
from train.configs import _base
from train.optim import learning_rate, make_optimizer, trainable
from train.skeleton import Skeleton
from train.step import init_state, make_train_step


@functools.cache
def compiled(build, devices, seed, lr):
    """Returns (initialisation, step, mesh) for a module on some of the devices."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    optim = _base.get_config().optim
    optim.update({"warmup_steps": 0, "lr": lr})
    skeleton = Skeleton(build)
    paths = trainable(skeleton.parameters, optim, ("backbone.conv1.",))
    optimizer = make_optimizer(optim, paths)

    def init():
        return init_state(skeleton.init(seed), paths, optimizer)

    shardings = sharding.state_shardings(jax.eval_shape(init), mesh)
    schedule = learning_rate(optim, 100)
    step = make_train_step(
        skeleton, paths, optimizer, schedule, seed=seed, mesh=mesh, shardings=shardings
    )
    return jax.jit(init, out_shardings=shardings), step, mesh


def make(build, *, devices=1, seed=0, lr=0.1):
    init, step, mesh = compiled(build, devices, seed, lr)
    return init(), step, mesh


def host(tree):
    return jax.tree.map(np.array, tree)


def run(state, step, mesh, batches, task):
    metrics = []
    for arrays in batches:
        state, values = step(state, inputs.to_batch(arrays, task, mesh))
        metrics.append(host(values))
    return state, metrics
