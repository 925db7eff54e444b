"""Times candidates that take turns, within one process."""

import contextlib
import functools
import importlib
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scripts.benchmark.case import FMA_PEAK, Candidate, Case
from scripts.benchmark.fma import fma_flops
from scripts.benchmark.torch_worker import TorchWorker, Worker


class Settings(NamedTuple):
    """How to measure.

    Attributes:
      rounds: In each of them every candidate has its turn.
      torch_python: Interpreter that has torch, or None.
      fma_peak: Program of `scripts.benchmark.fma`, or None.
    """

    rounds: int
    torch_python: str | None = None
    fma_peak: Path | None = None


def thread_count() -> int:
    """Processors that this process may use: XLA starts as many threads."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """Its name, and the instruction set of our kernels on it."""
    return f"{_cpuinfo('model name') or platform.machine()} ({_kernels()} kernels)"


def family() -> str:
    """Maker of the processor and instruction set of our kernels, as "AMD avx2"."""
    maker = _cpuinfo("vendor_id") or platform.machine()
    names = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}
    return f"{names.get(maker, maker)} {_kernels()}"


def _cpuinfo(field: str) -> str:
    """What Linux says of the processor; "" where there is no Linux."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(rf"^{field}\s*: (.+)$", text, re.M)
    return found[1] if found else ""


def _kernels() -> str:
    return importlib.import_module("xla_ops._cpu").instruction_set()


def library_versions(torch: Worker | None) -> dict[str, str]:
    """Of Python and what is measured; of torch where there is one."""
    versions = {
        "Python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.import_module("jaxlib").__version__,
    }
    return versions if torch is None else versions | torch.versions()


def open_torch(python: str | None):
    """A worker to be used in a `with` statement; None where there is no torch."""
    if python is None:
        return contextlib.nullcontext()
    return TorchWorker(python, thread_count())


def measure(cases: Sequence[Case], settings: Settings) -> list[dict[str, float]]:
    """Median milliseconds of each case by "candidate part", such as "kernel fwd"."""
    with open_torch(settings.torch_python) as torch:
        return [_measure_case(case, settings, torch) for case in cases]


def output_cotangent(function: Callable, arguments: Sequence[Any]) -> jax.Array:
    """Random numbers in the shape of the function's result."""
    shape = jax.eval_shape(function, *arguments)
    rng = np.random.default_rng(1)
    return jax.numpy.asarray(rng.normal(size=shape.shape), shape.dtype)


def value_and_gradients(function: Callable) -> Callable:
    """Of the cotangent and the arguments: the result, then all gradients."""

    def run(cotangent, *arguments):
        y, pullback = jax.vjp(function, *arguments)
        return y, *pullback(cotangent)

    return run


def _measure_case(
    case: Case, settings: Settings, torch: TorchWorker | None
) -> dict[str, float]:
    turns: dict[str, Callable[[], float]] = {}
    slow = set()
    for name, candidate in case.make().items():
        added = make_turns(name, candidate, torch)
        turns |= added
        slow |= {
            turn for turn in added if candidate.slow and turn.startswith(f"{name} ")
        }
    program = settings.fma_peak
    if case.flops and program is not None:

        def at_peak(flops):
            return flops / fma_flops(program, thread_count())

        for part, flops in (("fwd", case.flops), ("fwd+bwd", 3 * case.flops)):
            turns[f"{FMA_PEAK} {part}"] = functools.partial(at_peak, flops)

    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(settings.rounds):
        for name, turn in turns.items():
            if number == 0 or name not in slow:
                times[name].append(turn())
    return {name: statistics.median(t) * 1e3 for name, t in times.items()}


def make_turns(
    name: str, candidate: Candidate, torch: TorchWorker | None
) -> dict[str, Callable[[], float]]:
    """Seconds of a call of the candidate and its peer, by "name part".

    Both are warmed up, after a check that they do the same.
    """
    function = candidate.function
    arguments = tuple(jax.numpy.asarray(array) for array in candidate.arguments)
    forward = functools.partial(jax.jit(function), *arguments)
    calls, cotangent = {"fwd": forward}, None
    if candidate.differentiable:
        cotangent = output_cotangent(function, arguments)
        both = jax.jit(value_and_gradients(function))
        calls["fwd+bwd"] = functools.partial(both, cotangent, *arguments)

    def seconds(call):
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    turns = {
        f"{name} {part}": functools.partial(seconds, call)
        for part, call in calls.items()
    }
    results = [jax.block_until_ready(call()) for call in calls.values()]
    if torch is not None and (peer := candidate.peer) is not None:
        torch.load(peer, candidate, cotangent)
        torch.check(peer, results[-1] if candidate.differentiable else results)
        theirs = {
            f"{peer.name} {part}": functools.partial(torch.time, peer, part)
            for part in calls
        }
        for turn in theirs.values():
            turn()
        turns |= theirs
    return turns
