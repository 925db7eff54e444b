"""Scratch memory of deform_conv2d's forward and backward, in a process of its own.

Two figures: what XLA plans (`memory_analysis` of the compiled program, without what the
kernels ask for when they run) and how far the peak of resident memory rises above
arguments and results.
"""

from typing import Any, NamedTuple

import jax

from scripts.benchmark.conv_cases import deform_arguments, deform_candidate
from scripts.benchmark.peak_rss import peak_growth
from scripts.benchmark.timing import (
    open_torch,
    output_cotangent,
    value_and_gradients,
)
from xla_ops import deform_conv2d

_FIXED_SCRATCH = 16 * 2**20


class Scratch(NamedTuple):
    """Bytes beyond arguments and results.

    Attributes:
      xla: Planned by XLA.
      resident: Rise of the peak.
      bound: 16 MiB, the packed kernel, and a weight gradient for each image.
      torchvision: Rise of the peak of its process, or None.
    """

    xla: int
    resident: int
    bound: int
    torchvision: int | None


def measure_scratch(
    images: int, channels: int, height: int, width: int, torch_python: str | None
) -> Scratch:
    """Scratch of one forward and backward of the layer; a first call in its process."""
    # A small layer first: code that is loaded once is no scratch memory.
    _run(*_compile(1, 16, 8, 8))
    compiled, given = _compile(images, channels, height, width)
    growth, results = peak_growth(lambda: _run(compiled, given))
    kernel = results[3].nbytes
    return Scratch(
        xla=compiled.memory_analysis().temp_size_in_bytes,
        resident=growth - sum(array.nbytes for array in results),
        bound=_FIXED_SCRATCH + kernel + images * kernel,
        torchvision=_torch_scratch((images, channels, height, width), torch_python),
    )


def _compile(*shape: int) -> tuple[Any, tuple]:
    arguments = tuple(jax.numpy.asarray(array) for array in deform_arguments(*shape))
    given = (output_cotangent(deform_conv2d, arguments), *arguments)
    # Copies still under way would free their sources while memory is watched.
    jax.block_until_ready(given)
    run = jax.jit(value_and_gradients(deform_conv2d))
    return run.lower(*given).compile(), given


def _run(compiled: Any, given: tuple) -> Any:
    return jax.block_until_ready(compiled(*given))


def _torch_scratch(shape: tuple[int, ...], python: str | None) -> int | None:
    with open_torch(python) as torch:
        if torch is None:
            return None

        def load(*shape):
            candidate = deform_candidate(deform_arguments(*shape))
            assert candidate.peer is not None
            cotangent = output_cotangent(deform_conv2d, candidate.arguments)
            torch.load(candidate.peer, candidate, cotangent)
            return candidate.peer

        torch.time(load(1, 16, 8, 8), "fwd+bwd")
        return torch.scratch(load(*shape))
