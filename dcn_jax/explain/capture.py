"""What the deformable convolutions of a model sample in a forward pass.

Shape letters: L layers of one module, N batch, P Q output map, G offset groups, R S
kernel taps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen, nnx
from jaxtyping import Array

from dcn_jax.explain.models import check_model
from dcn_jax.modules import linen as linen_layers
from dcn_jax.modules.deform_conv import Samples

# Axes of what `Samples` holds, without those of scanned layers.
_RANKS = {"offset": 6, "position": 6, "mask": 5, "undeformed": 4, "map_size": 1}


class Record(NamedTuple):
    """One call of a deformable convolution, or of a stack of them."""

    path: tuple[Any, ...]  # from the model to the module
    layer: Any  # the module: its arguments, not its arrays
    samples: dict[str, Array]  # as `Samples`, each behind an axis L; no mask: no field
    stacked: bool  # whether `nnx.scan` or `nnx.vmap` runs L layers; else L is 1


def capture_samples(module: Any, call: Callable[[Any], Any]) -> list[Record]:
    """Records what is sampled, without gradients.

    Args:
      module: A model with `DeformConv` layers in it: an NNX module, or a Linen module
        bound to its variables. It is not changed.
      call: The pass: is given a copy of the model, for example
        `lambda model: model(images)`. Its result is dropped.

    Returns:
      The calls of deformable convolutions; of NNX in the order of their paths.

    Raises:
      TypeError: `module` is neither.
      ValueError: It is a Linen module without variables; or a layer runs inside of a
        transformation that its record does not leave, as of Linen one that does not
        keep "intermediates".
    """
    module = check_model(module, "module")
    if isinstance(module, linen.Module):
        return _capture_linen(module, call)
    # Whoever sows `Samples` counts, `DeformConv` or another.
    layers = dict(nnx.iter_modules(module))
    # A copy, since `nnx.capture` leaves its records on the modules.
    _, records = captured(nnx.clone(module), call, Samples)
    return [
        _record(path[:-1], layers[path[:-1]], samples)
        for path, record in nnx.to_flat_state(records)
        for samples in record.get_value()
    ]


def captured(
    module: nnx.Module, call: Callable[[Any], Any], *kinds: type[nnx.Variable]
) -> tuple[Any, ...]:
    """What a pass returns, and for each kind a state of what layers recorded in it.

    Args:
      module: The records are left on it.
      call: The pass, given the module.
      kinds: Of the records.

    Raises:
      ValueError: An `nnx` transformation shares a layer between its runs.
    """
    try:
        return nnx.capture(call, *kinds)(module)
    except (TypeError, ValueError) as error:
        if "__captures__" not in str(error):
            raise
        raise ValueError(
            "`call` has an nnx transformation, such as nnx.vmap or nnx.scan, that runs "
            "one layer several times, as with in_axes of None; expected a pass of a "
            f"batch of one image without it, or layers of their own ({error})"
        ) from error


def _capture_linen(module: linen.Module, call: Callable[[Any], Any]) -> list[Record]:
    layers: dict[tuple[Any, ...], Any] = {}

    def note(function, args, kwargs, context):
        layer: Any = context.module
        called = context.method_name == "__call__"
        if called and isinstance(layer, linen_layers.DeformConv):
            layers[layer.path] = layer
        return function(*args, **kwargs)

    definition, variables = module.unbind()
    variables = {k: v for k, v in variables.items() if k != "intermediates"}
    with linen.intercept_methods(note):
        # A pass may write other variables too, such as statistics of a norm.
        written: Any = definition.apply(
            variables, method=lambda model: call(model), mutable=True
        )[1]
    sown = nnx.traversals.flatten_mapping(written.get("intermediates", {}))
    found = []
    for path, layer in layers.items():
        if (*path, "samples") not in sown:
            name = ".".join(path) or type(layer).__name__
            raise ValueError(
                f"`module`: the layer {name} leaves no record; expected a model that "
                'keeps the collection "intermediates", as flax.linen.scan and vmap do '
                'by variable_axes={"intermediates": 0}'
            )
        found += [_record(path, layer, each) for each in sown[*path, "samples"]]
    return found


def _record(path: tuple[Any, ...], layer: Any, samples: dict[str, Any]) -> Record:
    """Puts all axes of scanned layers into one."""
    try:
        return _flat_record(path, layer, samples)
    except jax.errors.UnexpectedTracerError:
        name = ".".join(map(str, path)) or "the model itself"
        raise ValueError(
            f"`call`: {name} runs inside of a transformation that its record does not "
            "leave, such as jax.jit or jax.vmap; expected a pass that runs it outside "
            "of one"
        ) from None


def _flat_record(path: tuple[Any, ...], layer: Any, samples: dict[str, Any]) -> Record:
    flat = {
        name: value.reshape(-1, *value.shape[value.ndim - rank :])
        for name, rank in _RANKS.items()
        if (value := samples[name]) is not None
    }
    stacked = samples["offset"].ndim > _RANKS["offset"]
    return Record(path, layer, jax.lax.stop_gradient(flat), stacked)
