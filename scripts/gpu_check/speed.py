"""The stage that measures speed, beside torchvision and beside what the machine can do.

    python -m scripts.gpu_check.speed [--emulated]

The 13 deformable layers of a ResNet-50 at 800x1216, two images, forward and backward
(the gradients of x, offset, kernel and mask), then RoI pooling and nms. Candidates take
turns; figures are medians. Ours are several layers after one another in one program, so
that what it takes to start a program does not count; torch's are several calls after
one another. torch computes in a process beside, where nothing runs meanwhile.
"""

import concurrent.futures
import contextlib
import functools
import math
import operator
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scripts.benchmark.box_cases import BOX_TABLE
from scripts.benchmark.conv_cases import (
    conv_candidate,
    deform_arguments,
    deform_candidate,
)
from scripts.benchmark.layers import COUNTS, SHAPES
from scripts.benchmark.timing import output_cotangent
from scripts.gpu_check.machine import gpu_names, torch_python
from scripts.gpu_check.roofline import (
    BFLOAT16,
    DATA_SHEETS,
    FLOAT32,
    TF32,
    Precision,
    Rates,
    least_seconds,
    measure_rates,
    seconds_a_call,
)
from scripts.gpu_check.runner import seconds_left
from scripts.gpu_check.torchvision import (
    PARTS,
    Torchvision,
    Turn,
    calls_of_a_turn,
    say,
    say_failed,
    torchvision,
)
from xla_ops import deform_conv2d

_NAMES = ("conv3", "conv4", "conv5")
_TINY_SHAPES = ((16, 5, 6), (16, 4, 5), (32, 3, 4))
_INPUT_GRADIENT = "DCN_JAX_CUDA_INPUT_GRADIENT"
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


class Layers(NamedTuple):
    """Seconds of all shapes by candidate, for a precision and a part."""

    seconds: list[dict[str, float]]

    def total(self, name: str) -> float:
        """Of the 13 layers."""
        return sum(n * s[name] for n, s in zip(COUNTS, self.seconds, strict=True))

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
            for part, count in zip(PARTS, plan.chain, strict=True):
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
    calls = calls_of_a_turn(seconds_a_call(run, 1))
    return lambda: seconds_a_call(run, calls) / count


def take_turns(turns: dict[str, Turn], rounds: int) -> dict[str, float]:
    """Medians, without those whose turns failed."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn())
    return {
        name: statistics.median(values)
        for name, values in times.items()
        if not any(map(math.isnan, values))
    }


def measure_shape(
    precision: Precision, shape: tuple[int, int, int], plan: Plan, peer: Torchvision
) -> dict[str, dict[str, float]]:
    """Seconds of a layer by part and candidate."""
    titles = {"torchvision": precision.peer}
    if precision is BFLOAT16:
        titles["torchvision, TF32 inside"] = "autocast tf32"
    turns = our_turns(shape, precision, plan)
    arguments = deform_arguments(plan.images, *shape)
    turns |= peer.turns(deform_candidate(arguments), titles)
    times = take_turns(turns, plan.rounds)
    return {
        part: {
            name.removesuffix(f" {part}"): seconds
            for name, seconds in times.items()
            if name.endswith(f" {part}")
        }
        for part in PARTS
    }


def measure_layers(
    precision: Precision, plan: Plan, peer: Torchvision, rates: Rates, begin: float
) -> dict[str, Layers]:
    """Says what each shape takes as soon as it is measured.

    Returns:
      All shapes by part, or nothing where time ends before.
    """
    found: dict[str, list[dict[str, float]]] = {part: [] for part in PARTS}
    least: dict[str, list[float]] = {part: [] for part in PARTS}
    say(f"### {precision.title}")
    # Of the first one, nearly all to compile it.
    last = 12.0
    for name, count, shape in zip(_NAMES, COUNTS, plan.shapes, strict=True):
        first = time.monotonic()
        if seconds_left(begin) < 1.2 * last + 5:
            say(f"Skipped: {precision.title} from {name} on, for want of time.")
            return {}
        for part, seconds in measure_shape(precision, shape, plan, peer).items():
            found[part].append(seconds)
            backward = part == "backward"
            floor = least_seconds(rates, plan.images, shape, precision, backward)
            least[part].append(floor)
        rows = {f"{name} (x{count}), {p}": (found[p][-1], least[p][-1]) for p in PARTS}
        say(layer_table(rows))
        last = time.monotonic() - first
    layers = {part: Layers(seconds) for part, seconds in found.items()}
    rows = {}
    for part in PARTS:
        names = filter(layers[part].has, layers[part].seconds[0])
        floor = sum(n * s for n, s in zip(COUNTS, least[part], strict=True))
        totals = {name: layers[part].total(name) for name in names}
        rows[f"**13 layers, {part}**"] = (totals, floor)
    say(layer_table(rows))
    return layers


def layer_table(rows: dict[str, tuple[dict[str, float], float]]) -> str:
    """Markdown of seconds by candidate, and the least time."""
    names = list(dict.fromkeys(name for s, _ in reversed(rows.values()) for name in s))
    with_torch = all("torchvision" in seconds for seconds, _ in rows.values())
    heads = ["microseconds", *names, "least time", "share of it"]
    heads += ["torchvision / ours"] * with_torch
    lines = []
    for title, (seconds, floor) in rows.items():
        line = [title, *(_micro(seconds.get(name)) for name in names)]
        line += [_micro(floor), f"{floor / seconds['ours']:.0%}"]
        if with_torch:
            line.append(f"{seconds['torchvision'] / seconds['ours']:.2f}")
        lines.append(line)
    return _table(heads, lines)


def bars(
    title: str, found: dict[str, Layers], plan: Plan, rates: dict[str, Rates]
) -> str:
    """What the project asks of a precision, beside what was measured.

    Args:
      title: Of the precision.
      found: Its layers by part; empty where they were not measured.
      plan: That they were measured by.
      rates: Those that shares of the least time refer to, by what they are.
    """
    rows = []

    def add(what, bar, value, form, good):
        measured = "not measured" if value is None else f"{value:{form}}"
        met = "" if value is None else ("met" if good(value, bar) else "**not met**")
        rows.append([what, f"{bar:{form}}", measured, met])

    for (precision, part), bar in _BARS.items():
        if precision != title:
            continue
        value = None
        if found and found[part].has("torchvision"):
            value = found[part].total("torchvision") / found[part].total("ours")
        add(f"{title} {part}: torchvision / ours", bar, value, ".2f", operator.ge)
    for how, those in rates.items() if title == "bfloat16" else ():
        value = None
        if found:
            least = sum(
                count * least_seconds(those, plan.images, shape, BFLOAT16, False)
                for count, shape in zip(COUNTS, plan.shapes, strict=True)
            )
            value = least / found["forward"].total("ours")
        what = f"bfloat16 forward: share of the least time, by {how}"
        add(what, _ROOFLINE_BAR, value, ".0%", operator.ge)
    value = None
    if found:
        value = found["backward"].total("ours") / found["backward"].total("atomic")
    what = f"{title} backward: sorted gradient of x / atomic, at most"
    add(what, _ATOMIC_BAR, value, ".2f", operator.le)
    return _table(["bar", "asked for", "measured", ""], rows)


def box_table(peer: Torchvision, rounds: int) -> str:
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
        turns |= peer.turns(candidate, {"torchvision": "float32"})
        times = take_turns(turns, rounds)
        for part in PARTS:
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


def main() -> int:
    """Returns the exit status."""
    begin = time.monotonic()
    emulated = "--emulated" in sys.argv
    plan = DRY if emulated else Plan()
    good = True
    # torch is imported there while the rates are measured here.
    with torchvision(torch_python(), "cpu" if emulated else "cuda") as peer:
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
            "computes in float32 (once with TF32 allowed inside); x is bfloat16. "
            f"`XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}`."
        )
        peer.check(plan.shapes[-1])
        shares = {"measured rates": rates}
        for name in gpu_names()[:1]:
            if name in DATA_SHEETS:
                shares["data sheet"] = DATA_SHEETS[name]
        # What the bars ask for comes first.
        for precision in (BFLOAT16, TF32, FLOAT32):
            layers = {}
            try:
                layers = measure_layers(precision, plan, peer, rates, begin)
            except Exception as error:
                say_failed(f"layers in {precision.title}", error)
                good = False
            say(bars(precision.title, layers, plan, shares))
        if emulated:
            say("Skipped: RoI pooling and nms, as this is a dry run.")
        elif seconds_left(begin) < 10:
            say("Skipped: RoI pooling and nms, for want of time.")
        else:
            text = "float32; 512 RoIs of 7x7 bins on a map 50x76, 6,000 boxes."
            say(f"### RoI pooling and nms\n\n{text}\n\n{box_table(peer, plan.rounds)}")
    return 0 if good and not peer.failed else 1


if __name__ == "__main__":
    sys.exit(main())
