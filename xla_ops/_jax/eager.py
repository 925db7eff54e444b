"""What runs outside of jit is compiled once, and the program is kept."""

import functools
from collections.abc import Callable

import jax
from jax.extend.core import Primitive


def compiled(function: Callable) -> Callable:
    """`function(*operands, **params)`, compiled once for operands and params alike."""

    @functools.cache
    def with_params(params):
        return jax.jit(functools.partial(function, **dict(params)))

    def call(*operands, **params):
        return with_params(tuple(sorted(params.items())))(*operands)

    return call


def eager_rule(primitive: Primitive) -> Callable:
    """Runs a primitive outside of jit: `(*operands, **params) -> [array, ...]`."""
    bind = compiled(primitive.bind)

    def rule(*operands, **params):
        if not jax.config.jax_disable_jit:  # pyright: ignore
            return bind(*operands, **params)
        # What is not compiled comes back to this rule.
        with jax.disable_jit(False):
            return bind(*operands, **params)

    return rule
