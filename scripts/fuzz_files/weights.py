"""Weight files of `torch.save` and safetensors."""

from pathlib import Path

import numpy as np

from dcn_jax.weights import read_state_dict
from scripts.fuzz_files.bounded import Bounds

SUFFIXES = (".pth",)
REFUSALS = (ValueError,)


def bounds(size: int) -> Bounds:
    """Returns what reading a file of so many bytes may take."""
    return Bounds(seconds=2 + size / 20e6, memory=size * 3 // 2 + 200_000_000)


def write(rng: np.random.Generator, path: Path) -> str:
    """Writes the file of a case."""
    path.write_bytes(rng.bytes(rng.integers(100)))
    return "noise"


def read(path: Path) -> None:
    """Reads it."""
    read_state_dict(path)
