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
        return (
            _convolve_at_once(
                x, offset, kernel, *mask, devices=devices, settings=settings
            ),
        )
    weights = by_group(kernel, geometry["groups"])
    real = offset.dtype
    features = kernel.shape[-1]

    def add_rows(y, first, rows):
        places = _rows((offset, *mask), first, rows)
        columns = sample_columns(x, _first_row(x, first), *places, **settings)[0]
        part = _einsum("npqitc,{n}tcik->npqik", columns, weights, precision, real)
        part = part.astype(x.dtype).reshape(*part.shape[:3], features)
        return jax.lax.dynamic_update_slice_in_dim(y, part, first, 1)

    y = jnp.zeros_like(x, shape=(*offset.shape[:3], features))
    chunk = _rows_of_chunk(x, offset, x.dtype, devices)
    return (_in_chunks(add_rows, y, offset.shape[1], chunk),)


def deform_conv2d_gradients(x, offset, kernel, *mask_and_gradient, **params):
    """The backward pass, like the function of that name in `xla_ops.reference`."""
    parts = x.shape[0], 1
    return _gradients(x, offset, kernel, *mask_and_gradient, parts=parts, **params)


def deform_conv2d_summed_gradients(
    x, offset, kernel, *mask_and_gradient, devices, **params
):
    """The same, the gradient of a shared kernel summed over the images, [1, ...].

    The images of a device are multiplied in one product, so that what the sum has as
    its terms, R*S*C*K numbers an image, is not written.
    """
    images = x.shape[0]
    parts = images, 1
    if devices == 1 or (_are_known((images,)) and images % devices == 0):
        parts = devices, images // devices
    dx, doffset, dkernel, *dmask = _gradients(
        x, offset, kernel, *mask_and_gradient, devices=devices, parts=parts, **params
    )
    # Outside of the loop over chunks: devices add up once.
    return dx, doffset, dkernel.sum(0, keepdims=True), *dmask


def _gradients(
    x, offset, kernel, *mask_and_gradient, parts, precision, devices, **geometry
):
    """The backward pass; of the kernel a gradient for each part of the batch.

    `parts` says how many there are, and how many images each has.
    """
    *mask, gradient = mask_and_gradient
    settings = _settings(kernel, geometry)
    weights = by_group(kernel, geometry["groups"])
    real = offset.dtype
    # bfloat16 has the range of float32, so that nothing vanishes.
    kept = x.dtype if x.dtype == jnp.bfloat16 else real
    chunk = _rows_of_chunk(x, offset, kept, devices)
    input_gradient = _INPUT_GRADIENTS[_input_gradient()]

    def add_rows(sums, first, rows):
        dx, doffset, dkernel, *dmask = sums
        places = _rows((offset, *mask), first, rows)
        (g,) = _rows((gradient,), first, rows)
        g = g.reshape(*g.shape[:3], *weights.shape[-2:])
        dcolumns = columns_gradient(g, weights, precision, kept)
        more_dx, columns, *more = input_gradient(
            x,
            _first_row(x, first),
            *places,
            dcolumns=dcolumns,
            dtype=dx.dtype,
            devices=devices,
            settings=settings,
        )
        more_dkernel = kernel_gradient(columns, g, parts, precision, real)
        places = [
            jax.lax.dynamic_update_slice_in_dim(whole, part, first, 1)
            for whole, part in zip((doffset, *dmask), more, strict=True)
        ]
        return (
            dx + more_dx,
            places[0],
            dkernel + more_dkernel.reshape(dkernel.shape),
            *places[1:],
        )

    total = offset.shape[1]
    sums = (
        # Chunks are added up in the type of sums.
        jnp.zeros_like(x, dtype=x.dtype if chunk == total else real),
        jnp.zeros_like(offset),
        jnp.zeros_like(offset, shape=(parts[0], *kernel.shape[1:])),
        *(jnp.zeros_like(m, dtype=real) for m in mask),
    )
    dx, *others = _in_chunks(add_rows, sums, total, chunk)
    return dx.astype(x.dtype), *others


def columns_gradient(g, weights, precision, dtype):
    """[N, P, Q, I, R*S, C/I] of that type, from the output's gradient `g`."""
    return _einsum("npqik,{n}tcik->npqitc", g, weights, precision, dtype)


def kernel_gradient(columns, g, parts, precision, dtype):
    """[parts, R*S, C/I, I, K/I] of that type: sums over each part of the batch.

    `parts` says how many there are, and how many images each has.
    """
    columns, g = (array.reshape(*parts, *array.shape[1:]) for array in (columns, g))
    return jnp.einsum(
        "dnpqitc,dnpqik->dtcik",
        columns,
        g,
        precision=precision,
        preferred_element_type=dtype,
    )


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


def _convolve_at_once(x, offset, kernel, *mask, devices, settings):
    images = x.shape[0]
    divides = devices > 1 and _are_known((images,)) and images % devices == 0
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


# The gradient of x


def _sorted_input_gradient(
    x, first_row, offset, *mask, dcolumns, dtype, devices, settings
):
    """Adds up what each pixel's samples give, in an order that is always the same.

    Returns:
      The gradient of x in that type, then the results of `visit_samples`.
    """
    others = visit_samples(
        x, first_row, offset, dcolumns, *mask, scatter=False, **settings
    )
    joint = devices == 1 and _last_pixel(x.shape, offset.shape, True) is not None
    (pixel,) = list_corners(x, first_row, offset, joint=joint, **settings)
    pixel, number = sort_corners(pixel, joint)
    dx, _ = gather_input_gradient(
        first_row,
        offset,
        dcolumns,
        pixel,
        number,
        *mask,
        shape=x.shape[1:],
        dtype=dtype,
        joint=joint,
        **settings,
    )
    return dx, *others


def sort_corners(pixel, joint):
    """Sorted by pixel, and the numbers of the corners: both [N, G, corners]."""
    number = jax.lax.broadcasted_iota(jnp.int32, pixel.shape, 2)
    shape = (-1,) if joint else pixel.shape
    by_pixel = jax.lax.sort(
        (pixel.reshape(shape), number.reshape(shape)), num_keys=1, is_stable=True
    )
    return tuple(array.reshape(pixel.shape) for array in by_pixel)


def _last_pixel(x, offset, joint) -> int | None:
    """The largest number that a list of pixels holds, if it fits into 32 bits.

    H*W stands for "outside the map". In a joint list all rows, one for each image and
    offset group, are sorted as one: XLA has a radix sort for one long row, and none for
    a few. There the numbers of a row go on where those of the row before end.

    Args:
      x: Shape of x.
      offset: Shape of offset.
      joint: Whether the list is.
    """
    rows = (x[0], offset[3]) if joint else ()
    if not _are_known((*x[1:3], *rows)):
        return None
    last = math.prod(rows) * (x[1] * x[2] + 1) - 1
    return last if last < 1 << 32 else None


def _atomic_input_gradient(
    x, first_row, offset, *mask, dcolumns, dtype, devices, settings
):
    """The same by atomic additions, whose order changes from run to run."""
    *others, dx = visit_samples(
        x, first_row, offset, dcolumns, *mask, scatter=True, **settings
    )
    return dx.astype(dtype), *others


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


def by_group(kernel, groups):
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


def _rows_of_chunk(x, offset, dtype, devices):
    """How many rows of the output have their columns, of that type, in one chunk."""
    images, total, columns, _, taps, _ = offset.shape
    sizes = (*x.shape, *offset.shape)
    if not _are_known(sizes) or 0 in sizes:
        return total
    images = -(-images // devices)
    row = images * columns * taps * x.shape[3] * jnp.dtype(dtype).itemsize
    return min(total, max(1, _COLUMN_BYTES // row))


def _in_chunks(add_rows: Callable, result, total, chunk):
    """Calls `result = add_rows(result, first, rows)` for all rows of the output."""
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
    return [((*offset.shape[:-3], kernel.shape[-1]), x.dtype)]


def _visit_results(x, first_row, offset, dcolumns, *mask, scatter, **settings):
    results = [(dcolumns.shape, x.dtype), (offset.shape, offset.dtype)]
    results += [(m.shape, offset.dtype) for m in mask]
    return results + ([(x.shape, offset.dtype)] if scatter else [])


def _list_results(x, first_row, offset, joint, **settings):
    images, rows, columns, groups, taps, _ = offset.shape
    last = _last_pixel(x.shape, offset.shape, joint)
    # XLA sorts short keys faster.
    narrow = last is not None and last < 1 << 16
    corners = 4 * rows * columns * taps
    return [((images, groups, corners), np.uint16 if narrow else np.uint32)]


def _gather_results(
    first_row, offset, dcolumns, pixel, number, *mask, shape, dtype, **_
):
    images, groups = pixel.shape[:2]
    starts = (images, groups, shape[0] * shape[1] + 1)
    return [((images, *shape), dtype), (starts, np.int32)]


def _list_attributes(*, joint, **settings):
    return {**_attributes(**settings), "joint": np.int64(joint)}


sample_columns = make_kernel(
    "dcn_jax.deform_conv2d.columns", results=_columns_results, attributes=_attributes
)
convolve_fused = make_kernel(
    "dcn_jax.deform_conv2d.fused",
    results=_fused_results,
    attributes=_attributes,
    shared=(2,),
)
visit_samples = make_kernel(
    "dcn_jax.deform_conv2d.visit", results=_visit_results, attributes=_attributes
)
list_corners = make_kernel(
    "dcn_jax.deform_conv2d.list", results=_list_results, attributes=_list_attributes
)
gather_input_gradient = make_kernel(
    "dcn_jax.deform_conv2d.gather",
    results=_gather_results,
    attributes=_list_attributes,
)
