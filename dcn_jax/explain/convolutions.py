"""The convolutions of a pass that read more than one place, in the order they run.

Letters: N images, H W input map, P Q output map, R S kernel taps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Num

from dcn_jax.explain.layer_calls import CONVS, DEFORM_CONVS, LayerCall, run_with
from dcn_jax.explain.models import Call, check_model, merge_model, split_model
from dcn_jax.explain.nodes import check_image
from dcn_jax.modules.arguments import check_integer, check_pair
from xla_ops.deform_conv.window import Window, convolution_window


@dataclass(frozen=True)
class Convolution:
    """One call of a convolution that is larger than 1x1.

    Attributes:
      name: Path from the model to the layer, such as "layer4.2.conv2".
      place: How many such calls came before in the pass.
      deformable: Whether it has offsets.
      kernel_size: (R, S).
      input_size: (H, W).
      output_size: (P, Q).
      strides, padding, kernel_dilation, input_dilation: Of the layer.
      feature_group_count: Of the layer.
      offset_groups: Of the layer; 1 when it is not deformable.
      border: Of the layer, see `DeformConv`; "zeros" when it is not deformable.
      masked: Whether parts of the kernel are switched off.
    """

    name: str
    place: int
    deformable: bool
    kernel_size: tuple[int, int]
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    strides: tuple[int, int]
    padding: Any
    kernel_dilation: tuple[int, int]
    input_dilation: tuple[int, int]
    feature_group_count: int
    offset_groups: int
    border: str
    masked: bool

    @property
    def window(self) -> Window:
        """How the kernel moves over the map.

        Raises:
          ValueError: It is a convolution whose window is not known here.
        """
        named = isinstance(self.padding, str) and self.padding not in ("SAME", "VALID")
        if named or self.masked or self.input_dilation != (1, 1):
            raise ValueError(
                f"`layers`: {self.name} has padding {self.padding!r}, input_dilation "
                f"{self.input_dilation} and mask {self.masked}; expected zeros as "
                "padding, (1, 1), and no mask"
            )
        window, _ = convolution_window(
            self.input_size,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
        )
        return window


def convolutions(
    model: Any, call: Call, image: Num[Array | np.ndarray, "H W C"]
) -> tuple[Convolution, ...]:
    """The convolutions larger than 1x1 that run in a pass, in that order.

    Nothing is computed. Those inside of a deformable layer, its branch, are not told.

    Args:
      model: An NNX module, or a Linen module bound to its variables; shapes (of
        `nnx.eval_shape`) are enough. It is not changed.
      call: The pass, given a copy of the model and the image as a batch of one.
      image: As the model takes it.

    Raises:
      TypeError, ValueError: An argument is not of its kind; the message names it.
    """
    model, image = check_model(model), check_image(image)
    log = ConvolutionLog()
    definition, arrays = split_model(model)

    def run(arrays, image):
        return run_with(log, merge_model(definition, arrays), call, image[None])[0]

    jax.eval_shape(run, arrays, image)
    return tuple(log.calls)


class ConvolutionLog:
    """A listener of `run_with` that writes down the convolutions.

    Attributes:
      calls: What ran until now.
    """

    def __init__(self):
        self.calls: list[Convolution] = []

    def __call__(self, call: LayerCall) -> jax.Array:
        """Writes one down, and leaves its result as it is."""
        if (convolution := as_convolution(call, len(self.calls))) is not None:
            self.calls.append(convolution)
        return call.result


def as_convolution(call: LayerCall, place: int) -> Convolution | None:
    """What a call says of itself, or None if it is no two-dimensional one beyond 1x1.

    Args:
      call: Of any layer.
      place: How many such calls came before.
    """
    layer, x = call.layer, call.x
    if not isinstance(layer, CONVS) or x.ndim != 4 or call.result.ndim != 4:
        return None
    deformable = isinstance(layer, DEFORM_CONVS)
    if not deformable and np.ndim(layer.kernel_size) + np.size(layer.kernel_size) != 3:
        return None  # One of an axis, such as kernel_size=3.
    kernel_size = _pair("kernel_size", layer.kernel_size)
    if kernel_size == (1, 1):
        return None
    return Convolution(
        name=call.name,
        place=place,
        deformable=deformable,
        kernel_size=kernel_size,
        input_size=(x.shape[1], x.shape[2]),
        output_size=(call.result.shape[1], call.result.shape[2]),
        strides=_pair("strides", layer.strides),
        padding=_padding(layer.padding),
        kernel_dilation=_pair("kernel_dilation", layer.kernel_dilation),
        input_dilation=_pair("input_dilation", getattr(layer, "input_dilation", 1)),
        feature_group_count=layer.feature_group_count,
        offset_groups=layer.offset_groups if deformable else 1,
        border=layer.border if deformable else "zeros",
        masked=getattr(layer, "mask", None) is not None,
    )


def _pair(name: str, value: Any) -> tuple[int, int]:
    return check_pair(name, 1 if value is None else value)


def _padding(value: Any) -> Any:
    return value if isinstance(value, str | int) else tuple(value)


def stacked(
    calls: Sequence[Convolution], layers: int | Sequence[str]
) -> list[Convolution]:
    """The calls that are followed, from the node down.

    Args:
      calls: Of a pass, in the order they ran.
      layers: How many, the last of the pass; or their names, from the node down. Of a
        layer that runs more than once, it is the last call before the one above it.

    Raises:
      TypeError: `layers` is neither.
      ValueError: There are not so many, or one of that name did not run.
    """
    if isinstance(layers, str):
        raise TypeError(
            f"`layers` is {layers!r}; expected a number, or a sequence of names"
        )
    if not isinstance(layers, Sequence):
        count = check_integer("layers", layers)
        if len(calls) < count:
            raise ValueError(
                f"`layers` is {count}; expected at most the convolutions larger than "
                f"1x1 that run in `call`, which are {_names(calls)}"
            )
        return list(reversed(calls))[:count]
    if not layers:
        raise ValueError("`layers` is empty; expected at least one name")
    chosen, end = [], len(calls)
    for name in layers:
        found = [call for call in calls[:end] if call.name == name]
        if not found:
            before = f" before {chosen[-1].name}" if chosen else ""
            raise ValueError(
                f"`layers` has {name!r}; expected convolutions larger than 1x1 that "
                f"run in `call`{before}, which are {_names(calls[:end])}"
            )
        chosen.append(found[-1])
        end = found[-1].place
    return chosen


def _names(calls: Sequence[Convolution]) -> str:
    return ", ".join(call.name or "the model itself" for call in calls) or "none"


def map_stride(fine: Sequence[int], coarse: Sequence[int]) -> int:
    """Steps of a fine map, or pixels of an image, to one step of a coarse one.

    It is the smallest power of two by which the fine size, rounded up, is the coarse
    one, as of the convolutions and poolings of a ResNet, which are padded by half their
    kernel. Position (y, x) of the coarse map is then at stride * (y, x) of the fine
    one, where positions of pixels are those of their centres, the first at 0.

    Args:
      fine: (height, width) of the finer one.
      coarse: (height, width) of the coarser one.

    Raises:
      ValueError: There is no such stride.
    """
    stride = 1
    while stride <= 2 * max(fine):
        if all(-(-f // stride) == c for f, c in zip(fine, coarse, strict=True)):
            return stride
        stride *= 2
    raise ValueError(
        f"`coarse` is {tuple(coarse)}; expected {tuple(fine)} over a power of two, "
        "rounded up"
    )
