"""The faults of `scripts.aot.mutants`, each planted in a process of its own.

    python -m scripts.aot.planted FAULT compiling|emulation

Imports nothing at its head that imports xla_ops: most faults are there before it.
Prints "seen" or "not seen".
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from scripts.aot.machines import MACHINES

SEEN, QUIET = "seen", "not seen"
_PROGRAM = "deform_conv2d; bfloat16"


class Mutant(NamedTuple):
    """A fault.

    Attributes:
      title: In the table.
      plant: Makes it, before xla_ops is imported where `early`, else after.
      early: Whether it is planted before xla_ops is imported.
      compiling: Whether compiling sees it: "seen" or "not seen".
      emulation: The same of the emulated kernels; "" where it concerns no CPU.
    """

    title: str
    plant: Callable[[], None]
    early: bool
    compiling: str
    emulation: str


def _register_otherwise(change: Callable[[str, str], tuple[str, str]]) -> None:
    import jax

    register = jax.ffi.register_ffi_target

    def changed(name: str, fn: Any, platform: str, **options: Any) -> Any:
        name, platform = change(name, platform)
        return register(name, fn, platform=platform, **options)

    jax.ffi.register_ffi_target = changed


def _wrong_platform(name: str, platform: str) -> tuple[str, str]:
    return name, platform.lower()


def _wrong_name(name: str, platform: str) -> tuple[str, str]:
    return name.replace("conv2d.list", "conv2d.lists"), platform


def _wrong_attribute() -> None:
    import numpy as np

    from xla_ops.deform_conv.cuda import kernels

    class Narrow:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, "int32" if name == "int64" else name)

    setattr(kernels, "np", Narrow())  # noqa: B010


def _wrong_shape() -> None:
    from xla_ops.deform_conv.cuda import kernels

    def one_corner_less(x, first_row, offset, joint, **settings):  # pragma: no cover
        images, rows, columns, groups, taps, _ = offset.shape
        return [((images, groups, 3 * rows * columns * taps), np.uint32)]

    kernels._list_results.__code__ = one_corner_less.__code__


def _no_library() -> None:
    sys.modules["xla_ops._cuda"] = None  # type: ignore[assignment]


MUTANTS = {
    "none": Mutant("none", lambda: None, True, QUIET, QUIET),
    "platform": Mutant(
        "targets registered for `cuda`, not `CUDA`",
        functools.partial(_register_otherwise, _wrong_platform),
        True,
        SEEN,
        "",
    ),
    "name": Mutant(
        "a target registered under another name",
        functools.partial(_register_otherwise, _wrong_name),
        True,
        SEEN,
        SEEN,
    ),
    "attribute": Mutant(
        "attributes of 32 bits, decoded as 64", _wrong_attribute, False, QUIET, SEEN
    ),
    "shape": Mutant("a result with a corner less", _wrong_shape, False, QUIET, SEEN),
    "library": Mutant(
        "no CUDA library (XLA_OPS_CUDA=OFF): the plain form",
        _no_library,
        True,
        SEEN,
        "",
    ),
}


def compiling(key: str) -> str:
    """Compiles with the fault, in this process."""
    mutant, machine = MUTANTS[key], MACHINES["h100"]
    if mutant.early:
        mutant.plant()
    from scripts.aot.judge import problems
    from scripts.aot.programs import mesh_of, programs
    from scripts.aot.worker import compile_program

    if not mutant.early:
        mutant.plant()
    program = next(p for p in programs(machine) if p.title == _PROGRAM)
    result = compile_program(machine, mesh_of(machine), program)
    found = problems(result, machine, None)
    print(*found, file=sys.stderr)
    return SEEN if found else QUIET


def emulation(key: str) -> str:
    """Runs with the fault, in this process, by the emulated kernels."""
    mutant = MUTANTS[key]
    if mutant.early:
        mutant.plant()
    import jax
    import jax.numpy as jnp
    import numpy as np

    import xla_ops

    if not mutant.early:
        mutant.plant()
    rng = np.random.default_rng(0)
    x, kernel, offset = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((1, 4, 5, 4), (3, 3, 4, 4), (1, 4, 5, 1, 9, 2))
    )

    def gradient(implementation: str) -> Any:
        def loss(x: Any) -> Any:
            options: Any = dict(implementation=implementation)
            return xla_ops.deform_conv2d(x, offset, kernel, **options).sum()

        return np.asarray(jax.grad(loss)(x))

    try:
        same = np.allclose(gradient("ffi"), gradient("reference"), atol=1e-4)
    except Exception as error:
        print(error, file=sys.stderr)
        return SEEN
    return QUIET if same else SEEN


if __name__ == "__main__":
    key, how = sys.argv[1:]
    print({"compiling": compiling, "emulation": emulation}[how](key))
