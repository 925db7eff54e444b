"""A pass in which somebody listens to the layers.

It is how what the layers do becomes known, and how derivatives by where they read are
taken: a listener sees what a layer was given and what it returned, and may return
something else in its place.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen, nnx

from dcn_jax.explain.capture import captured
from dcn_jax.explain.models import Call, Model, copy_of, name_of
from dcn_jax.modules import linen as linen_layers
from dcn_jax.modules.deform_conv import DeformConv, Samples
from dcn_jax.modules.psroi_pool import PSRoIPool
from dcn_jax.modules.roi_pool import Bins, DeformRoIPooling, RoIAlign, RoIPool

DEFORM_CONVS = (DeformConv, linen_layers.DeformConv)
CONVS = (nnx.Conv, linen.Conv, *DEFORM_CONVS)
ROI_POOLS = (
    *(RoIPool, RoIAlign, DeformRoIPooling, PSRoIPool),
    linen_layers.DeformRoIPool,
)
_LAYERS = CONVS + ROI_POOLS


def _is_told(module: Any) -> bool:
    return isinstance(module, _LAYERS)


class LayerCall(NamedTuple):
    """One call of a convolution or of a RoI pooling layer."""

    name: str  # path from the model to the layer, such as "layer4.2.conv2"
    layer: Any
    arguments: dict[str, Any]  # by the names of the layer's parameters
    record: dict[str, Any] | None  # `Samples` or `Bins`, if the layer records them
    result: jax.Array

    @property
    def x(self) -> Any:
        """What the layer reads: its first argument."""
        return next(iter(self.arguments.values()))

    @property
    def kernel(self) -> jax.Array:
        """The layer's kernel."""
        if isinstance(self.layer, linen.Module):
            return self.layer.get_variable("params", "kernel")
        return self.layer.kernel[...]


class Ran(nnx.Intermediate):
    """A number of each call's result: more where a transformation repeats the call."""


Listener = Callable[[LayerCall], jax.Array]
# What layers recorded, by name and field ("samples", "bins" or "ran"): a tuple for each
# layer with one record for each of its calls.
Records = dict[tuple[str, str], tuple[Any, ...]]


def run_with(
    listener: Listener, model: Model, call: Call, images: jax.Array
) -> tuple[Any, Records]:
    """Runs a pass, each of whose layers a listener is told of.

    Values of the pass must not be kept by the listener, since a layer may run inside of
    a transformation of the model's own.

    Args:
      listener: Called after each layer, in the order in which they run; what it returns
        is the layer's result.
      model: It is not changed.
      call: The pass.
      images: Its second argument.

    Returns:
      What `call` returns, and what the layers recorded.

    Raises:
      ValueError: An `nnx` transformation shares a layer between its runs.
    """
    if isinstance(model, linen.Module):
        return _run_linen(listener, model, call, images)
    return _run_nnx(listener, model, call, images)


def record_of(
    records: Records, call_name: tuple[str, str], place: int, count: int, argument: str
) -> Any:
    """Returns what a layer recorded in one of its calls, without gradients.

    Args:
      records: As of `run_with`.
      call_name: The layer's name, and the field.
      place: Which of its calls.
      count: How many of its calls a listener was told of.
      argument: What named the layer, for the message.

    Raises:
      ValueError: There is no such record that can be used after the pass.
    """
    name, _ = call_name
    found = records.get(call_name, ())
    if len(found) == count:
        try:
            return jax.tree.map(jax.lax.stop_gradient, found[place])
        except jax.errors.UnexpectedTracerError:
            pass
    raise ValueError(
        f"`{argument}`: {name or 'the model itself'} runs inside of a transformation "
        "that its record does not leave, such as jax.jit, jax.vmap or a scan; expected "
        "a `call` that runs it outside of one, on a batch of one image"
    )


def _run_nnx(listener, model, call, images):
    copy: Any = copy_of(model)
    layers: dict[tuple, Any] = {
        path: module for path, module in nnx.iter_modules(copy) if _is_told(module)
    }
    for path, layer in layers.items():
        if not any(path[:n] in layers for n in range(len(path))):
            # A class of the copy's own, since Python looks up `__call__` there.
            layer.listened = functools.partial(_tell, listener, name_of(path))
            layer.__class__ = _listening(type(layer))
    (result, *records) = captured(copy, lambda m: call(m, images), Samples, Bins, Ran)
    found = {}
    for state in records:
        for path, record in nnx.to_flat_state(state):
            found[name_of(path[:-1]), str(path[-1])] = record.get_value()
    return result, found


@functools.cache
def _listening(kind: type) -> type:
    """A subclass whose calls are told to the attribute `listened` of the layer."""

    def call_and_tell(self, *args, **kwargs):
        result = kind.__call__(self, *args, **kwargs)
        record = None
        for kept in self.__captures__:
            for records in kept.get_value().values() if type(kept) is not Ran else ():
                record = records[-1]
        self.sow(Ran, "ran", _first_number(result))
        return self.listened(self, kind.__call__, args, kwargs, record, result)

    return type(kind.__name__, (kind,), {"__call__": call_and_tell})


def _run_linen(listener, model, call, images):
    def intercept(function, args, kwargs, context):
        result = function(*args, **kwargs)
        layer: Any = context.module
        outer = _is_told(layer) and not _is_told(layer.parent)
        if not outer or context.method_name != "__call__":
            return result
        record = None
        for field in ("samples", "bins"):
            if layer.has_variable("intermediates", field):
                record = layer.get_variable("intermediates", field)[-1]
        layer.sow("intermediates", "ran", _first_number(result))
        called = type(layer).__call__
        name = name_of(layer.path)
        return _tell(listener, name, layer, called, args, kwargs, record, result)

    module, variables = model.unbind()
    variables = {k: v for k, v in variables.items() if k != "intermediates"}
    with linen.intercept_methods(intercept):
        result, changed = module.apply(
            variables, method=lambda m: call(m, images), mutable=["intermediates"]
        )
    found = {}
    sown = nnx.traversals.flatten_mapping(changed.get("intermediates", {}))
    for path, records in sown.items():
        found[name_of(path[:-1]), path[-1]] = records
    return result, found


def _first_number(result):
    return jax.lax.stop_gradient(result[(0,) * result.ndim])


def _tell(listener, name, layer, called, args, kwargs, record, result):
    bound = inspect.signature(called).bind(layer, *args, **kwargs).arguments
    arguments = dict(list(bound.items())[1:])
    return listener(LayerCall(name, layer, arguments, record, result))
