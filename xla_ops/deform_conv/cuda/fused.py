"""The forward pass as one kernel, which multiplies on tensor cores.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups, I convolution groups.
"""

import jax
import jax.numpy as jnp

from xla_ops.deform_conv.cuda.kernels import are_known, convolve_fused

# With fewer channels most of a tile of the fused kernel is padding.
_MIN_FUSED = 16


def fits_fused_kernel(
    dtype, channels, offset_groups, features, groups, precision
) -> bool:
    """Whether the fused kernel is right for the forward pass, and the faster way.

    Args:
      dtype: Of x and kernel.
      channels: C. A size that is not a number is none that the kernel is chosen for.
      offset_groups: G.
      features: K.
      groups: I.
      precision: As in `jax.lax.dot_general`.
    """
    if not are_known((channels, offset_groups, features)):
        return False
    if dtype == jnp.float32:
        # Tensor cores round float32 to TF32.
        if not allows_tf32(precision):
            return False
    elif dtype not in (jnp.bfloat16, jnp.float16):
        return False
    # A tile holds channels of one offset group; the kernel convolves all as one group.
    return (
        groups == 1
        and channels // offset_groups >= _MIN_FUSED
        and features >= _MIN_FUSED
    )


def convolve_at_once(x, offset, kernel, *mask, devices, settings):
    """The forward pass where `fits_fused_kernel` says so, [N, P, Q, K]."""
    images = x.shape[0]
    divides = devices > 1 and are_known((images,)) and images % devices == 0
    if kernel.shape[0] != 1 or not divides:
        return convolve_fused(x, offset, kernel, *mask, **settings)[0]
    # A call is split along its first axis. That is now the devices, and each of them
    # has one copy of the kernel, in place of one for each of its images.
    x, offset, *mask = (
        array.reshape(devices, images // devices, *array.shape[1:])
        for array in (x, offset, *mask)
    )
    kernel = jnp.broadcast_to(kernel, (devices, *kernel.shape[1:]))
    (y,) = convolve_fused(x, offset, kernel, *mask, **settings)
    return y.reshape(images, *y.shape[2:])


def allows_tf32(precision) -> bool:
    """Whether XLA may round the operands of a float32 product to TF32 on a GPU."""
    if precision is None:
        # pyright knows no settings that are context managers too.
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore
    operands = precision if isinstance(precision, tuple) else (precision,)
    return all(_operand_allows_tf32(operand) for operand in operands)


def _operand_allows_tf32(precision) -> bool:
    algorithms = jax.lax.DotAlgorithmPreset
    if isinstance(precision, str) and precision in algorithms.__members__:
        precision = algorithms[precision]
    if isinstance(precision, algorithms):
        return precision in (algorithms.DEFAULT, algorithms.TF32_TF32_F32)
    if isinstance(precision, jax.lax.DotAlgorithm):
        return False
    return jax.lax.Precision(precision) != jax.lax.Precision.HIGHEST
