"""The gradient of the whole detector's loss, in float64, against finite differences.

Proposals, matches and samples are computed once and held fixed: the loss is then a
differentiable function of the parameters but for the kinks of ReLU, of maxima and, at
integer positions, of bilinear sampling.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.tiny_detector import make_detector, tiny_batch

# Half the distance between the two sides: small enough that hardly a ReLU of the
# thousands after the parameter turns over on the way.
_EARLY, _LATE = 1e-8, 1e-6

# A parameter of each kind: path, part of its last axis, step.
_ALL = slice(None)
KINDS = {
    "stem": (("trunk", "backbone", "conv1", "kernel"), _ALL, _EARLY),
    "deformable kernel": (
        ("trunk", "backbone", "layer3", 0, "conv2", "kernel"),
        _ALL,
        _EARLY,
    ),
    "offset branch": (
        ("trunk", "backbone", "layer3", 0, "conv2", "offset_conv", "kernel"),
        slice(0, 18),
        _EARLY,
    ),
    "mask branch": (
        ("trunk", "backbone", "layer4", 0, "conv2", "offset_conv", "kernel"),
        slice(18, 27),
        _EARLY,
    ),
    "reduction": (("trunk", "neck", "reduction", "kernel"), _ALL, _EARLY),
    "RoI branch, hidden": (("roi", "pool", "fc1", "kernel"), _ALL, _LATE),
    "RoI branch, offsets": (("roi", "pool", "offset_fc", "bias"), slice(0, 18), _LATE),
    "RoI branch, masks": (("roi", "pool", "offset_fc", "bias"), slice(18, 27), _LATE),
    "RPN": (("rpn", "conv", "kernel"), _ALL, _EARLY),
    "RPN boxes": (("rpn", "deltas", "kernel"), _ALL, _LATE),
    "head": (("roi", "fc6", "kernel"), _ALL, _LATE),
    "head boxes": (("roi", "regressor", "kernel"), _ALL, _LATE),
    "mimic classifier": (("mimic", "classifier", "kernel"), _ALL, _LATE),
}


def values(params):
    """Values for abstract parameters, away from the zeros and ones of a fresh model."""
    rng = np.random.default_rng(7)
    leaves = []
    for path, variable in nnx.to_flat_state(params):
        noise = rng.normal(size=variable.shape)
        if "offset_conv" in path:
            # Offsets stay within (0, 1), half a pixel away from the lattice.
            value = 0.01 * noise + (0.5 if path[-1] == "bias" else 0.0)
        elif "offset_fc" in path:
            value = 0.3 * noise
        elif path[-1] == "kernel":
            value = noise / np.sqrt(np.prod(variable.shape[:-1]))
        else:
            value = 0.1 * noise + (1.0 if path[-1] == "scale" else 0.0)
        leaves.append((path, variable.replace(jnp.asarray(value))))
    return nnx.from_flat_state(leaves)


def make():
    return make_detector(
        {"deform_blocks": (0, 0, -1, -1)},
        mimic={},
        param_dtype=jnp.float64,
    )


@pytest.fixture(scope="module")
def derivatives():
    """Directional derivative of each kind: by jax.grad, and by central differences."""
    with jax.enable_x64(True):
        graph, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
        params = values(params)
        batch = tiny_batch()

        def merged(params):
            return nnx.merge(graph, params, rest)

        targets = jax.jit(lambda p: merged(p).targets(batch, jax.random.key(0)))(params)
        assert targets.mimic.valid.any() and (targets.rpn.labels > 0).any()

        def total(params, targets):
            return sum(
                merged(params).losses(batch, jax.random.key(0), targets).values()
            )

        loss = jax.jit(total)
        gradient = jax.jit(jax.grad(total))(params, targets)
        gradient = dict(nnx.to_flat_state(gradient))
        variables = dict(nnx.to_flat_state(params))
        results = {}
        for i, (kind, (path, part, step)) in enumerate(KINDS.items()):
            exact = gradient[path][...]
            direction = np.zeros(exact.shape)
            rng = np.random.default_rng(i)
            direction[..., part] = rng.normal(size=direction[..., part].shape)
            # Along the gradient too, so that the derivative is not small by chance.
            direction[..., part] += np.asarray(exact / (jnp.abs(exact).max() + 1e-30))[
                ..., part
            ]

            def moved(distance, path=path, change=direction):
                value = variables[path][...] + distance * change
                moved = variables | {path: variables[path].replace(value)}
                return nnx.from_flat_state(list(moved.items()))

            ahead, behind = (loss(moved(s), targets) for s in (step, -step))
            results[kind] = (
                float(jnp.sum(exact * direction)),
                float((ahead - behind) / (2 * step)),
            )
        return results


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_finite_differences(derivatives, kind):
    exact, numeric = derivatives[kind]
    assert abs(numeric) > 1e-4
    np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-8)
