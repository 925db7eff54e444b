"""The stage that measures speed, beside torchvision and beside what the machine can do.

    python -m scripts.gpu_check_speed [--emulated]

The 13 deformable layers of a ResNet-50 at 800x1216, two images, forward and backward
(the gradients of x, offset, kernel and mask), then RoI pooling and nms. Candidates take
turns; figures are medians. Ours are several layers after one another in one program, so
that what it takes to start a program does not count; torch's are several calls after
one another. torch computes in a process beside, where nothing runs meanwhile.
"""

import concurrent.futures
import contextlib
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scripts.benchmark_box_cases import BOX_TABLE
from scripts.benchmark_case import Candidate
from scripts.benchmark_conv_cases import (
    SHAPES,
    conv_candidate,
    deform_arguments,
    deform_candidate,
)
from scripts.benchmark_timing import (
    output_cotangent,
    thread_count,
    value_and_gradients,
)
from scripts.benchmark_torch import TorchWorker
from scripts.gpu_check_machine import gpu_names, torch_python
from scripts.gpu_check_roofline import (
    BFLOAT16,
    DATA_SHEET,
    FLOAT32,
    TF32,
    Precision,
    Rates,
    least_seconds,
    measure_rates,
    operations,
    seconds_a_call,
)
from scripts.gpu_check_runner import seconds_left
from xla_ops import deform_conv2d

# How many layers of each of SHAPES a ResNet-50 has: conv3, conv4, conv5.
_LAYERS = (4, 6, 3)
_NAMES = ("conv3", "conv4", "conv5")
_TINY_SHAPES = ((16, 5, 6), (16, 4, 5), (32, 3, 4))
_INPUT_GRADIENT = "DCN_JAX_CUDA_INPUT_GRADIENT"
_PARTS = ("forward", "backward")
_TORCH_PARTS = {"forward": "fwd", "backward": "bwd"}
# Time that the calls of one turn take in sum.
_TURN = 0.02
# (precision, part) -> how many times faster than torchvision it has to be.
_BARS = {
    ("TF32", "forward"): 2.0,
    ("TF32", "backward"): 2.0,
    ("bfloat16", "forward"): 8.0,
    ("bfloat16", "backward"): 4.0,
}
_ROOFLINE_BAR = 0.4
_ATOMIC_BAR = 1.5


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
      shapes: Channels, height and width of the layers.
      images: In a batch.
      chain: Layers in one program, by part.
      rounds: In each of them every candidate has its turn.
      copied: MiB of the array that is copied.
      side: Of the matrices that are multiplied.
    """

    shapes: Sequence[tuple[int, int, int]] = SHAPES
    images: int = 2
    chain: tuple[int, int] = (16, 4)
    rounds: int = 7
    copied: int = 512
    side: int = 8192


DRY = Plan(_TINY_SHAPES, chain=(2, 2), rounds=1, copied=1, side=128)

Turn = Callable[[], float]


class Layers(NamedTuple):
    """Seconds of all shapes by candidate, for a precision and a part."""

    seconds: list[dict[str, float]]

    def total(self, name: str) -> float:
        """Of the 13 layers."""
        return sum(n * s[name] for n, s in zip(_LAYERS, self.seconds, strict=True))

    def has(self, name: str) -> bool:
        """Whether the candidate was measured in all shapes."""
        return all(name in seconds for seconds in self.seconds)


@contextlib.contextmanager
def input_gradient(form: str) -> Iterator[None]:
    """Programs that are traced here sum the gradient of x in that form."""
    before = os.environ.get(_INPUT_GRADIENT)
    os.environ[_INPUT_GRADIENT] = form
    try:
        yield
    finally:
        del os.environ[_INPUT_GRADIENT]
        if before is not None:
            os.environ[_INPUT_GRADIENT] = before


def forward_chain(function: Callable, x: Any, offsets: Sequence, *rest: Any) -> Any:
    """Layers after one another; each has offsets of its own, so that all are run."""
    for offset in offsets:
        x = function(x, offset, *rest)
    return x


def backward_chain(
    function: Callable, gradient: Any, x: Any, offsets: Sequence, *rest: Any
) -> Any:
    """The same of their gradients; that of x is the next one's."""
    others = []
    for offset in offsets:
        _, pull_back = jax.vjp(function, x, offset, *rest)
        gradient, *other = pull_back(gradient)
        others.append(other)
    return gradient, others


def lowered_programs(
    shape: tuple[int, int, int], precision: Precision, plan: Plan
) -> dict[str, tuple[Any, tuple, int]]:
    """Of one shape: candidate and part -> program, its arguments, layers in it."""
    x, offset, kernel, mask = deform_arguments(plan.images, *shape)
    x, kernel = (jnp.asarray(a, precision.dtype) for a in (x, kernel))
    rng = np.random.default_rng(2)
    offsets = [
        jnp.asarray(rng.permutation(offset.ravel()).reshape(offset.shape))
        for _ in range(max(plan.chain))
    ]
    gradient = jnp.asarray(rng.standard_normal(x.shape), precision.dtype)
    layer = functools.partial(deform_conv2d, precision=precision.products)

    def conv(x, offset, kernel, mask):
        del offset, mask
        plain = conv_candidate(x, kernel).function
        return plain(x, kernel, precision=precision.products)

    found = {}
    for name, function, form in (
        ("ours", layer, "sorted"),
        ("atomic", layer, "atomic"),
        ("lax.conv", conv, "sorted"),
    ):
        with input_gradient(form):
            for part, count in zip(_PARTS, plan.chain, strict=True):
                if part == "forward" and name == "atomic":
                    continue
                given = (x, offsets[:count], kernel, jnp.asarray(mask))
                chain = functools.partial(forward_chain, function)
                if part == "backward":
                    given = (gradient, *given)
                    chain = functools.partial(backward_chain, function)
                found[f"{name} {part}"] = (jax.jit(chain).lower(*given), given, count)
    return found


def our_turns(
    shape: tuple[int, int, int], precision: Precision, plan: Plan
) -> dict[str, Turn]:
    """Compiled and warmed up; a turn returns seconds of a layer."""
    lowered = lowered_programs(shape, precision, plan)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        compiled = list(
            pool.map(lambda program: program[0].compile(), lowered.values())
        )
    turns = {}
    for (name, (_, given, count)), program in zip(
        lowered.items(), compiled, strict=True
    ):
        turns[name] = _turn(functools.partial(program, *given), count)
    return turns


def _turn(run: Callable[[], Any], count: int) -> Turn:
    jax.block_until_ready(run())
    calls = _calls(seconds_a_call(run, 1))
    return lambda: seconds_a_call(run, calls) / count


def _calls(seconds: float) -> int:
    return max(1, min(50, round(_TURN / seconds)))


def torch_turns(
    torch: TorchWorker, candidate: Candidate, titles: dict[str, str]
) -> dict[str, Turn]:
    """Of torchvision, in precisions by title of the candidate; warmed up."""
    assert candidate.peer is not None
    cotangent = None
    if candidate.differentiable:
        cotangent = output_cotangent(candidate.function, candidate.arguments)
    turns = {}
    for title, precision in titles.items():
        peer = candidate.peer._replace(name=title, precision=precision)
        torch.load(peer, candidate, cotangent)
        for part in _PARTS if candidate.differentiable else _PARTS[:1]:
            name = _TORCH_PARTS[part]
            try:
                torch.time(peer, name)
            except RuntimeError as error:
                say(f"Skipped: {precision} {part}. {str(error).splitlines()[0]}")
                break
            calls = _calls(torch.time(peer, name))
            turns[f"{title} {part}"] = functools.partial(torch.time, peer, name, calls)
    return turns


def take_turns(turns: dict[str, Turn], rounds: int) -> dict[str, float]:
    """Medians."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn())
    return {name: statistics.median(values) for name, values in times.items()}


def measure_layers(
    precision: Precision, plan: Plan, torch: TorchWorker | None
) -> dict[str, Layers]:
    """Seconds of the layers by part."""
    titles = {"torchvision": precision.peer}
    if precision is BFLOAT16:
        titles["torchvision, TF32 inside"] = "autocast tf32"
    found: dict[str, list[dict[str, float]]] = {part: [] for part in _PARTS}
    for shape in plan.shapes:
        turns = our_turns(shape, precision, plan)
        if torch is not None:
            arguments = deform_arguments(plan.images, *shape)
            theirs = torch_turns(torch, deform_candidate(arguments), titles)
            titles = {t: p for t, p in titles.items() if f"{t} forward" in theirs}
            turns |= theirs
        times = take_turns(turns, plan.rounds)
        for part in _PARTS:
            found[part].append(
                {
                    name.removesuffix(f" {part}"): seconds
                    for name, seconds in times.items()
                    if name.endswith(f" {part}")
                }
            )
    return {part: Layers(seconds) for part, seconds in found.items()}


def layer_table(
    precision: Precision, found: dict[str, Layers], plan: Plan, rates: Rates
) -> str:
    """Markdown."""
    names = [
        name
        for name in found["backward"].seconds[0]
        if any(layers.has(name) for layers in found.values())
    ]
    with_torch = all(layers.has("torchvision") for layers in found.values())
    heads = ["microseconds", *names, "least time", "share of it"]
    heads += ["torchvision / ours"] * with_torch
    rows = []
    for part, layers in found.items():
        least = [
            least_seconds(rates, plan.images, shape, precision, part == "backward")
            for shape in plan.shapes
        ]
        lines = [
            (f"{name} (x{count}), {part}", seconds, floor)
            for name, count, seconds, floor in zip(
                _NAMES, _LAYERS, layers.seconds, least, strict=True
            )
        ]
        totals = {name: layers.total(name) for name in names if layers.has(name)}
        whole = sum(n * floor for n, floor in zip(_LAYERS, least, strict=True))
        lines.append((f"**13 layers, {part}**", totals, whole))
        for title, seconds, floor in lines:
            row = [title, *(_micro(seconds.get(name)) for name in names)]
            row += [_micro(floor), f"{floor / seconds['ours']:.0%}"]
            if with_torch:
                row.append(f"{seconds['torchvision'] / seconds['ours']:.2f}")
            rows.append(row)
    return _table(heads, rows)


def bars(found: dict[str, dict[str, Layers]], plan: Plan, rates: Rates) -> str:
    """What the project asks for, beside what was measured."""
    rows = []

    def add(what, bar, value, good):
        measured = "not measured" if value is None else value
        met = "" if value is None else ("met" if good else "**not met**")
        rows.append([what, bar, measured, met])

    for (title, part), bar in _BARS.items():
        value = None
        layers = found.get(title, {}).get(part)
        if layers is not None and layers.has("torchvision"):
            value = layers.total("torchvision") / layers.total("ours")
        shown = None if value is None else f"{value:.2f}"
        add(
            f"{title} {part}: torchvision / ours",
            f"{bar:g}",
            shown,
            (value or 0) >= bar,
        )
    layers = found.get("bfloat16", {}).get("forward")
    by_rates = by_sheet = None
    if layers is not None:
        least = work = 0.0
        for count, shape in zip(_LAYERS, plan.shapes, strict=True):
            least += count * least_seconds(rates, plan.images, shape, BFLOAT16, False)
            work += count * operations(plan.images, shape, False)
        by_rates = least / layers.total("ours")
        if any(name in gpu for gpu in gpu_names() for name in ("H100", "H200")):
            by_sheet = work / (DATA_SHEET["bfloat16"] * 1e12) / layers.total("ours")
    for how, share in (("measured rates", by_rates), ("data sheet", by_sheet)):
        shown = None if share is None else f"{share:.0%}"
        what = f"bfloat16 forward: share of the least time, by {how}"
        add(what, f"{_ROOFLINE_BAR:.0%}", shown, (share or 0) >= _ROOFLINE_BAR)
    for title in ("bfloat16", "TF32", "float32"):
        layers = found.get(title, {}).get("backward")
        value = None
        if layers is not None:
            value = layers.total("ours") / layers.total("atomic")
        shown = None if value is None else f"{value:.2f}"
        what = f"{title} backward: sorted gradient of x / atomic, at most"
        add(what, f"{_ATOMIC_BAR:g}", shown, (value or 0) <= _ATOMIC_BAR)
    return _table(["bar", "asked for", "measured", ""], rows)


def box_table(torch: TorchWorker | None, rounds: int) -> str:
    """512 RoIs by roi_align, 6,000 boxes by nms, in float32."""
    rows = []
    for case in BOX_TABLE.cases:
        if case.title not in ("roi_align 256ch", "nms, one class"):
            continue
        candidate = case.make()["kernel"]
        arguments = tuple(map(jnp.asarray, candidate.arguments))
        function = candidate.function
        turns = {
            "ours forward": _turn(functools.partial(jax.jit(function), *arguments), 1)
        }
        if candidate.differentiable:
            cotangent = output_cotangent(function, arguments)

            @jax.jit
            def backward(cotangent, *arguments, function=function):
                return jax.vjp(function, *arguments)[1](cotangent)

            run = functools.partial(backward, cotangent, *arguments)
            turns["ours backward"] = _turn(run, 1)
        if torch is not None:
            turns |= torch_turns(torch, candidate, {"torchvision": "float32"})
        times = take_turns(turns, rounds)
        for part in _PARTS:
            if f"ours {part}" not in times:
                continue
            ours, theirs = times[f"ours {part}"], times.get(f"torchvision {part}")
            ratio = "" if theirs is None else f"{theirs / ours:.2f}"
            rows.append([f"{case.title}, {part}", _micro(ours), _micro(theirs), ratio])
    return _table(["microseconds", "ours", "torchvision", "torchvision / ours"], rows)


def _micro(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check_values(shape: tuple[int, int, int], torch: TorchWorker) -> None:
    """Asserts that torchvision computes what we do, in float32."""
    candidate = deform_candidate(deform_arguments(1, *shape))
    assert candidate.peer is not None
    function = functools.partial(candidate.function, precision="highest")
    cotangent = output_cotangent(function, candidate.arguments)
    results = jax.jit(value_and_gradients(function))(cotangent, *candidate.arguments)
    torch.load(candidate.peer, candidate, cotangent)
    torch.check(candidate.peer, results)


def say(text: str) -> None:
    """A paragraph of the report, at once."""
    print(text, end="\n\n", flush=True)


def main() -> int:
    """Returns the exit status."""
    begin = time.monotonic()
    emulated = "--emulated" in sys.argv
    plan = DRY if emulated else Plan()
    python = torch_python()
    with contextlib.ExitStack() as stack:
        torch = None
        if python is None:
            say("Skipped: torchvision, as there is no torch here (TORCH_PYTHON).")
        else:
            device = "cpu" if emulated else "cuda"
            worker = TorchWorker(python, thread_count(), device)
            torch = stack.enter_context(worker)
            versions = torch.versions()
            say(", ".join(f"{name} {version}" for name, version in versions.items()))
            check_values(plan.shapes[-1], torch)
            say(f"Of a {plan.shapes[-1]} layer it computes in float32 what we do.")
        rates = measure_rates(plan.copied, plan.side, 1 if emulated else 10)
        say(
            f"Measured rates: copies {rates.copy / 1e12:.2f} TB/s, products "
            + ", ".join(
                f"{t} {r / 1e12:.1f} TFLOP/s" for t, r in rates.products.items()
            )
            + ". The least time is the longer one of a layer's products and of its "
            "arrays, each read or written once, at these rates. "
            f"{plan.images} images; ours sums the gradient of x by sorting, atomic by "
            "atomic additions. torchvision in bfloat16 is under autocast, where it "
            "computes in float32 (once with TF32 allowed inside); x is bfloat16."
        )
        found: dict[str, dict[str, Layers]] = {}
        last = 0.0
        for precision in (BFLOAT16, TF32, FLOAT32):
            first = time.monotonic()
            if seconds_left(begin) < 1.2 * last + 10:
                say(f"Skipped: layers in {precision.title}, for want of time.")
                continue
            found[precision.title] = measure_layers(precision, plan, torch)
            table = layer_table(precision, found[precision.title], plan, rates)
            say(f"### {precision.title}\n\n{table}")
            last = time.monotonic() - first
        say(f"### Bars\n\n{bars(found, plan, rates)}")
        if emulated:
            say("Skipped: RoI pooling and nms, as this is a dry run.")
        elif seconds_left(begin) < 10:
            say("Skipped: RoI pooling and nms, for want of time.")
        else:
            text = "float32; 512 RoIs of 7x7 bins on a map 50x76, 6,000 boxes."
            say(f"### RoI pooling and nms\n\n{text}\n\n{box_table(torch, plan.rounds)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
