"""A network's gradient in float64 beside finite differences of its loss.

What is decided in a step, as matches and samples, is computed once and held fixed: the
loss is then a differentiable function of the parameters but for the kinks of ReLU, of
maxima and, at integer positions, of bilinear sampling.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Half the distance between the two sides: small enough that hardly a ReLU of the
# thousands after the parameter turns over on the way.
EARLY, LATE = 1e-8, 1e-6


class Kind(NamedTuple):
    """A parameter that is moved."""

    path: tuple[Any, ...]
    step: float
    # Of its last axis.
    part: slice = slice(None)


def derivatives(
    make: Callable[[], Any], batch: Any, kinds: Mapping[str, Kind]
) -> tuple[dict[str, tuple[float, float]], Any]:
    """Directional derivative of each kind: by jax.grad, and by central differences.

    Args:
      make: Of the network, in float64.
      batch: For its losses.
      kinds: What is moved, by name.

    Returns:
      The derivatives, and the targets that were held fixed; None where a network has
      none.
    """
    graph, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    params = _values(params)
    key = jax.random.key(0)

    def merged(params):
        return nnx.merge(graph, params, rest)

    fixed = {}
    if hasattr(merged(params), "targets"):
        targets = jax.jit(lambda p: merged(p).targets(batch, key))(params)
        fixed = {"targets": targets}

    def total(params, fixed):
        return sum(merged(params).losses(batch, key, **fixed).values())

    loss = jax.jit(total)
    gradient = dict(nnx.to_flat_state(jax.jit(jax.grad(total))(params, fixed)))
    variables = dict(nnx.to_flat_state(params))
    results = {}
    for i, (name, (path, step, part)) in enumerate(kinds.items()):
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

        ahead, behind = (loss(moved(s), fixed) for s in (step, -step))
        results[name] = (
            float(jnp.sum(exact * direction)),
            float((ahead - behind) / (2 * step)),
        )
    return results, fixed.get("targets")


def assert_agree(derivative: tuple[float, float]) -> None:
    """Compares the two of a kind, which must not be small."""
    exact, numeric = derivative
    assert abs(numeric) > 1e-4
    np.testing.assert_allclose(exact, numeric, rtol=1e-5, atol=1e-8)


def _values(params):
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
