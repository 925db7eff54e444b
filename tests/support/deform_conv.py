"""Inputs of `deform_conv2d` for the tests.

Letters: N batch, H W input map, P Q output map, C in channels, K out channels,
R S kernel taps, G offset groups.
"""

import jax
import numpy as np

from tests.support.backend import CUDA
from tests.support.golden import GOLDEN

NAMES = ("x", "offset", "kernel", "mask", "bias")

# Custom calls of the two passes.
FORWARD_CALLS = ["columns"] if CUDA else ["fwd"]
BACKWARD_CALLS = ["gather", "list", "visit"] if CUDA else ["bwd"]


def random_case(
    *,
    batch=2,
    size=(6, 7),
    channels=4,
    features=6,
    kernel_size=(3, 3),
    output=None,
    groups=1,
    offset_groups=1,
    modulated=True,
    bias=False,
    dtype=np.float32,
    scale=1.5,
    seed=0,
):
    """Positional arguments of deform_conv2d, with None for what is not there."""
    rng = np.random.default_rng(seed)
    places = (batch, *(output or size), offset_groups, kernel_size[0] * kernel_size[1])
    offset = scale * rng.normal(size=(*places, 2))
    # Away from integers, where the derivative jumps.
    fraction = offset - np.floor(offset)
    offset = np.floor(offset) + 0.05 + 0.9 * fraction
    arrays = (
        rng.normal(size=(batch, *size, channels)),
        offset,
        rng.normal(size=(*kernel_size, channels // groups, features)),
        rng.uniform(size=places) if modulated else None,
        rng.normal(size=features) if bias else None,
    )
    return tuple(None if a is None else a.astype(dtype) for a in arrays)


def golden_names():
    return sorted(path.stem for path in GOLDEN.glob("deform_conv2d_*.npz"))


class GoldenCase:
    """A golden file in this project's layout."""

    def __init__(self, name: str, dtype: str):
        with np.load(GOLDEN / f"{name}.npz") as file:
            self._data = dict(file)
        self._dtype = dtype
        self._suffix = {"float32": "f32", "float64": "f64"}[dtype]
        data = self._data
        self.arguments = tuple(
            self._layout(stored, data[stored].astype(dtype)) if stored in data else None
            for stored in ("input", "offset", "weight", "mask", "bias")
        )
        pads = data["padding"]
        self.options = {
            "strides": tuple(map(int, data["stride"])),
            "padding": tuple((int(pad), int(pad)) for pad in pads),
            "kernel_dilation": tuple(map(int, data["dilation"])),
            "feature_group_count": int(data["groups"]),
        }
        self.cotangent = self._layout("input", data["cotangent"].astype(dtype))
        self.output = self._layout("input", data[f"output_{self._suffix}"])

    def gradients(self):
        """Name of the argument -> gradient, for the arguments that are there."""
        stored = ("input", "offset", "weight", "mask", "bias")
        return {
            name: self._layout(key, self._data[f"grad_{key}_{self._suffix}"])
            for name, key in zip(NAMES, stored, strict=True)
            if key in self._data
        }

    def _layout(self, key, array):
        if key == "input":
            return array.transpose(0, 2, 3, 1)
        if key == "weight":
            return array.transpose(2, 3, 1, 0)
        if key == "bias":
            return array
        batch, _, rows, columns = array.shape
        groups = int(self._data["offset_groups"])
        taps = int(np.prod(self._data["weight"].shape[2:]))
        if key == "mask":
            array = array.reshape(batch, groups, taps, rows, columns)
            return array.transpose(0, 3, 4, 1, 2)
        array = array.reshape(batch, groups, taps, 2, rows, columns)
        return array.transpose(0, 4, 5, 1, 2, 3)


def value_and_pull_back(function, arguments, cotangent):
    """The output and the gradient of each argument, None where it is None."""
    output, pull_back = jax.vjp(function, *arguments)
    return output, pull_back(cotangent)
