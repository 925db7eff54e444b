"""Calls every CUDA kernel of the operators once: small work for compute-sanitizer.

    python -m scripts.gpu_check_calls

`scripts.gpu_check_sanitizer` runs it. Shapes end within tiles of the kernels.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

import xla_ops

# What the last line says.
LAST = "nms"


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Random numbers, the same every time."""
    return np.random.default_rng(0).normal(0, scale, shape).astype(np.float32)


def run(name: str, function, *arguments) -> None:
    """Calls forward and backward."""

    @jax.jit
    def both(*arguments):
        y, pull_back = jax.vjp(function, *arguments)
        return y, pull_back(jnp.ones_like(y))

    jax.block_until_ready(both(*arguments))
    print(f"called {name}", flush=True)


def deform_conv2d(dtype: str, channels: int, features: int, **options) -> None:
    """A 3x3 layer of two images, 9x7."""
    place = (2, 9, 7, 1, 9)
    arguments = (
        jnp.asarray(normal(2, 9, 7, channels), dtype),
        normal(*place, 2, scale=2.0),
        jnp.asarray(normal(3, 3, channels, features, scale=0.05), dtype),
        normal(*place),
    )
    function = functools.partial(xla_ops.deform_conv2d, **options)
    run(f"deform_conv2d {dtype} {channels} {options}", function, *arguments)


def pool(name: str, channels: int, *more: np.ndarray, **options) -> None:
    """Seven RoIs of a map 11x13."""
    rois = np.abs(normal(2, 7, 4, scale=40.0))
    rois[..., 2:] += rois[..., :2]

    def function(features, *more):
        operator = getattr(xla_ops, name)
        return operator(
            features, rois, *more, output_size=(3, 2), spatial_scale=0.25, **options
        )

    run(f"{name} {channels} {options}", function, normal(2, 11, 13, channels), *more)


def main() -> None:
    """Prints a line for each call."""
    deform_conv2d("float32", 12, 20, precision="highest")
    deform_conv2d("float32", 5, 7, precision="highest")
    deform_conv2d("float32", 40, 36, precision="default")
    deform_conv2d("bfloat16", 40, 72)
    deform_conv2d("bfloat16", 33, 37)
    deform_conv2d("float16", 8, 8)
    os.environ["DCN_JAX_CUDA_INPUT_GRADIENT"] = "atomic"
    deform_conv2d("float32", 12, 20, precision="highest")
    deform_conv2d("float32", 5, 7, precision="highest")
    bins = (2, 7, 3, 2)
    pool("roi_align", 36, sampling_ratio=0)
    pool("roi_align", 5, sampling_ratio=2)
    pool("deform_roi_pool", 36, normal(*bins, 2), normal(*bins))
    pool("roi_pool", 36)
    pool("ps_roi_align", 24)
    pool("ps_roi_pool", 24)
    pool("deform_ps_roi_pool", 24, normal(*bins, 1, 2), normal(*bins), group_size=2)
    boxes = np.abs(normal(2, 150, 4, scale=40.0))
    boxes[..., 2:] += boxes[..., :2]
    select = functools.partial(xla_ops.nms, iou_threshold=0.5, max_outputs=50)
    jax.block_until_ready(jax.jit(select)(boxes, normal(2, 150)))
    print(f"called {LAST}")


if __name__ == "__main__":
    main()
