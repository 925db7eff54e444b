"""Effective receptive fields against impulse responses."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dcn_jax.explain import area_side, effective_receptive_field, square_side
from tests.support.tiny_detector import tiny_backbone


class Linear(nnx.Module):
    """Two convolutions, the first with a stride."""

    def __init__(self, features):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(2, 3, (3, 3), strides=2, padding=1, rngs=rngs)
        self.second = nnx.Conv(3, features, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))


def test_of_a_linear_network_it_is_the_impulse_response():
    model, nodes = Linear(3), [(2, 1), (0, 3)]
    image = jnp.asarray(np.random.default_rng(0).standard_normal((8, 7, 2), np.float32))
    outputs = []

    @jax.jit
    def run(model, image):
        def call(model, x):
            outputs.append(model(x))
            return outputs[-1]

        # Every pixel of every channel alone, without the biases.
        impulses = jnp.eye(image.size).reshape(-1, *image.shape)
        answers = model(impulses) - model(jnp.zeros_like(image[None]))
        found = effective_receptive_field(model, call, image, nodes)
        return found, answers, model(image[None])

    found, answers, output = run(model, image)
    for k, (y, x) in enumerate(nodes):
        np.testing.assert_array_equal(found.response[k], output[0, y, x])
        direction = output[0, y, x] / np.linalg.norm(output[0, y, x])
        expected = (answers[:, y, x] @ direction).reshape(image.shape)
        np.testing.assert_allclose(found.gradient[k], expected, atol=1e-5)
    strength = np.linalg.norm(found.gradient, axis=-1)
    np.testing.assert_allclose(found.strength, strength, rtol=1e-5)
    # Two 3x3 layers, the first with stride 2, see 7 x 7 pixels: here rows 1 to 7.
    assert not found.strength[0, 0].any() and found.strength[0, 1].any()


def test_frozen_stages_pass_the_gradient():
    model = tiny_backbone(frozen_stages=1)

    def call(model, x):
        return model._stop_if_frozen(model.conv1(x), 1)

    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    find = jax.jit(lambda m, x: effective_receptive_field(m, call, x, [(3, 3)]))
    assert np.abs(find(model, image).gradient).max() > 0
    assert model.frozen_stages == 1


def test_sizes():
    strength = np.zeros((9, 9), np.float32)
    strength[3:6, 3:6] = 1
    strength[4, 8] = 0.04
    assert area_side(jnp.asarray(strength)) == 3
    assert area_side(jnp.asarray(strength), share=0.01) == np.sqrt(np.float32(10))
    assert square_side(jnp.asarray(strength), (4, 4), share=0.5) == 3
    assert square_side(jnp.asarray(strength), (4, 4), share=0.99) == 3
    assert square_side(jnp.asarray(strength), (4, 4), share=0.999) == 9
    assert square_side(jnp.zeros((9, 9)), (4, 4)) == 1


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ([(4, 0)], ValueError, r"`nodes` has \(4, 0\); .* below \(4, 4\)"),
        ([(0, -1)], ValueError, r"`nodes` has \(0, -1\)"),
        ([(0,)], ValueError, r"`nodes` has shape \(1, 1\); expected \(K, 2\)"),
        ((0, 0), ValueError, r"`nodes` has shape \(2,\); expected \(K, 2\)"),
        ([(0.5, 1.0)], TypeError, "`nodes` has dtype float64"),
    ],
)
def test_nodes_that_are_not_there(nodes, error, message):
    image = np.zeros((8, 7, 2), np.float32)
    find = inspect.unwrap(effective_receptive_field)
    with pytest.raises(error, match=message):
        jax.eval_shape(
            lambda m: find(m, lambda m, x: m(x), image, nodes),
            Linear(1),
        )


def test_bad_arguments():
    image = np.zeros((8, 7, 2), np.float32)

    def run(model=None, call=lambda m, x: m(x), image=image):
        model = Linear(1) if model is None else model
        find = inspect.unwrap(effective_receptive_field)
        return find(model, call, image, [(0, 0)])

    with pytest.raises(TypeError, match="`model` is function; expected a flax"):
        run(model=lambda x: x)
    with pytest.raises(ValueError, match=r"`image` has shape \(1, 8, 7, 2\); expected"):
        run(image=image[None])
    with pytest.raises(TypeError, match="`call` returns tuple; expected an array"):
        run(call=lambda m, x: (x, x))
    with pytest.raises(ValueError, match=r"`call` returns an array of shape \(8, 7\)"):
        run(call=lambda m, x: x[0, ..., 0])
