"""torchvision beside ours in the stage that measures speed, as long as it works.

Whatever goes wrong with it is said in the report, once, and ours goes on without it.
"""

import contextlib
import functools
import math
import traceback
from collections.abc import Callable, Iterator, Sequence

import jax

from scripts.benchmark.case import Candidate
from scripts.benchmark.conv_cases import deform_arguments, deform_candidate
from scripts.benchmark.timing import (
    output_cotangent,
    thread_count,
    value_and_gradients,
)
from scripts.benchmark.torch_worker import TorchWorker

Turn = Callable[[], float]

PARTS = ("forward", "backward")
_TORCH_PARTS = {"forward": "fwd", "backward": "bwd"}
# Time that the calls of one turn take in sum.
_TURN = 0.02


class Torchvision:
    """The process that computes with torch, or its absence.

    Attributes:
      worker: None from the first failure on, and where there is no torch.
      failed: Whether something went wrong.
    """

    def __init__(self, worker: TorchWorker | None):
        self.worker = worker
        self.failed = False

    def check(self, shape: Sequence[int]) -> None:
        """Says its versions, and whether it computes what we do, in float32."""
        with self._guarded():
            if self.worker is None:
                return
            versions = self.worker.versions()
            say(", ".join(f"{name} {version}" for name, version in versions.items()))
            check_values(shape, self.worker)
            say(f"Of a {tuple(shape)} layer it computes in float32 what we do.")

    def turns(self, candidate: Candidate, titles: dict[str, str]) -> dict[str, Turn]:
        """In precisions by title, warmed up; a turn returns seconds, or NaN."""
        with self._guarded():
            if self.worker is not None:
                return self._turns(self.worker, candidate, titles)
        return {}

    def _turns(
        self, worker: TorchWorker, candidate: Candidate, titles: dict[str, str]
    ) -> dict[str, Turn]:
        assert candidate.peer is not None
        cotangent = None
        if candidate.differentiable:
            cotangent = output_cotangent(candidate.function, candidate.arguments)
        turns = {}
        for title, precision in titles.items():
            peer = candidate.peer._replace(name=title, precision=precision)
            worker.load(peer, candidate, cotangent)
            for part in PARTS if candidate.differentiable else PARTS[:1]:
                name = _TORCH_PARTS[part]
                try:
                    worker.time(peer, name)
                except RuntimeError as error:
                    say(f"Skipped: {precision} {part}. {first_line(error)}")
                    break
                calls = calls_of_a_turn(worker.time(peer, name))
                turns[f"{title} {part}"] = functools.partial(
                    self._seconds, peer, name, calls
                )
        return turns

    def _seconds(self, *arguments) -> float:
        with self._guarded():
            if self.worker is not None:
                return self.worker.time(*arguments)
        return math.nan

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            say_failed("torchvision, which is left out from here on", error)
            self.worker, self.failed = None, True


def check_values(shape: Sequence[int], torch: TorchWorker) -> None:
    """Asserts that torchvision computes what we do, in float32."""
    candidate = deform_candidate(deform_arguments(1, *shape))
    assert candidate.peer is not None
    function = functools.partial(candidate.function, precision="highest")
    cotangent = output_cotangent(function, candidate.arguments)
    results = jax.jit(value_and_gradients(function))(cotangent, *candidate.arguments)
    torch.load(candidate.peer, candidate, cotangent)
    torch.check(candidate.peer, results)


@contextlib.contextmanager
def torchvision(python: str | None, device: str) -> Iterator[Torchvision]:
    """Starts the process, with that interpreter, and ends it."""
    with contextlib.ExitStack() as stack:
        worker, failure = None, None
        if python is None:
            say("Skipped: torchvision, as there is no torch here (TORCH_PYTHON).")
        else:
            try:
                worker = TorchWorker(python, thread_count(), device)
                stack.enter_context(worker)
            except OSError as error:
                failure = error
        peer = Torchvision(worker)
        if failure is not None:
            say_failed("torchvision, which does not start", failure)
            peer.failed = True
        yield peer


def calls_of_a_turn(seconds: float) -> int:
    """How many calls of so many seconds are timed together."""
    return max(1, min(50, round(_TURN / seconds)))


def say(text: str) -> None:
    """A paragraph of the report, at once."""
    print(text, end="\n\n", flush=True)


def say_failed(what: str, error: Exception) -> None:
    """The same of an exception; where it came from is shown with standard error."""
    traceback.print_exception(error)
    say(f"Failed: {what}. {type(error).__name__}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Of its message."""
    return next(filter(None, map(str.strip, str(error).splitlines())), "")
