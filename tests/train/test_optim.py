import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.configs import _base
from train.optim import (
    highest_rate,
    learning_rate,
    make_optimizer,
    multiplier,
    trainable,
)

PATHS = {
    "backbone.conv1.kernel": (3, 3),
    "backbone.layer2.0.conv2.offset_conv.kernel": (3, 3),
    "backbone.layer2.0.norm1.scale": (3,),
    "head.fc1.bias": (3,),
}


def optim(**fields):
    section = _base.get_config().optim
    section.update(fields)
    return section


def params():
    return {path: jnp.full(shape, 2.0) for path, shape in PATHS.items()}


def test_schedule_warms_up_then_drops():
    section = optim(lr=0.2, warmup_steps=10, warmup_factor=0.5, decay_at=(0.5, 0.75))
    rate = learning_rate(section, 100)
    rates = [float(rate(jnp.int32(s))) for s in (0, 5, 10, 49, 51, 74, 76, 99)]
    expected = [0.1, 0.15, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "steps", "expected"),
    [
        ({"warmup_steps": 10, "decay_at": (0.5,)}, 100, 0.2),
        ({"warmup_steps": 10, "decay_at": ()}, 11, 0.2),
        ({"warmup_steps": 10, "decay_at": ()}, 6, 0.15),
        ({"warmup_steps": 10, "decay_at": ()}, 1, 0.1),
        ({"warmup_steps": 0, "decay_at": ()}, 1, 0.2),
        # The first drop comes at step 8.
        ({"warmup_steps": 10, "decay_at": (0.08, 0.5)}, 100, 0.17),
    ],
)
def test_the_highest_rate_of_a_run(fields, steps, expected):
    section = optim(lr=0.2, warmup_factor=0.5, decay_factor=0.1, **fields)
    assert highest_rate(section, steps) == pytest.approx(expected)
    rate = learning_rate(section, steps)
    rates = [float(rate(jnp.int32(s))) for s in range(steps)]
    assert max(rates) == pytest.approx(expected)


def test_schedule_without_warmup():
    rate = learning_rate(optim(lr=0.2, warmup_steps=0), 100)
    assert float(rate(jnp.int32(0))) == pytest.approx(0.2)


def test_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="'sgd' or 'adamw'"):
        make_optimizer(optim(name="lion"), PATHS)


def test_offset_branches_learn_at_a_tenth_of_the_rate():
    section = optim(clip_norm=0.0, weight_decay=0.0)
    optimizer = make_optimizer(section, PATHS)
    grads = jax.tree.map(jnp.ones_like, params())
    updates, _ = optimizer.update(grads, optimizer.init(params()), params())
    for path, update in updates.items():
        expected = 0.1 if "offset_conv" in path else 1.0
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_norms_do_not_decay(name):
    optimizer = make_optimizer(optim(name=name, weight_decay=0.5), PATHS)
    grads = jax.tree.map(jnp.zeros_like, params())
    # optax's Adam mixes types.
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(grads, optimizer.init(params()), params())
    decayed = {path for path, update in updates.items() if (update != 0).any()}
    assert decayed == {path for path in PATHS if path.endswith("kernel")}


def test_sgd_is_momentum_over_decayed_and_clipped_gradients():
    section = optim(clip_norm=1.0, weight_decay=0.1, lr_multipliers=())
    optimizer = make_optimizer(section, {"w.kernel"})
    value = {"w.kernel": jnp.full((2, 2), 3.0)}
    grads = {"w.kernel": jnp.full((2, 2), 5.0)}
    state = optimizer.init(value)
    first, state = optimizer.update(grads, state, value)
    second, state = optimizer.update(grads, state, value)
    # Norm 10 is clipped to 1, so each entry to 0.5; the decay adds 0.3.
    np.testing.assert_allclose(first["w.kernel"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(second["w.kernel"], 0.8 * 0.9 + 0.8, rtol=1e-6)


def test_frozen_paths_and_zero_multipliers_are_not_trained():
    section = optim(lr_multipliers=((r"\.bias$", 0.0), ("offset", 0.5)))
    assert multiplier("a.offset_conv.bias", section) == 0.0
    assert trainable(PATHS, section, ("backbone.conv1.",)) == {
        "backbone.layer2.0.conv2.offset_conv.kernel",
        "backbone.layer2.0.norm1.scale",
    }


def test_optimiser_state_names_only_trainable_parameters():
    section = optim()
    paths = trainable(PATHS, section, ("backbone.conv1.",))
    optimizer = make_optimizer(section, paths)
    state = optimizer.init({p: v for p, v in params().items() if p in paths})
    traces = [s for s in jax.tree.leaves(state, is_leaf=_is_trace) if _is_trace(s)]
    assert set(traces[0].trace) == paths


def _is_trace(node):
    return isinstance(node, optax.TraceState)
