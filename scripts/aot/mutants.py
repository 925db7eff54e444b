"""Which faults of the path to a GPU does compiling without one see?

    python -m scripts.aot.mutants [--write]

Plants one fault at a time in a process of its own, compiles the gradient of
deform_conv2d for an H100, and runs it on the CPU by the emulated kernels. What neither
sees, only a GPU can. Prints the table of docs/aot.md, and with --write puts it there;
exit status 1: a verdict is not the expected one.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from scripts.aot.__main__ import environment
from scripts.aot.document import DOCUMENT, markers
from scripts.aot.library import missing_code
from scripts.aot.machines import MACHINES
from scripts.benchmark_markdown import replace_section

_SEEN, _QUIET = "seen", "not seen"
_PROGRAM = "deform_conv2d; bfloat16"


class Mutant(NamedTuple):
    """A fault.

    Attributes:
      title: In the table.
      plant: Makes it, before xla_ops is imported where `early`, else after.
      early: See there.
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

    from xla_ops.cuda import deform_conv

    class Narrow:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, "int32" if name == "int64" else name)

    setattr(deform_conv, "np", Narrow())  # noqa: B010


def _wrong_shape() -> None:
    from xla_ops.cuda import deform_conv

    def one_corner_less(x, first_row, offset, joint, **settings):  # pragma: no cover
        images, rows, columns, groups, taps, _ = offset.shape
        return [((images, groups, 3 * rows * columns * taps), np.uint32)]

    deform_conv._list_results.__code__ = one_corner_less.__code__


def _no_library() -> None:
    sys.modules["xla_ops._cuda"] = None  # type: ignore[assignment]


MUTANTS = {
    "none": Mutant("none", lambda: None, True, _QUIET, _QUIET),
    "platform": Mutant(
        "targets registered for `cuda`, not `CUDA`",
        functools.partial(_register_otherwise, _wrong_platform),
        True,
        _SEEN,
        "",
    ),
    "name": Mutant(
        "a target registered under another name",
        functools.partial(_register_otherwise, _wrong_name),
        True,
        _SEEN,
        _SEEN,
    ),
    "attribute": Mutant(
        "attributes of 32 bits, decoded as 64", _wrong_attribute, False, _QUIET, _SEEN
    ),
    "shape": Mutant("a result with a corner less", _wrong_shape, False, _QUIET, _SEEN),
    "library": Mutant(
        "no CUDA library (XLA_OPS_CUDA=OFF): the plain form",
        _no_library,
        True,
        _SEEN,
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
    return _SEEN if found else _QUIET


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
        return _SEEN
    return _QUIET if same else _SEEN


def _ask(key: str, how: str) -> str:
    added = environment(MACHINES["h100"])
    if how == "emulation":
        added |= {"JAX_PLATFORMS": "cpu", "XLA_OPS_EMULATE_CUDA": "1", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.aot.mutants", key, how],
        env=os.environ | added,
        capture_output=True,
        text=True,
    )
    verdict = done.stdout.strip()
    if done.returncode or verdict not in (_SEEN, _QUIET):
        return f"failed: {done.stderr[-300:]}"
    return verdict


def main() -> int:
    """Returns the exit status."""
    if len(sys.argv) == 3:
        key, how = sys.argv[1:]
        print({"compiling": compiling, "emulation": emulation}[how](key))
        return 0
    good, rows = True, []
    for key, mutant in MUTANTS.items():
        found = _ask(key, "compiling")
        run = _ask(key, "emulation") if mutant.emulation else ""
        good &= (found, run) == (mutant.compiling, mutant.emulation)
        left = "yes" if key != "none" and _SEEN not in (found, run) else "no"
        rows.append([mutant.title, found, run, left])
        print(*rows[-1], sep=" | ", flush=True)
    # A library without code for a device: XLA does not look into it, `library` does.
    seen = _SEEN if missing_code((7, 5)) else _QUIET
    good &= seen == _SEEN
    rows.append(["a library without code for the device", seen, "", "no"])
    head = ["fault", "compiling", "emulated kernels", "left to a GPU"]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(f"\n{table}")
    if "--write" in sys.argv:
        replace_section(DOCUMENT, table, *markers("mutants"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
