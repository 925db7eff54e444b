"""From an operator to an XLA custom call: the one place that touches moving jax API.

`libraries` loads the kernels; `primitive` makes an operator of them, by the rules of
`batching`, `sharding`, `lowering` and `tangents`; `eager` is for calls outside of jit,
and `composition` has what is used inside the CUDA form of an operator. The operators
import what this file names. `xla_ops/README.md` says how to add one; in Python it is

    _pool = OperatorPrimitive(
        "dcn_jax.roi_pool.fwd",
        results=lambda x, rois, *, height, width: [((x.shape[0], ...), x.dtype)],
        reference=reference.pool,   # plain jnp, (*operands, **params) -> (array, ...)
        attributes=lambda *, height, width: {"height": np.int64(height), ...},
        pull_back=lambda x, rois, ..., gradient, **params: [
            _pool_backward(x, rois, ..., gradient, **params)[0], None, ...
        ],
    )

    def roi_pool(x, rois, ..., implementation=None):
        implementation = resolve_implementation(implementation)
        ...check the arguments...
        x, rois = align(x, rois)
        return _pool(x, rois, implementation=implementation, height=..., ...)[0]
"""

from xla_ops._jax.composition import CudaForm, Kernel
from xla_ops._jax.libraries import (
    backends,
    custom_call_targets,
    resolve_implementation,
)
from xla_ops._jax.primitive import OperatorPrimitive
from xla_ops._jax.sharding import align, reshape_images

__all__ = [
    "CudaForm",
    "Kernel",
    "OperatorPrimitive",
    "align",
    "backends",
    "custom_call_targets",
    "reshape_images",
    "resolve_implementation",
]
