"""deform_conv2d on CUDA: kernels sample, XLA multiplies.

The samples, multiplied with the kernel, give the output; they are called columns, as
in im2col. Columns are R*S times as large as the input, so the output is worked on in
chunks of rows, and neither direction keeps columns. Where tensor cores may be used, one
kernel does the whole forward pass and no columns are written: `fits_fused_kernel`.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups, I convolution groups.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xla_ops._call import make_kernel

# Columns of a chunk, on one device. A chunk is at least one row of the output.
_COLUMN_BYTES = 256 << 20


def deform_conv2d(x, offset, kernel, *mask, precision, devices, **geometry):
    """The forward pass, like the function of that name in `xla_ops.reference`."""
    settings = _settings(kernel, geometry)
    if fits_fused_kernel(
        x.dtype, x.shape[3], offset.shape[3], kernel.shape[-1], geometry["groups"],
        precision,
    ):  # fmt: skip
        return tuple(_fused(x, offset, kernel, *mask, **settings))
    weights = _by_group(kernel, geometry["groups"])
    real = offset.dtype
    features = kernel.shape[-1]

    def add_rows(y, first, rows):
        places = _rows((offset, *mask), first, rows)
        columns = _columns(x, _first_row(x, first), *places, **settings)[0]
        part = _einsum("npqitc,{n}tcik->npqik", columns, weights, precision, real)
        part = part.astype(x.dtype).reshape(*part.shape[:3], features)
        return jax.lax.dynamic_update_slice_in_dim(y, part, first, 1)

    y = jnp.zeros_like(x, shape=(*offset.shape[:3], features))
    return (_in_chunks(add_rows, y, x, offset, devices),)


def deform_conv2d_gradients(
    x, offset, kernel, *mask_and_gradient, precision, devices, **geometry
):
    """The backward pass, like the function of that name in `xla_ops.reference`."""
    *mask, gradient = mask_and_gradient
    settings = _settings(kernel, geometry)
    weights = _by_group(kernel, geometry["groups"])
    real = offset.dtype
    input_gradient = _INPUT_GRADIENTS[_input_gradient()]

    def add_rows(sums, first, rows):
        dx, doffset, dkernel, *dmask = sums
        places = _rows((offset, *mask), first, rows)
        (g,) = _rows((gradient,), first, rows)
        g = g.reshape(*g.shape[:3], *weights.shape[-2:])
        dcolumns = _einsum("npqik,{n}tcik->npqitc", g, weights, precision, real)
        more_dx, columns, *parts = input_gradient(
            x,
            _first_row(x, first),
            *places,
            dcolumns=dcolumns,
            devices=devices,
            settings=settings,
        )
        more_dkernel = jnp.einsum(
            "npqitc,npqik->ntcik",
            columns,
            g,
            precision=precision,
            preferred_element_type=real,
        )
        places = [
            jax.lax.dynamic_update_slice_in_dim(whole, part, first, 1)
            for whole, part in zip((doffset, *dmask), parts, strict=True)
        ]
        return (
            dx + more_dx,
            places[0],
            dkernel + more_dkernel.reshape(dkernel.shape),
            *places[1:],
        )

    shapes = [
        x.shape,
        offset.shape,
        (x.shape[0], *kernel.shape[1:]),
        *(m.shape for m in mask),
    ]
    sums = tuple(jnp.zeros_like(offset, shape=shape) for shape in shapes)
    dx, *others = _in_chunks(add_rows, sums, x, offset, devices)
    return dx.astype(x.dtype), *others


# The fused forward pass

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
    if not _are_known((channels, offset_groups, features)):
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


# The gradient of x


def _sorted_input_gradient(x, first_row, offset, *mask, dcolumns, devices, settings):
    """Adds up what each pixel's samples give, in an order that is always the same.

    Returns:
      The gradient of x in the type of offset, then the results of `_visit`.
    """
    others = _visit(x, first_row, offset, dcolumns, *mask, scatter=False, **settings)
    (pixel,) = _list(x, first_row, offset, **settings)
    pixel, number = _sort_by_pixel(pixel, x.shape[1:3], devices)
    dx, _ = _gather(
        first_row, offset, dcolumns, pixel, number, *mask, shape=x.shape[1:], **settings
    )
    return dx, *others


def _sort_by_pixel(pixel, size, devices):
    """Sorts each row, and says where its elements were: both [N, G, corners].

    On one device all rows are sorted as one, whose keys tell the rows apart: XLA has a
    radix sort for one long row, and none for a few.
    """
    number = jax.lax.broadcasted_iota(jnp.int32, pixel.shape, 2)
    images, groups = pixel.shape[:2]
    sizes = (images, groups, *size)
    values = math.prod(sizes[:2]) * (math.prod(size) + 1) if _are_known(sizes) else None
    if devices > 1 or values is None or values > 1 << 32:
        return jax.lax.sort((pixel, number), num_keys=1, is_stable=True)
    wide = jnp.uint16 if values <= 1 << 16 else jnp.uint32
    first = np.arange(images * groups).reshape(images, groups, 1)
    first = (first * (math.prod(size) + 1)).astype(wide)
    keys = (pixel.astype(wide) + first).reshape(-1)
    keys, number = jax.lax.sort((keys, number.reshape(-1)), num_keys=1, is_stable=True)
    keys = keys.reshape(pixel.shape) - first
    return keys.astype(pixel.dtype), number.reshape(pixel.shape)


def _atomic_input_gradient(x, first_row, offset, *mask, dcolumns, devices, settings):
    """The same by atomic additions, whose order changes from run to run."""
    *others, dx = _visit(
        x, first_row, offset, dcolumns, *mask, scatter=True, **settings
    )
    return dx, *others


_INPUT_GRADIENTS = {"sorted": _sorted_input_gradient, "atomic": _atomic_input_gradient}


def _input_gradient() -> str:
    """How the gradient of x is summed: DCN_JAX_CUDA_INPUT_GRADIENT, read when tracing.

    Raises:
      ValueError: It is neither "sorted" (the default) nor "atomic".
    """
    name = os.environ.get("DCN_JAX_CUDA_INPUT_GRADIENT") or "sorted"
    if name not in _INPUT_GRADIENTS:
        raise ValueError(
            f"environment variable DCN_JAX_CUDA_INPUT_GRADIENT is {name!r}; "
            f"expected one of {tuple(_INPUT_GRADIENTS)}"
        )
    return name


# Products


def _by_group(kernel, groups):
    """[copies, R, S, C/I, K] -> [copies, R*S, C/I, I, K/I]."""
    copies, height, width, channels, features = kernel.shape
    return kernel.reshape(copies, height * width, channels, groups, features // groups)


def _einsum(subscripts, a, weights, precision, real):
    """A product with weights that are shared by the images, or of each image."""
    shared = weights.shape[0] == 1
    return jnp.einsum(
        subscripts.format(n="" if shared else "n"),
        a,
        weights[0] if shared else weights,
        precision=precision,
        preferred_element_type=real,
    )


# Chunks


def _in_chunks(add_rows: Callable, result, x, offset, devices):
    """Calls `result = add_rows(result, first, rows)` for all rows of the output."""
    images, total, columns, _, taps, _ = offset.shape
    chunk = total
    sizes = (*x.shape, *offset.shape)
    if _are_known(sizes) and 0 not in sizes:
        images = -(-images // devices)
        row = images * columns * taps * x.shape[3] * offset.dtype.itemsize
        chunk = min(total, max(1, _COLUMN_BYTES // row))
    if chunk == total:
        return add_rows(result, 0, total) if total != 0 else result
    result = jax.lax.fori_loop(
        0, total // chunk, lambda i, r: add_rows(r, i * chunk, chunk), result
    )
    rest = total % chunk
    return add_rows(result, total - rest, rest) if rest else result


def _rows(arrays, first, rows):
    return [jax.lax.dynamic_slice_in_dim(a, first, rows, 1) for a in arrays]


def _first_row(x, first):
    """The first row of a chunk, for each image: [N]."""
    return jnp.full_like(x, first, dtype=jnp.int32, shape=(x.shape[0],))


def _are_known(sizes) -> bool:
    """Whether no size is symbolic, as `jax.export` has them."""
    return all(isinstance(size, int) for size in sizes)


# Kernels


def _settings(kernel, geometry) -> dict[str, Any]:
    return {"window": kernel.shape[1:3], **geometry}


def _attributes(*, window, strides, padding, dilation, groups, **_):
    pairs = {"kernel": window, "stride": strides, "dilation": dilation}
    attributes = {f"{name}_h": pair[0] for name, pair in pairs.items()}
    attributes |= {f"{name}_w": pair[1] for name, pair in pairs.items()}
    attributes |= {"pad_top": padding[0], "pad_left": padding[1], "groups": groups}
    return {name: np.int64(value) for name, value in attributes.items()}


def _columns_shape(offset, channels, groups):
    return (*offset.shape[:3], groups, offset.shape[4], channels // groups)


def _columns_results(x, first_row, offset, *mask, groups, **settings):
    return [(_columns_shape(offset, x.shape[3], groups), x.dtype)]


def _fused_results(x, offset, kernel, *mask, **settings):
    return [((*offset.shape[:3], kernel.shape[-1]), x.dtype)]


def _visit_results(x, first_row, offset, dcolumns, *mask, scatter, **settings):
    results = [(dcolumns.shape, x.dtype), (offset.shape, offset.dtype)]
    results += [(m.shape, offset.dtype) for m in mask]
    return results + ([(x.shape, offset.dtype)] if scatter else [])


def _list_results(x, first_row, offset, **settings):
    images, rows, columns, groups, taps, _ = offset.shape
    pixels = x.shape[1] * x.shape[2]  # This number stands for "outside the map".
    # XLA sorts short keys faster.
    narrow = isinstance(pixels, int) and pixels < 1 << 16
    corners = 4 * rows * columns * taps
    return [((images, groups, corners), np.uint16 if narrow else np.uint32)]


def _gather_results(first_row, offset, dcolumns, pixel, number, *mask, shape, **_):
    images, groups = pixel.shape[:2]
    starts = (images, groups, shape[0] * shape[1] + 1)
    return [((images, *shape), dcolumns.dtype), (starts, np.int32)]


_columns = make_kernel(
    "dcn_jax.deform_conv2d.columns", results=_columns_results, attributes=_attributes
)
_fused = make_kernel(
    "dcn_jax.deform_conv2d.fused",
    results=_fused_results,
    attributes=_attributes,
    shared=(2,),
)
_visit = make_kernel(
    "dcn_jax.deform_conv2d.visit", results=_visit_results, attributes=_attributes
)
_list = make_kernel(
    "dcn_jax.deform_conv2d.list", results=_list_results, attributes=_attributes
)
_gather = make_kernel(
    "dcn_jax.deform_conv2d.gather", results=_gather_results, attributes=_attributes
)
