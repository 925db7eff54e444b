"""The primitives of deformable convolution, and the differentiable function of them.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops._jax import CudaForm, OperatorPrimitive
from xla_ops.deform_conv import reference
from xla_ops.deform_conv.cuda import composition as cuda
from xla_ops.deform_conv.tangent import terms_of_tangent


class Settings(NamedTuple):
    """What the primitives need besides arrays.

    Attributes:
      strides: Vertical and horizontal, in pixels, like all pairs.
      padding: Before the first row and the first column.
      dilation: From one tap of the kernel to the next.
      groups: Of channels that are convolved apart.
      precision: Of the products, as in `jax.lax.dot_general`.
    """

    strides: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    precision: Any


def convolve(
    x: jax.Array,
    offset: jax.Array,
    kernel: jax.Array,
    mask: jax.Array | None,
    implementation: str | None,
    settings: Settings,
) -> jax.Array:
    """Deformable convolution of checked operands, without a bias.

    Args:
      x: [N, H, W, C].
      offset: [N, P, Q, G, R*S, 2] in the type of coordinates.
      kernel: [1, R, S, C/groups, K] in the type of `x`.
      mask: [N, P, Q, G, R*S] in the type of coordinates, or None.
      implementation: "reference", "ffi" or None.
      settings: All else.

    Returns:
      [N, P, Q, K] in the type of `x`.
    """
    operands = (x, offset, kernel) + (() if mask is None else (mask,))
    (y,) = _forward(*operands, implementation=implementation, **settings._asdict())
    return y


def _pull_back(x, offset, kernel, *mask_and_gradient, **settings):
    # vmap makes a kernel for each image.
    backward = _summed_gradients if kernel.shape[0] == 1 else _backward
    dx, doffset, dkernel, *dmask = backward(
        x, offset, kernel, *mask_and_gradient, **settings
    )
    return dx, doffset, dkernel.astype(kernel.dtype), *dmask


def _tangent(operands, tangents, *, implementation, groups, precision, **window):
    """The tangent by kernels, rounded once."""
    dtype, real = operands[0].dtype, operands[1].dtype
    operands = [x.astype(real) for x in operands]
    tangents = [t if t is None else t.astype(real) for t in tangents]
    settings = dict(groups=groups, precision=precision, **window)
    terms = [
        _forward(*term, implementation=implementation, **settings)[0]
        for term in terms_of_tangent(operands, tangents, **window)
    ]
    return (functools.reduce(jnp.add, terms).astype(dtype),)


def _attributes(*, strides, padding, dilation, groups, precision) -> dict[str, Any]:
    del precision
    return {
        "stride_h": np.int64(strides[0]),
        "stride_w": np.int64(strides[1]),
        "pad_top": np.int64(padding[0]),
        "pad_left": np.int64(padding[1]),
        "dilation_h": np.int64(dilation[0]),
        "dilation_w": np.int64(dilation[1]),
        "groups": np.int64(groups),
    }


def _forward_results(x, offset, kernel, *mask, **settings):
    return [((*offset.shape[:3], kernel.shape[-1]), x.dtype)]


def _backward_results(x, offset, kernel, *mask_and_gradient, **settings):
    real = offset.dtype
    gradients = [
        (x.shape, x.dtype),
        (offset.shape, real),
        ((x.shape[0], *kernel.shape[1:]), real),
    ]
    return gradients + [(mask.shape, real) for mask in mask_and_gradient[:-1]]


_forward = OperatorPrimitive(
    "dcn_jax.deform_conv2d.fwd",
    results=_forward_results,
    reference=reference.deform_conv2d,
    attributes=_attributes,
    shared=(2,),
    cuda=cuda.deform_conv2d,
    pull_back=_pull_back,
    tangent=_tangent,
)
_backward = OperatorPrimitive(
    "dcn_jax.deform_conv2d.bwd",
    results=_backward_results,
    reference=reference.deform_conv2d_gradients,
    attributes=_attributes,
    shared=(2,),
    cuda=cuda.deform_conv2d_gradients,
)


def _plain_summed_gradients(*operands, implementation, **settings):
    dx, doffset, dkernel, *dmask = _backward(
        *operands, implementation=implementation, **settings
    )
    # A product with ones: XLA's own sum over a leading axis is far slower on a CPU.
    ones = jnp.ones((1, dkernel.shape[0]), dkernel.dtype)
    dkernel = jnp.tensordot(ones, dkernel, 1, precision=jax.lax.Precision.HIGHEST)
    return dx, doffset, dkernel, *dmask


def _summed_results(x, offset, kernel, *mask_and_gradient, **settings):
    dx, doffset, (shape, real), *dmask = _backward_results(
        x, offset, kernel, *mask_and_gradient, **settings
    )
    return [dx, doffset, ((1, *shape[1:]), real), *dmask]


# Gradients for a kernel that all images share: [1, R, S, C/groups, K].
_summed_gradients = CudaForm(
    "dcn_jax.deform_conv2d.summed_bwd",
    plain=_plain_summed_gradients,
    results=_summed_results,
    cuda=cuda.deform_conv2d_summed_gradients,
    summed=(2,),
)
