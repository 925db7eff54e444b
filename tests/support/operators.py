"""The differentiable operators, each with arguments to call it with.

Tests that hold for all operators run over the rows of `OPERATORS`.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import deform_conv, roi
from xla_ops import (
    deform_conv2d,
    deform_ps_roi_pool,
    deform_roi_pool,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)


class Operator(NamedTuple):
    """An operator with arguments."""

    target: str  # Its custom calls are dcn_jax.<target>.fwd and .bwd.
    call: Callable[..., Any]
    arguments: dict[str, Any]
    moving: tuple[str, ...]  # Arguments that have a gradient.
    shared: tuple[str, ...]  # Arguments without a batch axis.

    @property
    def forward_calls(self):
        """Kernels of the forward pass, sorted; those of CUDA are several."""
        calls = deform_conv.FORWARD_CALLS if "conv" in self.target else ["fwd"]
        return [f"{self.target}.{call}" for call in calls]

    @property
    def both_calls(self):
        """The same of the forward and the backward pass."""
        calls = deform_conv.BACKWARD_CALLS if "conv" in self.target else ["bwd"]
        return sorted(self.forward_calls + [f"{self.target}.{call}" for call in calls])

    def output(self, *arguments, **options):
        """What the operator returns for `arguments`, in the order of the table's."""
        return self.call(**dict(zip(self.arguments, arguments, strict=True)), **options)

    def loss(self, *arguments, **options):
        """A scalar with all second derivatives, whose terms do not cancel."""
        y = self.output(*arguments, **options)
        return jnp.sum(1 + jnp.sin(y.astype("float32") if y.dtype.itemsize == 2 else y))

    @property
    def places(self):
        """Positions of the arguments in `moving`."""
        return tuple(list(self.arguments).index(name) for name in self.moving)

    def value_and_gradients(self, *arguments, **options):
        """Of the loss, gradients for the arguments in `moving`."""
        loss = functools.partial(self.loss, **options)
        return jax.value_and_grad(loss, self.places)(*arguments)

    def gradients(self, *arguments, **options):
        """Of the loss, for the arguments in `moving`."""
        return self.value_and_gradients(*arguments, **options)[1]


def calls_in(text):
    """Kernels that a lowered or compiled program calls, sorted."""
    found = re.findall(r'(?:custom_call @|custom_call_target=")dcn_jax\.([\w.]+)', text)
    return sorted(found)


class Row(NamedTuple):
    """An `Operator` whose arguments are yet to be drawn."""

    target: str
    call: Callable[..., Any]
    # Of (batch, dtype, scale).
    draw: Callable[[int, Any, int], dict[str, Any]]
    moving: tuple[str, ...]
    shared: tuple[str, ...] = ()


def _layer(batch, dtype, scale):
    arrays = deform_conv.random_case(
        batch=batch,
        size=(4 * scale, 5 * scale),
        channels=4 * scale**2,
        features=4 * scale,
        bias=True,
        dtype=dtype,
    )
    return dict(zip(deform_conv.NAMES, arrays, strict=True))


def _pyramid(*names, channels):
    """Draws the named arrays of `roi.random_case`."""

    def draw(batch, dtype, scale):
        case = roi.random_case(
            batch=batch,
            num_boxes=4 * scale**2,
            channels=channels * scale**2,
            sizes=((6 * scale, 7 * scale), (3 * scale, 4 * scale)),
            dtype=dtype,
        )
        return {name: case[name] for name in names}

    return draw


def _map(*names, channels, one_class=False):
    """The same of the first level alone; `one_class` adds an axis to offsets."""
    pyramid = _pyramid(*names, channels=channels)

    def draw(batch, dtype, scale):
        arguments = pyramid(batch, dtype, scale)
        for name in {"features", "map_sizes"} & set(names):
            arguments[name] = arguments[name][0]
        if one_class:
            arguments["offset"] = arguments["offset"][..., None, :]
        return arguments

    return draw


_ONE_LEVEL = {"output_size": roi.OUTPUT_SIZE, "spatial_scale": roi.SCALES[0]}

OPERATORS = {
    "deform_conv2d": Row(
        "deform_conv2d",
        deform_conv2d,
        _layer,
        moving=deform_conv.NAMES,
        shared=("kernel", "bias"),
    ),
    "roi_align": Row(
        "roi_pool",
        functools.partial(
            roi_align,
            output_size=(3, 2),
            spatial_scale=roi.SCALES,
            sampling_ratio=0,
            aligned=False,
        ),
        _pyramid("features", "rois", "levels", "map_sizes", channels=5),
        moving=("features",),
    ),
    "deform_roi_pool": Row(
        "roi_pool",
        functools.partial(deform_roi_pool, **_ONE_LEVEL),
        _map("features", "rois", "offset", "mask", channels=5),
        moving=("features", "offset", "mask"),
    ),
    "roi_pool": Row(
        "max_roi_pool",
        functools.partial(roi_pool, **_ONE_LEVEL),
        _map("features", "rois", "map_sizes", channels=5),
        moving=("features",),
    ),
    "ps_roi_align": Row(
        "ps_roi_pool",
        functools.partial(ps_roi_align, **_ONE_LEVEL),
        _map("features", "rois", channels=6 * 4),
        moving=("features",),
    ),
    "ps_roi_pool": Row(
        "ps_roi_pool",
        functools.partial(ps_roi_pool, **_ONE_LEVEL),
        _map("features", "rois", channels=6 * 4),
        moving=("features",),
    ),
    "deform_ps_roi_pool": Row(
        "ps_roi_pool",
        # Parts as bins.
        functools.partial(
            deform_ps_roi_pool, group_size=2, part_size=roi.OUTPUT_SIZE, **_ONE_LEVEL
        ),
        _map("features", "rois", "offset", "mask", channels=4 * 4, one_class=True),
        moving=("features", "offset", "mask"),
    ),
}


def operator(
    name: str, *, batch: int = 2, dtype: Any = np.float32, scale: int = 1
) -> Operator:
    """Row `name` with arguments of type `dtype`; `scale` widens maps and channels."""
    row = OPERATORS[name]
    arguments = row.draw(batch, dtype, scale)
    return Operator(row.target, row.call, arguments, row.moving, row.shared)
