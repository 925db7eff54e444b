"""From an operator to an XLA custom call: the one file that touches moving jax API.

It loads the kernel libraries, registers their handlers, and makes primitives out of
them. To add an operator:

1. Write it in plain jnp in `reference`, as a function `f(*operands, **params)` that
   returns a tuple of arrays.
2. Write its handler in `csrc/cpu/*.cc` and register it there under one target name
   with `XLA_OPS_REGISTER` (`csrc/registry.h`). `CMakeLists.txt` finds the file.
3. Make the primitive and bind it in the public function:

       _pool = make_primitive(
           "dcn_jax.roi_pool.fwd",
           results=lambda x, rois, *, height, width: [((x.shape[0], ...), x.dtype)],
           reference=reference.roi_pool,
           attributes=lambda *, height, width: {"height": np.int64(height), ...},
       )

       def roi_pool(x, rois, ..., implementation=None):
           ...validate...
           implementation = resolve_implementation(implementation)
           x, rois = align(x, rois)
           if implementation == "reference":
               return _pool(x, rois, implementation="reference", height=..., ...)[0]
           return _roi_pool(...)   # jax.custom_vjp; its rules call _pool(x, rois, ...)

Every operand and result leads with the batch size N, so that the partitioner can split
all of them in the same way. An operand in `shared` (a weight) may lead with 1 instead:
then all images read copy 0. vmap folds the mapped axis into N; a shared operand that is
not mapped stays one copy. For one device the leading 1 reaches the handler; for several
the operand is broadcast to N when the program is lowered.
"""

import functools
import importlib
import itertools
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_BUILD_COMMAND = "scripts/build.sh"
# jax's name of a platform -> the name under which jaxlib keeps its targets. jaxlib
# passes names on that it does not know: those of "cuda" would wait for ever, as the
# plugin of CUDA asks for "CUDA".
_XLA_PLATFORMS = {"cpu": "cpu", "cuda": "CUDA"}
_IMPLEMENTATIONS = ("ffi", "reference")


# Libraries


def _framework_ffi_version() -> tuple[int, int]:
    """XLA FFI API version (major, minor) of the installed jaxlib."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text()
    major, minor = (
        re.search(rf"#define XLA_FFI_API_{part} (\d+)", text)
        for part in ("MAJOR", "MINOR")
    )
    if major is None or minor is None:
        raise ImportError(f"{header} does not state the version of the XLA FFI API")
    return int(major[1]), int(minor[1])


def _load_library(module: str, platform: str) -> dict[str, Any]:
    """Registers the handlers of `xla_ops.<module>` and returns them by target name.

    Raises:
      ImportError: The library is not built, cannot be loaded, or was built against a
        newer XLA FFI than the installed jaxlib has. Registering such a library would
        leave the process without any jax backend.
    """
    library = importlib.import_module(f"xla_ops.{module}")
    built, installed = library.ffi_api_version, _framework_ffi_version()
    if built[0] != installed[0] or built > installed:
        raise ImportError(
            f"it was built for XLA FFI {built[0]}.{built[1]}, but jaxlib has "
            f"{installed[0]}.{installed[1]}"
        )
    targets = library.registrations()
    for name, capsule in targets.items():
        jax.ffi.register_ffi_target(name, capsule, platform=_XLA_PLATFORMS[platform])
        jax.ffi.register_ffi_target_as_batch_partitionable(name)
    return targets


def _libraries() -> dict[str, str]:
    """Platform -> module with its handlers.

    XLA_OPS_EMULATE_CUDA=1 is for tests: the CPU then runs the CUDA kernels, compiled
    for it (`csrc/cuda/simt_host.h`).
    """
    if os.environ.get("XLA_OPS_EMULATE_CUDA") == "1":
        return {"cpu": "_cuda_emulated"}
    return {"cpu": "_cpu", "cuda": "_cuda"}


_CUDA_LIBRARIES = ("_cuda", "_cuda_emulated")
_targets: dict[str, dict[str, Any]] = {}
_load_errors: dict[str, str] = {}
for _platform, _module in _libraries().items():
    try:
        _targets[_platform] = _load_library(_module, _platform)
    except ImportError as error:
        _load_errors[_platform] = str(error)


def backends() -> tuple[str, ...]:
    """Platforms whose kernels are built and loaded, such as `("cpu",)`.

    Every other platform runs the operators' plain jnp form (see `implementation` of
    the operators).
    """
    return tuple(_targets)


def resolve_implementation(implementation: str | None) -> str | None:
    """Checks `implementation`; `None` takes DCN_JAX_IMPLEMENTATION's value, if set.

    Returns:
      "reference", "ffi" (a platform without kernels is an error) or None (kernels
      where the platform has them, else the reference).

    Raises:
      ValueError: The value is none of these.
    """
    source = "`implementation`"
    if implementation is None:
        source = "environment variable DCN_JAX_IMPLEMENTATION"
        implementation = os.environ.get("DCN_JAX_IMPLEMENTATION") or None
    known = isinstance(implementation, str) and implementation in _IMPLEMENTATIONS
    if implementation is not None and not known:
        raise ValueError(
            f"{source} is {implementation!r}; "
            f"expected None or one of {_IMPLEMENTATIONS}"
        )
    return implementation


# Operand and result types


def align(*operands: jax.Array | None, shared: Sequence[int] = ()) -> tuple:
    """Gives operands the types that a primitive needs under a mesh.

    Under `shard_map` every operand varies over the union of the manual mesh axes that
    any of them varies over; the transpose of this cast sums a weight's gradient over
    the devices. Under an Explicit mesh the batch is split as it is in operand 0, other
    axes are not split. Call it outside `jax.custom_vjp`. None passes through.

    Args:
      *operands: Arrays that lead with the batch size, or None.
      shared: Positions of operands that have no batch size, such as weights.

    Returns:
      The operands, in the same order.
    """
    types = {i: jax.typeof(x) for i, x in enumerate(operands) if x is not None}
    varying = frozenset().union(*(t.mat.varying for t in types.values()))
    batch = types[0].sharding.spec[0]
    aligned = list(operands)
    for index, t in types.items():
        x = operands[index]
        missing = varying - t.mat.varying
        if missing:
            x = jax.lax.pcast(x, tuple(missing), to="varying")
        leading = None if index in shared else batch
        spec = P(leading, *(None,) * (t.ndim - 1))
        if t.sharding.spec != spec:
            x = jax.sharding.reshard(x, spec)
        aligned[index] = x
    return tuple(aligned)


def reshape_images(x: jax.Array, shape: Sequence) -> jax.Array:
    """`x` [N, ...] with other axes after the first; the batch is split as before.

    What jax says of the split of a reshaped array is lost beside axes of size 1.
    """
    shape = (x.shape[0], *shape)
    return jax.lax.reshape(x, shape, out_sharding=_sharding_or_none(x, len(shape)))


def _in_auto_mode(reference, results, summed: Sequence[int] = ()):
    """Lets the compiler, not the types, split `reference` under an Explicit mesh."""

    def function(*operands, **params):
        first = jax.typeof(operands[0])
        plain: Any = functools.partial(reference, **params)
        if first.sharding.spec[0] is not None:
            shardings = tuple(
                aval.sharding
                for aval in _avals(first, results(*operands, **params), summed)
            )
            plain = jax.sharding.auto_axes(plain, out_sharding=shardings)
        return tuple(plain(*operands))

    return function


def _avals(like, results, summed: Sequence[int] = ()) -> list:
    """Types of results beside the batch-leading operand `like`.

    Args:
      like: Type of the operand.
      results: Shape and dtype of each.
      summed: Positions of results that are sums over the batch.
    """
    return [
        like.update(
            shape=tuple(shape),
            dtype=jnp.dtype(dtype),
            weak_type=False,
            sharding=_batch_sharding(like, len(shape), index in summed),
        )
        for index, (shape, dtype) in enumerate(results)
    ]


def _batch_sharding(like, ndim: int, summed: bool = False) -> NamedSharding:
    """Sharding of an array of rank `ndim` whose batch is split as that of `like`."""
    leading = None if summed else like.sharding.spec[0]
    return NamedSharding(like.sharding.mesh, P(leading, *(None,) * (ndim - 1)))


# Primitives


def make_primitive(
    target: str,
    *,
    results: Callable[..., Sequence[tuple[tuple, Any]]],
    reference: Callable[..., tuple],
    attributes: Callable[..., dict[str, Any]],
    shared: Sequence[int] = (),
    cuda: Callable[..., tuple] | None = None,
) -> Callable[..., list[jax.Array]]:
    """Makes a jax primitive that runs a kernel where one is built.

    The primitive has shape rules, batching (one custom call under vmap), derivatives
    through the reference, and data-parallel partitioning.

    Args:
      target: FFI target name, the same string as in `XLA_OPS_REGISTER`.
      results: `(*operands, **params) -> [(shape, dtype), ...]`, given anything that
        has `shape` and `dtype`.
      reference: `(*operands, **params) -> (array, ...)`, the same in plain jnp.
      attributes: `(**params) -> {name: value}` that the handler decodes: np.int64,
        np.float64 or str. Params must be hashable; `implementation` is not among them.
      shared: Positions of operands that lead with 1 or N; all others lead with N.
      cuda: `(*operands, devices, **params) -> (array, ...)`, for an operator that is
        several kernels of the CUDA library (`make_kernel`) and plain jnp between them;
        None where it is one kernel, named `target`. The batch is probably split over
        as many as `devices`.

    Returns:
      `call(*operands, implementation=None, **params) -> [array, ...]`, where
      implementation="reference" runs the reference instead of the primitive.
    """
    reference = _in_auto_mode(reference, results)
    # Outside jit a plain form would compile its loops anew at every call.
    compiled_reference = _compiled(reference)
    primitive = Primitive(target)
    primitive.multiple_results = True

    @primitive.def_abstract_eval
    def _(*avals, implementation, **params):
        return _avals(avals[0], results(*avals, **params))

    primitive.def_impl(_eager_rule(primitive))

    def batch(operands, dims, **params):
        folded, unfold = _fold(operands, dims, shared)
        return unfold(primitive.bind(*folded, **params))

    batching.primitive_batchers[primitive] = batch

    def jvp(primals, tangents, *, implementation, **params):
        outputs = primitive.bind(*primals, implementation=implementation, **params)
        plain = functools.partial(compiled_reference, **params)
        return outputs, _push_forward(plain, primals, tangents)[1]

    ad.primitive_jvps[primitive] = jvp

    def lower_reference(ctx, *operands, implementation, **params):
        if implementation == "ffi":
            raise NotImplementedError(
                f"no {target} kernel is built for {_platforms(ctx)} "
                f"(there are kernels for {backends()}); "
                'implementation="reference" or None runs everywhere'
            )
        _warn_of_reference(_platforms(ctx))
        function = functools.partial(reference, **params)
        return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)

    def lower_kernel(platform, ctx, *operands, implementation, **params):
        if cuda is not None and _libraries()[platform] in _CUDA_LIBRARIES:
            composition = functools.partial(cuda, devices=_devices(ctx))
            function = functools.partial(_in_auto_mode(composition, results), **params)
            return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)
        again = functools.partial(
            primitive.bind, implementation=implementation, **params
        )
        return _lower_to_target(
            ctx, target, platform, operands, attributes(**params), shared, again
        )

    mlir.register_lowering(primitive, lower_reference)
    # A missing CPU library is an error, not a slow program.
    for platform in {"cpu", *_targets}:
        mlir.register_lowering(
            primitive, functools.partial(lower_kernel, platform), platform=platform
        )

    def call(*operands, implementation=None, **params):
        if implementation == "reference":
            return list(compiled_reference(*operands, **params))
        return primitive.bind(*operands, implementation=implementation, **params)

    return call


def _compiled(function):
    """`function(*operands, **params)`, compiled once for operands and params alike."""

    @functools.cache
    def with_params(params):
        return jax.jit(functools.partial(function, **dict(params)))

    def call(*operands, **params):
        return with_params(tuple(sorted(params.items())))(*operands)

    return call


def _eager_rule(primitive):
    """Runs the primitive outside of jit."""
    bind = _compiled(primitive.bind)

    def rule(*operands, **params):
        if not jax.config.jax_disable_jit:  # pyright: ignore
            return bind(*operands, **params)
        # What is not compiled comes back to this rule.
        with jax.disable_jit(False):
            return bind(*operands, **params)

    return rule


def make_kernel(
    target: str,
    *,
    results: Callable[..., Sequence[tuple[tuple, Any]]],
    attributes: Callable[..., dict[str, Any]],
    shared: Sequence[int] = (),
) -> Callable[..., list[jax.Array]]:
    """Makes a call of one kernel, for use in `cuda` of `make_primitive` alone.

    Args:
      target: FFI target name.
      results: As in `make_primitive`, like attributes and shared.
      attributes: See there.
      shared: See there.

    Returns:
      `call(*operands, **params) -> [array, ...]`.
    """
    primitive = Primitive(target)
    primitive.multiple_results = True

    @primitive.def_abstract_eval
    def _(*avals, **params):
        return [
            avals[0].update(shape=tuple(shape), dtype=jnp.dtype(dtype), weak_type=False)
            for shape, dtype in results(*avals, **params)
        ]

    def lower(platform, ctx, *operands, **params):
        again = functools.partial(primitive.bind, **params)
        return _lower_to_target(
            ctx, target, platform, operands, attributes(**params), shared, again
        )

    for platform in _libraries():
        mlir.register_lowering(
            primitive, functools.partial(lower, platform), platform=platform
        )
    return primitive.bind


def make_cuda_form(
    name: str,
    *,
    plain: Callable[..., Sequence[jax.Array]],
    results: Callable[..., Sequence[tuple[tuple, Any]]],
    cuda: Callable[..., tuple],
    summed: Sequence[int] = (),
) -> Callable[..., list[jax.Array]]:
    """Makes a function that is `plain`, and on CUDA one that does the same faster.

    It is for what cannot be one primitive of `make_primitive`: results that do not lead
    with the batch. Under vmap and for derivatives it is `plain` on CUDA too.

    Args:
      name: Of the primitive.
      plain: `(*operands, implementation, **params) -> [array, ...]`.
      results: As in `make_primitive`.
      cuda: See there; its results are those of `plain`.
      summed: Positions of results that are sums over the batch.

    Returns:
      `call(*operands, implementation=None, **params) -> [array, ...]`.
    """
    cuda = _in_auto_mode(cuda, results, summed)
    compiled_plain = _compiled(plain)
    primitive = Primitive(name)
    primitive.multiple_results = True

    @primitive.def_abstract_eval
    def _(*avals, implementation, **params):
        return _avals(avals[0], results(*avals, **params), summed)

    primitive.def_impl(_eager_rule(primitive))

    def batch(operands, dims, **params):
        mapped = jax.vmap(functools.partial(plain, **params), dims)
        results = mapped(*operands)
        return results, [0] * len(results)

    batching.primitive_batchers[primitive] = batch

    def jvp(primals, tangents, **params):
        function = functools.partial(compiled_plain, **params)
        return _push_forward(function, primals, tangents)

    ad.primitive_jvps[primitive] = jvp

    def lower_plain(ctx, *operands, **params):
        function = functools.partial(plain, **params)
        return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)

    def lower_cuda(ctx, *operands, implementation, **params):
        function = functools.partial(cuda, devices=_devices(ctx), **params)
        return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)

    mlir.register_lowering(primitive, lower_plain)
    for platform in _targets:
        if _libraries()[platform] in _CUDA_LIBRARIES:
            mlir.register_lowering(primitive, lower_cuda, platform=platform)

    def call(*operands, implementation=None, **params):
        if implementation == "reference":
            options = dict(implementation=implementation, **params)
            return list(compiled_plain(*operands, **options))
        return primitive.bind(*operands, implementation=implementation, **params)

    return call


def _push_forward(function, primals, tangents):
    """Values and tangents of `function`, of whose operands some do not move."""
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

    def along(*moved):
        operands = list(primals)
        for i, x in zip(moving, moved, strict=True):
            operands[i] = x
        return tuple(function(*operands))

    values, out = jax.jvp(
        along, [primals[i] for i in moving], [tangents[i] for i in moving]
    )
    return list(values), [
        ad.Zero(jax.typeof(y).to_tangent_aval()) if t.dtype == jax.dtypes.float0 else t
        for y, t in zip(values, out, strict=True)
    ]


# Batching


def _fold(operands, dims, shared):
    """Folds the mapped axis, of size B, into the batch axis.

    The order of the two is free; the one that is split over devices should go first, so
    that nothing moves. An Explicit mesh says which that is. Under an Auto mesh the
    guess is the batch where operand 0 is not mapped (as in a vmap over weights), else
    the mapped axis.

    Returns:
      The operands, [B*N, ...] or [N*B, ...], and a function that unfolds results and
      says where their mapped axis is.
    """
    size = next(
        x.shape[dim] for x, dim in zip(operands, dims, strict=True) if dim is not None
    )
    expanded = [
        jnp.broadcast_to(x[None], (size, *x.shape))
        if dim is None
        else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(operands, dims, strict=True)
    ]
    images = expanded[0].shape[1]
    spec = jax.typeof(expanded[0]).sharding.spec
    batch_first = spec[0] is None and (spec[1] is not None or dims[0] is None)
    mapped = 1 if batch_first else 0
    folded = []
    for index, (operand, dim, x) in enumerate(
        zip(operands, dims, expanded, strict=True)
    ):
        if index in shared and operand.shape[0] == 1 and dim is None:
            folded.append(operand)
            continue
        x = jnp.broadcast_to(x, (size, images, *x.shape[2:]))
        folded.append(_merge_leading(jnp.moveaxis(x, 0, mapped)))

    def unfold(results):
        sizes = (images, size) if batch_first else (size, images)
        split = [_split_leading(y, sizes) for y in results]
        if spec[0] is not None and spec[1] is not None:
            # Both axes were split. The call splits one; the types have to say both.
            split = [
                jax.sharding.reshard(y, P(*spec[:2], *(None,) * (y.ndim - 2)))
                for y in split
            ]
        return split, [mapped] * len(results)

    return folded, unfold


def _merge_leading(x):
    """[A, B, ...] -> [A*B, ...], split over devices as axis 0 was."""
    sharding = _sharding_or_none(x, x.ndim)
    if any(axes is not None for axes in jax.typeof(x).sharding.spec[1:]):
        x = jax.sharding.reshard(x, sharding or P(*(None,) * x.ndim))
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    return jax.lax.reshape(x, shape, out_sharding=_sharding_or_none(x, len(shape)))


def _split_leading(x, sizes):
    """[A*B, ...] -> [A, B, ...], split over devices as axis 0 was."""
    shape = (*sizes, *x.shape[1:])
    return jax.lax.reshape(x, shape, out_sharding=_sharding_or_none(x, len(shape)))


def _sharding_or_none(x, ndim):
    aval = jax.typeof(x)
    if aval.sharding.spec[0] is None:
        return None
    return _batch_sharding(aval, ndim)


# Lowering


def _platforms(ctx) -> str:
    return ", ".join(ctx.platforms or ctx.module_context.platforms)


@functools.cache
def _warn_of_reference(platform: str) -> None:
    warnings.warn(
        f"xla_ops has no kernels for {platform}: its operators run in plain jnp there, "
        'which is slower; implementation="reference" asks for that without a warning',
        stacklevel=2,
    )


def _check_target(target: str, platform: str) -> None:
    if target not in _targets.get(platform, ()):
        reason = _load_errors.get(platform, f"the library has no {target}")
        raise RuntimeError(
            f"the {platform} kernels are not available: {reason}. Build them with "
            f'`{_BUILD_COMMAND}`, or pass implementation="reference"'
        )


def _devices(ctx) -> int:
    """For how many devices a call is lowered that the compiler may split."""
    if not _is_partitioned(ctx):
        return 1
    axes = ctx.module_context.axis_context
    sharding = isinstance(axes, mlir.ShardingContext)
    return axes.num_devices if sharding else axes.mesh.size


def _is_partitioned(ctx) -> bool:
    """Whether the compiler may split the call over devices."""
    avals = (*ctx.avals_in, *ctx.avals_out)
    if not all(isinstance(size, int) for aval in avals for size in aval.shape):
        # A sharding rule needs numbers; with symbolic sizes the call is not split.
        return False
    axes = ctx.module_context.axis_context
    if isinstance(axes, mlir.ShardingContext):
        return axes.num_devices > 1
    if isinstance(axes, mlir.SPMDAxisContext):
        return axes.mesh.size > 1 and axes.manual_axes != frozenset(
            axes.mesh.axis_names
        )
    return False


def _lower_to_target(ctx, target, platform, operands, attributes, shared, again):
    """Lowers to a custom call.

    `again` binds the same primitive: to operands of which none is shared, where the
    call may be split.
    """
    _check_target(target, platform)
    extra_attributes = None
    if _is_partitioned(ctx):
        images = ctx.avals_in[0].shape[0]
        if any(ctx.avals_in[i].shape[0] != images for i in shared):

            def expanded(*operands):
                return again(*_expand_shared(operands, shared))

            return mlir.lower_fun(expanded, multiple_results=True)(ctx, *operands)
        extra_attributes = _partitioning_attributes(ctx)
    rule = jax.ffi.ffi_lowering(target, extra_attributes=extra_attributes)
    return rule(ctx, *operands, **attributes)


def _expand_shared(operands, shared):
    """Copies shared operands that lead with 1 to each image."""
    images = operands[0].shape[0]
    expanded = list(operands)
    for index in shared:
        x = operands[index]
        shape = (images, *x.shape[1:])
        if x.shape != shape:
            expanded[index] = jax.lax.broadcast_in_dim(
                x,
                shape,
                range(x.ndim),
                out_sharding=_sharding_or_none(operands[0], x.ndim),
            )
    return expanded


def _partitioning_attributes(ctx) -> dict[str, Any]:
    """Tells the partitioner that axis 0 of all operands and results is one batch."""
    names = itertools.chain("jklmnopqrstuvwxyz", (f"z_{k}" for k in itertools.count(1)))
    sizes = {"i": ctx.avals_in[0].shape[0]}

    def factors(avals):
        lists = []
        for aval in avals:
            own = ["i"]
            for size in aval.shape[1:]:
                own.append(next(names))
                sizes[own[-1]] = size
            lists.append(f"[{', '.join(own)}]")
        return ", ".join(lists)

    mapping = f"({factors(ctx.avals_in)})->({factors(ctx.avals_out)})"
    numbers = ", ".join(f"{name}={size}" for name, size in sizes.items())
    rule = f"#sdy.op_sharding_rule<{mapping} {{{numbers}}}>"
    return {
        "mhlo.frontend_attributes": mlir.ir_attribute({"num_batch_dims": "1"}),
        "sdy.sharding_rule": mlir.ir.Attribute.parse(rule),
    }
