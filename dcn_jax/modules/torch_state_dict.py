"""A deformable convolution and its branch out of a state dict of torch.

Shape letters: C in channels, K out channels, F channels that the branch reads, L output
channels of the branch, R S kernel taps, G offset groups.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Num

from dcn_jax.quoting import quoted
from dcn_jax.torch_layout import as_array, from_torch_kernel

# Names of a state dict that a message lists.
_MOST_NAMES = 8


class TorchLayer(NamedTuple):
    """The tensors of a layer, in our layout."""

    kernel: Num[Array, "R S C_per_group K"]
    bias: Num[Array, " K"] | None
    branch_kernel: Num[Array, "R S F L"]
    branch_bias: Num[Array, " L"]
    modulated: bool


def read_layer(
    state_dict: Mapping[str, Any],
    conv: str,
    offset_conv: str | None,
    mask_conv: str | None,
    offset_groups: int,
) -> TorchLayer:
    """Reads what `DeformConv.from_torch` is made of, and checks that it is one layer.

    Args:
      state_dict: Tensors by name.
      conv: Name of the convolution, or "".
      offset_conv: Name of the branch; None: CONV.conv_offset.
      mask_conv: Name of the branch of the masks, if they have one of their own.
      offset_groups: G.

    Raises:
      TypeError: `state_dict` is no mapping, or has no array at a name.
      ValueError: A tensor is not there, or has a shape that does not fit.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"`state_dict` is {type(state_dict).__name__}; expected a mapping, such as "
            "torch.nn.Module.state_dict() returns"
        )
    if offset_conv is None:
        offset_conv = _joined(conv, "conv_offset")
    kernel, bias = _convolution(state_dict, conv)
    size = kernel.shape[:2]
    samples = offset_groups * size[0] * size[1]
    branch = _branch(state_dict, offset_conv, size)
    if mask_conv is None:
        modulated = branch[0].shape[3] == 3 * samples
        _check_channels(offset_conv, branch[0], samples, (2, 3), offset_groups)
        return TorchLayer(kernel, bias, *branch, modulated)
    masks = _branch(state_dict, mask_conv, size)
    _check_channels(offset_conv, branch[0], samples, (2,), offset_groups)
    _check_channels(mask_conv, masks[0], samples, (1,), offset_groups)
    if branch[0].shape[2] != masks[0].shape[2]:
        raise ValueError(
            f"`state_dict`: {quoted(offset_conv)} reads {branch[0].shape[2]} channels, "
            f"and {quoted(mask_conv)} {masks[0].shape[2]}; expected the same"
        )
    joined_kernel = jnp.concatenate([branch[0], masks[0]], -1)
    joined_bias = jnp.concatenate([branch[1], masks[1]], -1)
    return TorchLayer(kernel, bias, joined_kernel, joined_bias, True)


def _branch(state_dict: Mapping[str, Any], name: str, size: tuple[int, ...]):
    """Kernel and bias of an ordinary convolution; zeros where it has no bias."""
    kernel, bias = _convolution(state_dict, name)
    if kernel.shape[:2] != size:
        raise ValueError(
            f"`state_dict`: {quoted(name)} has a kernel of {kernel.shape[:2]}; "
            f"expected {size}, as of the layer"
        )
    if bias is None:
        bias = jnp.zeros(kernel.shape[3], kernel.dtype)
    return kernel, bias


def _convolution(state_dict: Mapping[str, Any], name: str):
    """Kernel [R, S, C/groups, K] and bias [K] or None."""
    path = _joined(name, "weight")
    weight = _tensor(state_dict, path)
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(
            f"`state_dict` has {quoted(path)} of shape {weight.shape}; expected four "
            "axes (K, C/groups, R, S), none of them 0"
        )
    kernel = from_torch_kernel(weight)
    path = _joined(name, "bias")
    if state_dict.get(path) is None:
        return jnp.asarray(kernel), None
    bias = _tensor(state_dict, path)
    if bias.shape != kernel.shape[3:]:
        raise ValueError(
            f"`state_dict` has {quoted(path)} of shape {bias.shape}; expected "
            f"{kernel.shape[3:]}, as of the weight beside it"
        )
    return jnp.asarray(kernel), jnp.asarray(bias)


def _tensor(state_dict: Mapping[str, Any], name: str):
    if name not in state_dict:
        names = list(state_dict)
        more = f" and {len(names) - _MOST_NAMES} more" * (len(names) > _MOST_NAMES)
        listed = ", ".join(quoted(each) for each in names[:_MOST_NAMES])
        raise ValueError(
            f"`state_dict` has no {quoted(name)}; it has {listed or 'nothing'}{more}. "
            "`conv`, `offset_conv` and `mask_conv` are the names of modules in it; for "
            "offsets that are computed elsewhere there is `xla_ops.deform_conv2d`"
        )
    return as_array(f"state_dict[{quoted(name)}]", state_dict[name])


def _check_channels(
    name: str, kernel: Array, samples: int, factors: tuple[int, ...], groups: int
) -> None:
    expected = [factor * samples for factor in factors]
    if kernel.shape[3] not in expected:
        taps = kernel.shape[0] * kernel.shape[1]
        raise ValueError(
            f"`state_dict`: {quoted(name)} has {kernel.shape[3]} output channels; "
            f"expected {' or '.join(map(str, expected))}, "
            f"{' or '.join(map(str, factors))} for each of {taps} taps and "
            f"{groups} groups (`offset_groups`)"
        )


def _joined(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf
