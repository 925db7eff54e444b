"""Checks of the arguments of the deformable convolution layers, NNX and Linen.

Shape letters: C in channels, K out channels, R S kernel taps, G offset groups.
"""

import numbers
from typing import Any, NamedTuple

from dcn_jax.modules.arguments import (
    check_integer,
    check_number,
    check_padding,
    check_pair,
)
from dcn_jax.modules.continued_map import is_continued
from xla_ops.deform_conv.arguments import check_precision
from xla_ops.deform_conv.border import BORDERS


class Arguments(NamedTuple):
    """What of a layer's arguments its pass needs, as `check_arguments` returns them."""

    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: str | tuple[tuple[int, int], tuple[int, int]]
    kernel_dilation: tuple[int, int]
    feature_group_count: int
    offset_groups: int
    modulated: bool
    max_offset: float
    border: str
    mask_scale: int
    precision: Any
    implementation: str | None


def check_arguments(
    *,
    kernel_size: Any,
    strides: Any,
    padding: Any,
    kernel_dilation: Any,
    feature_group_count: Any,
    offset_groups: Any,
    modulated: bool,
    max_offset: Any,
    border: Any,
    mask_scale: Any,
    precision: Any,
    implementation: Any,
) -> Arguments:
    """Checks what the layer's arguments must satisfy, whatever it is applied to.

    Raises:
      TypeError: One is not of its kind.
      ValueError: One is out of its range, or they do not fit together.
    """
    if not isinstance(mask_scale, numbers.Real) or mask_scale not in (1, 2):
        raise ValueError(f"`mask_scale` is {mask_scale!r}; expected 1 or 2")
    if border not in BORDERS:
        raise ValueError(f"`border` is {border!r}; expected one of {BORDERS}")
    max_offset = check_number("max_offset", max_offset)
    if max_offset < 0:
        raise ValueError(f"`max_offset` is {max_offset}; expected at least 0")
    if precision is not None:
        check_precision(precision)
    kernel_size = check_pair("kernel_size", kernel_size)
    return Arguments(
        kernel_size=kernel_size,
        strides=check_pair("strides", strides),
        padding=_check_padding(padding, kernel_size, border),
        kernel_dilation=check_pair("kernel_dilation", kernel_dilation),
        feature_group_count=check_integer("feature_group_count", feature_group_count),
        offset_groups=check_integer("offset_groups", offset_groups),
        modulated=modulated,
        max_offset=max_offset,
        border=border,
        mask_scale=1 if mask_scale == 1 else 2,
        precision=precision,
        implementation=implementation,
    )


def check_groups(in_features: int, out_features: int, arguments: Arguments) -> None:
    """Checks that groups divide channels.

    Raises:
      ValueError: They do not.
    """
    for name, channels, count in (
        ("feature_group_count", "in_features", in_features),
        ("feature_group_count", "out_features", out_features),
        ("offset_groups", "in_features", in_features),
    ):
        groups = getattr(arguments, name)
        if count % groups:
            raise ValueError(
                f"`{name}` is {groups}; expected a divisor of `{channels}`, "
                f"which is {count}"
            )


def check_map(name: str, x: Any, channels: int) -> None:
    """Checks that a map has the channels that a layer was made for.

    Raises:
      ValueError: It has not; one in torch's layout is answered with the line that
        converts it.
    """
    if x.ndim >= 3 and x.shape[-1] == channels:
        return
    told = ""
    if x.ndim >= 3 and x.shape[-3] == channels:
        told = f"; from torch's layout: {name} = jnp.moveaxis({name}, -3, -1)"
    raise ValueError(
        f"`{name}` has shape {x.shape}; expected (..., H, W, {channels}){told}"
    )


def check_places(x: Any, offset_features: Any) -> None:
    """Checks that what the branch reads has the places of the map.

    Raises:
      ValueError: It has not.
    """
    if offset_features.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"`offset_features` has shape {offset_features.shape}; expected "
            f"({', '.join(map(str, x.shape[:-1]))}, channels) beside `x` {x.shape}"
        )


def _check_padding(padding: Any, kernel_size: tuple[int, int], border: str) -> Any:
    if not is_continued(padding):
        return check_padding(padding)
    if border != "zeros":
        raise ValueError(
            f"`border` is {border!r} with `padding` {padding!r}, which leaves no "
            "border; expected 'zeros'"
        )
    if min(kernel_size) == 1:
        raise ValueError(
            f"`padding` is {padding!r} with `kernel_size` {kernel_size}, which needs "
            "none; expected a kernel of at least 2 x 2"
        )
    return padding
