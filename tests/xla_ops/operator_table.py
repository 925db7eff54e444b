"""The differentiable operators, each with arguments to call it with.

Tests that hold for all operators run over these rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import deform_conv_case
import jax
import jax.numpy as jnp
import numpy as np
import roi_case

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
    """A row of the table."""

    target: str  # Its custom calls are dcn_jax.<target>.fwd and .bwd.
    call: Callable[..., Any]
    arguments: dict[str, Any]
    moving: tuple[str, ...]  # Arguments that have a gradient.
    shared: tuple[str, ...] = ()  # Arguments without a batch axis.

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


NAMES = (
    "deform_conv2d",
    "roi_align",
    "deform_roi_pool",
    "roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "deform_ps_roi_pool",
)


def operator(
    name: str, *, batch: int = 2, dtype: Any = np.float32, scale: int = 1
) -> Operator:
    """Row `name` with arguments of type `dtype`; `scale` widens maps and channels."""
    if name == "deform_conv2d":
        arrays = deform_conv_case.random_case(
            batch=batch,
            size=(4 * scale, 5 * scale),
            channels=4 * scale**2,
            features=4 * scale,
            bias=True,
            dtype=dtype,
        )
        return Operator(
            target="deform_conv2d",
            call=deform_conv2d,
            arguments=dict(zip(deform_conv_case.NAMES, arrays, strict=True)),
            moving=deform_conv_case.NAMES,
            shared=("kernel", "bias"),
        )
    groups = 6 if name.startswith("ps_") else 4 if "_ps_" in name else 1
    case = roi_case.random_case(
        batch=batch,
        num_boxes=4 * scale**2,
        channels=groups * (4 if groups > 1 else 5) * scale**2,
        sizes=((6 * scale, 7 * scale), (3 * scale, 4 * scale)),
        dtype=dtype,
    )
    if name == "roi_align":
        return Operator(
            target="roi_pool",
            call=functools.partial(
                roi_align,
                output_size=(3, 2),
                spatial_scale=roi_case.SCALES,
                sampling_ratio=0,
                aligned=False,
            ),
            arguments={
                key: case[key] for key in ("features", "rois", "levels", "map_sizes")
            },
            moving=("features",),
        )
    if name == "deform_roi_pool":
        return Operator(
            target="roi_pool",
            call=functools.partial(
                deform_roi_pool,
                output_size=roi_case.OUTPUT_SIZE,
                spatial_scale=roi_case.SCALES[0],
            ),
            arguments={
                "features": case["features"][0],
                **{key: case[key] for key in ("rois", "offset", "mask")},
            },
            moving=("features", "offset", "mask"),
        )
    if name == "roi_pool":
        return Operator(
            target="max_roi_pool",
            call=functools.partial(
                roi_pool,
                output_size=roi_case.OUTPUT_SIZE,
                spatial_scale=roi_case.SCALES[0],
            ),
            arguments={
                "features": case["features"][0],
                "rois": case["rois"],
                "map_sizes": case["map_sizes"][0],
            },
            moving=("features",),
        )
    if name in ("ps_roi_align", "ps_roi_pool"):
        pool = {"ps_roi_align": ps_roi_align, "ps_roi_pool": ps_roi_pool}[name]
        return Operator(
            target="ps_roi_pool",
            call=functools.partial(
                pool,
                output_size=roi_case.OUTPUT_SIZE,
                spatial_scale=roi_case.SCALES[0],
            ),
            arguments={"features": case["features"][0], "rois": case["rois"]},
            moving=("features",),
        )
    if name == "deform_ps_roi_pool":
        # Parts as bins, and one class.
        return Operator(
            target="ps_roi_pool",
            call=functools.partial(
                deform_ps_roi_pool,
                output_size=roi_case.OUTPUT_SIZE,
                group_size=2,
                part_size=roi_case.OUTPUT_SIZE,
                spatial_scale=roi_case.SCALES[0],
            ),
            arguments={
                "features": case["features"][0],
                "rois": case["rois"],
                "offset": case["offset"][..., None, :],
                "mask": case["mask"],
            },
            moving=("features", "offset", "mask"),
        )
    raise KeyError(name)
