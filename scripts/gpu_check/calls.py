"""The stage that calls every target of the library once, forward and backward.

    python -m scripts.gpu_check.calls [check [--emulated]]

With "check", results are compared with those of the plain jnp form, and exit status 1
says that one is wrong, or that a target was not called. Without it, small work for
compute-sanitizer (`scripts.gpu_check.sanitizer`). Shapes end within tiles of kernels.
"""

import functools
import importlib
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

import xla_ops

# What the last line says.
LAST = "deform_conv2d float16 8 {}"


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Random numbers, the same every time."""
    return np.random.default_rng(0).normal(0, scale, shape).astype(np.float32)


class Calls:
    """What was called, and how it went.

    Attributes:
      check: Whether results are compared with the plain form's.
      targets: Our custom calls in the programs that ran.
      last: Name of the last call.
      wrong: Names of the calls whose results are wrong.
    """

    def __init__(self, check: bool):
        self.check = check
        self.targets: set[str] = set()
        self.last = ""
        self.wrong: list[str] = []

    def __call__(self, name: str, function, *arguments, tolerance: float) -> None:
        """Calls forward and backward; `function` takes `implementation` too."""

        def both(implementation, *arguments):
            call = functools.partial(function, implementation=implementation)
            y, pull_back = jax.vjp(call, *arguments)
            return y, pull_back(jnp.ones_like(y))

        self.compare(name, both, *arguments, tolerance=tolerance)

    def compare(self, name: str, function, *arguments, tolerance: float) -> None:
        """Calls `function("ffi", *arguments)`."""
        program = jax.jit(functools.partial(function, "ffi")).lower(*arguments)
        compiled = program.compile()
        text = compiled.as_text() or ""
        self.targets |= set(re.findall(r"dcn_jax\.[\w.]+", text))
        results = jax.block_until_ready(compiled(*arguments))
        error = 0.0
        if self.check:
            plain = jax.jit(functools.partial(function, "reference"))(*arguments)
            pairs = zip(jax.tree.leaves(results), jax.tree.leaves(plain), strict=True)
            error = max(_relative_error(a, b) for a, b in pairs)
        if not error <= tolerance:
            self.wrong.append(name)
        self.last = name
        print(f"called {name}" + (f": {error:.1e}" if self.check else ""), flush=True)


def _relative_error(a: jax.Array, b: jax.Array) -> float:
    """The largest difference, relative to the largest number."""
    x, y = (np.asarray(v, np.float64) for v in (a, b))
    return float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-30))


def deform_conv2d(
    run: Calls,
    dtype: str,
    channels: int,
    features: int,
    size: tuple[int, int] = (9, 7),
    **options,
) -> None:
    """A 3x3 layer of two images."""
    place = (2, *size, 1, 9)
    arguments = (
        jnp.asarray(normal(2, *size, channels), dtype),
        normal(*place, 2, scale=2.0),
        jnp.asarray(normal(3, 3, channels, features, scale=0.05), dtype),
        normal(*place),
    )
    function = functools.partial(xla_ops.deform_conv2d, **options)
    exact = dtype == "float32" and options.get("precision") == "highest"
    tolerance = 1e-4 if exact else 3e-2
    name = f"deform_conv2d {dtype} {channels} {options}"
    run(name, function, *arguments, tolerance=tolerance)


def pool(run: Calls, name: str, channels: int, *more: np.ndarray, **options) -> None:
    """Seven RoIs of a map 11x13."""
    rois = np.abs(normal(2, 7, 4, scale=40.0))
    rois[..., 2:] += rois[..., :2]

    def function(features, *more, implementation):
        operator = getattr(xla_ops, name)
        return operator(
            features,
            rois,
            *more,
            output_size=(3, 2),
            spatial_scale=0.25,
            implementation=implementation,
            **options,
        )

    arguments = (normal(2, 11, 13, channels), *more)
    run(f"{name} {channels} {options}", function, *arguments, tolerance=1e-4)


def call_all(run: Calls) -> None:
    """Every operator, every way through its kernels.

    Half precision comes last: at revision abdd2b5 racecheck broke off in its first
    program.
    """
    deform_conv2d(run, "float32", 12, 20, precision="highest")
    deform_conv2d(run, "float32", 5, 7, precision="highest")
    deform_conv2d(run, "float32", 40, 36, precision="default")
    # So many positions that a block has several taps.
    deform_conv2d(run, "float32", 8, 8, size=(90, 163), precision="highest")
    os.environ["DCN_JAX_CUDA_INPUT_GRADIENT"] = "atomic"
    deform_conv2d(run, "float32", 12, 20, precision="highest")
    deform_conv2d(run, "float32", 5, 7, precision="highest")
    del os.environ["DCN_JAX_CUDA_INPUT_GRADIENT"]
    bins = (2, 7, 3, 2)
    pool(run, "roi_align", 36, sampling_ratio=0)
    pool(run, "roi_align", 5, sampling_ratio=2)
    pool(run, "deform_roi_pool", 36, normal(*bins, 2), normal(*bins))
    pool(run, "roi_pool", 36)
    pool(run, "ps_roi_align", 24)
    pool(run, "ps_roi_pool", 24)
    pool(
        run, "deform_ps_roi_pool", 24, normal(*bins, 1, 2), normal(*bins), group_size=2
    )
    boxes = np.abs(normal(2, 150, 4, scale=40.0))
    boxes[..., 2:] += boxes[..., :2]

    def select(implementation, *arguments):
        return xla_ops.nms(
            *arguments,
            iou_threshold=0.5,
            max_outputs=50,
            implementation=implementation,
        )

    run.compare("nms", select, boxes, normal(2, 150), tolerance=0.0)
    deform_conv2d(run, "bfloat16", 40, 72)
    deform_conv2d(run, "bfloat16", 33, 37)
    deform_conv2d(run, "float16", 8, 8)


def main() -> int:
    """Prints a line for each call; returns the exit status."""
    check, emulated = "check" in sys.argv, "--emulated" in sys.argv
    run = Calls(check)
    call_all(run)
    assert run.last == LAST, run.last
    if not check:
        return 0
    library = importlib.import_module(f"xla_ops._cuda{'_emulated' * emulated}")
    missing = sorted(set(library.registrations()) - run.targets)
    print(f"\n{len(run.targets)} targets were called.")
    for name in run.wrong:
        print(f"\n**Wrong: {name}.**")
    if missing:
        print(f"\n**Not called: {', '.join(missing)}.**")
    return 1 if run.wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main())
