"""Which bugs are planted, and which checks must find them.

A check of a CUDA kernel is a program of tests/cuda and a mode of cuda_emulated.sh. A
check of a CPU kernel is "fuzz" (the driver of tests/native, whose results are filled
with poison), "address" or "thread" (the same under sanitizers), or files of
tests/xla_ops.
"""

import re
from pathlib import Path
from typing import NamedTuple

_PATCHES = Path(__file__).parent / "patches"


class Mutant(NamedTuple):
    """A bug, or a harmless change that no check may complain of.

    Attributes:
      name: What is wrong; the patch's file is named after it.
      checks: Each of them must find it.
      found: False for a harmless change.
      patched: False where nothing is changed.
    """

    name: str
    checks: tuple[str, ...]
    found: bool = True
    patched: bool = True

    def patch(self, library: str) -> Path | None:
        """The patch's file; None where nothing is changed."""
        if not self.patched:
            return None
        stem = re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")
        return _PATCHES / library / f"{stem}.patch"


_CUDA = (
    Mutant(
        "control: no change",
        ("deform_conv plain", "deform_conv address"),
        found=False,
        patched=False,
    ),
    Mutant(
        "control: a barrier too many",
        ("deform_conv plain", "deform_conv thread"),
        found=False,
    ),
    Mutant("barrier dropped, columns", ("deform_conv plain", "deform_conv thread")),
    Mutant("barrier dropped, gradients", ("deform_conv plain", "deform_conv thread")),
    Mutant(
        "barrier dropped after the visit",
        ("deform_conv plain", "deform_conv thread"),
    ),
    Mutant("barrier for some threads", ("deform_conv plain",)),
    Mutant("return before a barrier", ("deform_conv plain",)),
    Mutant("plain add for an atomic", ("deform_conv thread",)),
    Mutant("bound of the output dropped", ("deform_conv plain", "deform_conv address")),
    Mutant("bound of the map dropped", ("deform_conv address",)),
    Mutant("bound of the channels dropped", ("deform_conv address",)),
    Mutant("blocks overlap", ("deform_conv thread",)),
    Mutant("half of a slab", ("deform_conv plain",)),
    Mutant("mask of half a warp", ("deform_conv plain",)),
    Mutant("shared memory a row short", ("deform_conv address",)),
    Mutant("sums over too few lanes", ("deform_conv plain",)),
    Mutant("samples of the first tap for all", ("deform_conv plain",)),
    Mutant("sums of the last channels alone", ("deform_conv plain",)),
    Mutant("columns of channels that are not there", ("deform_conv plain",)),
    Mutant("the last sample of a pixel lost", ("deform_conv plain",)),
    Mutant("lists that are sorted as one begin alike", ("deform_conv plain",)),
    Mutant(
        "control: no change, max_roi_pool",
        ("max_roi_pool plain", "max_roi_pool address"),
        found=False,
        patched=False,
    ),
    Mutant(
        "control: a barrier too many, tiles",
        ("max_roi_pool plain", "max_roi_pool thread"),
        found=False,
    ),
    Mutant(
        "barrier dropped after the RoIs are counted",
        ("max_roi_pool plain", "max_roi_pool thread"),
    ),
    Mutant(
        "barrier dropped after the list of RoIs",
        ("max_roi_pool plain", "max_roi_pool thread"),
    ),
    Mutant(
        "barrier dropped after the lines of a tile",
        ("max_roi_pool plain", "max_roi_pool thread"),
    ),
    Mutant(
        "barrier dropped between bins", ("max_roi_pool plain", "max_roi_pool thread")
    ),
    Mutant("return before the barriers of a tile", ("max_roi_pool plain",)),
    Mutant("mask of half a warp, tiles", ("max_roi_pool plain",)),
    Mutant("blocks overlap, max_roi_pool", ("max_roi_pool thread",)),
    Mutant("bound of the bins dropped, max_roi_pool", ("max_roi_pool address",)),
    Mutant("bound of the RoIs dropped", ("max_roi_pool address",)),
    Mutant(
        "bound of the columns dropped, tiles",
        ("max_roi_pool plain", "max_roi_pool address"),
    ),
    Mutant("bound of the rows dropped, tiles", ("max_roi_pool address",)),
    Mutant("bound of the channels dropped, tiles", ("max_roi_pool address",)),
    Mutant("shared memory of a tile a line short", ("max_roi_pool address",)),
    Mutant("RoIs of the first look again", ("max_roi_pool plain",)),
    Mutant("places among the votes one too high", ("max_roi_pool plain",)),
    Mutant("RoIs of other maps", ("max_roi_pool plain",)),
    Mutant("the last of equal maxima", ("max_roi_pool plain",)),
    Mutant("NaN is no maximum", ("max_roi_pool plain",)),
    Mutant("the last NaN", ("max_roi_pool plain",)),
    Mutant("reach of the first bin", ("max_roi_pool plain",)),
    Mutant("padding of the map counts", ("max_roi_pool plain",)),
    Mutant(
        "control: no change, roi_pool",
        ("roi_pool plain", "roi_pool address", "roi_pool thread"),
        found=False,
        patched=False,
    ),
    Mutant("warp does not wait before new taps", ("roi_pool plain", "roi_pool thread")),
    Mutant("warp does not wait for its taps", ("roi_pool thread",)),
    Mutant("mask of half a warp, gradients of bins", ("roi_pool plain",)),
    Mutant("lanes without channels return early", ("roi_pool plain",)),
    Mutant("blocks overlap, roi_pool", ("roi_pool thread",)),
    Mutant("bound of the bins dropped, roi_pool", ("roi_pool address",)),
    Mutant("bound of the channels dropped, roi_pool", ("roi_pool address",)),
    Mutant("shared memory of taps a row short", ("roi_pool address",)),
    Mutant("pieces a pixel too wide", ("roi_pool plain", "roi_pool address")),
    Mutant("sums over too few lanes, gradients of bins", ("roi_pool plain",)),
    Mutant("reach of too few lanes", ("roi_pool plain",)),
    Mutant("first bin of a group rounded down", ("roi_pool plain",)),
    Mutant("a class that a slab begins is lost", ("roi_pool plain",)),
    Mutant("mask ignored by the gradient", ("roi_pool plain",)),
    Mutant(
        "control: no change, nms",
        ("nms plain", "nms address", "nms thread"),
        found=False,
        patched=False,
    ),
    Mutant("barrier dropped, nms compares", ("nms plain", "nms thread")),
    Mutant("barrier dropped before nms selects", ("nms plain", "nms thread")),
    Mutant("barrier dropped after nms selects", ("nms plain", "nms thread")),
    Mutant("return before a barrier, nms", ("nms plain",)),
    Mutant("blocks overlap, nms", ("nms thread",)),
    Mutant("bound of the candidates dropped", ("nms address",)),
    Mutant("shared memory of nms a box short", ("nms address",)),
    Mutant("shared memory of nms a block short", ("nms address",)),
    Mutant("threshold suppresses", ("nms plain",)),
    Mutant("classes ignored", ("nms plain",)),
    Mutant("a box suppresses itself", ("nms plain",)),
    Mutant("more boxes than asked for", ("nms plain", "nms address")),
    Mutant("earlier blocks forgotten", ("nms plain",)),
    Mutant("all but the last block forgotten", ("nms plain",)),
    Mutant("places among those kept one too high", ("nms plain",)),
    Mutant("outputs behind 512 not written", ("nms plain",)),
    Mutant("blocks behind 512 not cleared", ("nms plain",)),
    Mutant("RoIs read the map of the first level", ("roi_pool plain",)),
    Mutant("map sizes of the first level", ("roi_pool plain",)),
    Mutant("RoIs of other levels", ("roi_pool plain",)),
    Mutant("window of the first level in the gradient", ("roi_pool plain",)),
    Mutant("tiles of two levels overlap", ("roi_pool plain",)),
)

_CPU = (
    Mutant(
        "control: no change", ("fuzz", "address", "thread"), found=False, patched=False
    ),
    Mutant("a gradient without RoIs is not written", ("fuzz",)),
    Mutant("a gradient map is not cleared", ("fuzz",)),
    Mutant("an offset's gradient without work is not written", ("fuzz",)),
    Mutant("outputs of nms behind the last are not written", ("fuzz",)),
    Mutant(
        "too few adaptive samples are looked at",
        ("roi/test_roi_adaptive.py",),
    ),
    Mutant("the last adaptive sample is lost", ("roi/test_roi_adaptive.py",)),
    Mutant("adaptive samples begin one too late", ("roi/test_roi_adaptive.py",)),
    Mutant(
        "an adaptive sample at the far border does not count",
        ("roi/test_roi_adaptive.py",),
    ),
    Mutant("the pool counts without its lock", ("thread",)),
    Mutant("workers share their scratch", ("thread",)),
    Mutant("the caller does not wait for the last chunk", ("thread",)),
    Mutant("a sample at -1 is outside", ("deform_conv/test_deform_conv.py",)),
    Mutant("a row behind the map is read", ("address",)),
    Mutant(
        "the derivative at pixels is the left one",
        ("deform_conv/test_deform_conv.py",),
    ),
    Mutant("bfloat16 is cut, not rounded", ("test_half_precision.py",)),
    Mutant(
        "half of an even number is rounded up",
        ("test_half_precision.py",),
    ),
    Mutant(
        "a second segment overwrites the offset's gradient",
        ("deform_conv/test_deform_conv_shapes.py deform_conv/test_generated.py",),
    ),
    Mutant(
        "the last partial sum is lost",
        ("deform_conv/test_deform_conv_shapes.py deform_conv/test_generated.py",),
    ),
    Mutant(
        "the kernel of the first image, backward",
        ("deform_conv/test_deform_conv_transforms.py test_transforms.py",),
    ),
    Mutant(
        "the kernel of the first image in small groups, backward",
        ("deform_conv/test_deform_conv_transforms.py test_transforms.py",),
    ),
    Mutant(
        "small groups have the samples of the first offset group",
        ("deform_conv/test_deform_conv.py",),
    ),
    Mutant(
        "pixels behind a patch are not copied", ("deform_conv/test_deform_conv.py",)
    ),
    Mutant("scratch of taps is one short", ("address",)),
    Mutant(
        "RoIs read the map of the first level",
        ("roi/test_roi_pool.py roi/test_roi_derivatives.py",),
    ),
    Mutant(
        "padding of a map counts",
        ("roi/test_roi_pool.py roi/test_roi_derivatives.py",),
    ),
    Mutant(
        "a class overwrites the mask's gradient",
        ("roi/test_ps_roi_pool.py roi/test_ps_roi_golden.py",),
    ),
    Mutant(
        "boxes of other classes suppress",
        ("non_max_suppression/test_nms.py",),
    ),
    Mutant("an IoU at the threshold suppresses", ("non_max_suppression/test_nms.py",)),
    Mutant("the later of equal scores first", ("non_max_suppression/test_nms.py",)),
    Mutant(
        "the last of equal maxima",
        ("roi/test_max_roi_pool.py roi/test_max_roi_pool_derivatives.py",),
    ),
    Mutant(
        "NaN is no maximum",
        ("roi/test_max_roi_pool.py roi/test_max_roi_pool_derivatives.py",),
    ),
    Mutant("the mask's shape is not checked", ("address",)),
)

MUTANTS = {"cpu": _CPU, "cuda": _CUDA}
