"""What `scripts.benchmark.ops` measures: candidates, cases and tables.

A candidate is a function with its arguments, a case some candidates that take turns,
and a table some cases with the ratios to show. Everything but the arrays is described
before anything runs, so that a fresh process can be given a whole table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

PARTS = ("fwd", "fwd+bwd")
FMA_PEAK = "FMA peak"

Layout = Callable[[Any], np.ndarray]


class Peer(NamedTuple):
    """The same computation in torch.

    Attributes:
      name: Of the peer as a candidate.
      operator: A key of `scripts.benchmark.torch_process.OPERATORS`.
      layouts: For each argument of the candidate, what lays it (or its gradient) out
        as torch wants it.
      output: The same for the result.
      constants: Further arguments, that have no gradient.
      settings: Keyword arguments.
      precision: "float32"; "tf32", which a GPU may round products to; "autocast", a
        bfloat16 first argument in torch's mixed precision; or "autocast tf32".
    """

    name: str
    operator: str
    layouts: tuple[Layout, ...]
    output: Layout
    constants: tuple[np.ndarray, ...] = ()
    settings: dict[str, Any] | None = None
    precision: str = "float32"


class Candidate(NamedTuple):
    """One of those that take turns.

    Attributes:
      function: Of the arguments; gradients are those of all of them.
      arguments: Arrays.
      differentiable: False leaves "fwd+bwd" out.
      slow: True times it in the first round only.
      peer: Takes turns too, where there is a torch.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    differentiable: bool = True
    slow: bool = False
    peer: Peer | None = None


class Case(NamedTuple):
    """A row of a table (two rows where there are gradients).

    Attributes:
      title: Of the row.
      make: Returns the candidates by name. Can be pickled.
      flops: Operations of the forward pass, multiplication and addition counted as two;
        a backward pass has twice as many. Gives the case a candidate FMA_PEAK, whose
        time is that of so many operations at the machine's peak.
      factor: Multiplies the ratios of the row.
    """

    title: str
    make: Callable[[], dict[str, Candidate]]
    flops: float = 0
    factor: float = 1


class Ratio(NamedTuple):
    """A column: time of one candidate over that of another, in each process."""

    heading: str
    over: str
    under: str
    percent: bool = False


class Table(NamedTuple):
    """Cases whose rows share their columns."""

    title: str
    text: str
    candidates: tuple[str, ...]
    ratios: tuple[Ratio, ...]
    cases: tuple[Case, ...]
