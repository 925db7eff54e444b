"""Error-bounded saliency regions: the part of an image that a node's response needs.

Zhu et al. 2019 define it as the smallest region that gives the response of the full
image within a small error, found by masking the image step by step. The details stood
in an appendix that is not at hand; these are ours:

- The error is 1 - cosine of the responses to the masked and to the full image.
- Masked pixels have one colour.
- First a rectangle round the node grows until the bound holds.
- Then superpixels inside of it are removed greedily. A sweep tries each alone, and
  puts them in the order of the error that this makes; then the first 1, 2, 4, ... of
  them are removed together, as many as leave half of what the error may still grow, at
  least one. A sweep that finds none to remove is the last.

Which region is smallest is a question of all subsets; the greedy one need not be it.

Shape letters: H W image, C its channels, F channels of the response, M masks.

Source: Zhu et al. 2019 (arXiv:1811.11168) section 2; superpixels removed by their harm,
Zhou et al. 2015 (arXiv:1412.6856) section 3.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from dcn_jax.explain.convolutions import map_stride
from dcn_jax.explain.models import Call, check_model, copy_of, merge_model, split_model
from dcn_jax.explain.nodes import (
    check_image,
    check_nodes,
    check_result,
    responses,
    unit,
)
from dcn_jax.explain.superpixels import check_superpixels, grid_superpixels
from dcn_jax.modules.arguments import check_integer, check_number

# Steps in which the rectangle grows from nothing to the whole image.
_STEPS = 32


class Curve(NamedTuple):
    """Regions that were tried, in the order of the search."""

    area: Float[np.ndarray, " tried"]  # share of the image
    error: Float[np.ndarray, " tried"]


class SaliencyRegion(NamedTuple):
    """A region that is enough for a node's response."""

    region: Bool[np.ndarray, "H W"]
    error: float  # that it reaches
    rectangle: tuple[int, int, int, int]  # x1 y1 x2 y2: pixels from 1 to before 2
    growth: Curve  # of the rectangles, until the bound held
    removal: Curve  # of the regions kept, from the rectangle to the last
    passes: int  # images that went through the network
    complete: bool  # whether no superpixel can be removed; else passes ran out


def saliency_region(
    model: Any,
    call: Call,
    image: Num[Array | np.ndarray, "H W C"],
    node: Sequence[int],
    *,
    error: float = 0.1,
    box: Sequence[float] | None = None,
    superpixels: Int[Array | np.ndarray, "H W"] | None = None,
    fill: float | Sequence[float] = 0.0,
    max_passes: int = 2000,
    batch_size: int = 16,
    report: Callable[[int, float], None] | None = None,
) -> SaliencyRegion:
    """Searches the smallest region that keeps a node's response, see the module.

    The same arguments give the same region. The search runs in Python, and the network
    in one program, which is compiled once for each `call` (the same function, not an
    equal one), model structure and shapes. So this function is not for use under jit.

    Args:
      model: An NNX module, or a Linen module bound to its variables. It is not changed.
      call: The pass, given a copy of the model and a masked image as a batch of one.
        Returns a map [1, P, Q, F] or features of RoIs [1, B, F]. It is mapped over
        masks by `jax.vmap`.
      image: As the model takes it.
      node: (y, x) of a position of the map, or (b,), a RoI.
      error: Bound of 1 - cosine, between 0 and 1.
      box: x1 y1 x2 y2 in pixels of the image: the rectangle grows round its centre, in
        its proportions. A RoI needs it. None: squares round the position, which lies at
        the stride of the map that its size tells (`map_stride`).
      superpixels: Number of the patch that each pixel is in. None: a grid of squares,
        16 along the longer side, see `grid_superpixels`.
      fill: Colour of what is masked, or one number for all channels. A network that
        subtracts a mean from its images sees zeros where this is the mean.
      max_passes: How many images may go through the network in all; more than the 32
        of the rectangle.
      batch_size: How many do so at once.
      report: Told after each batch how many have, and the share of the image that the
        region has; for a bar of progress.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: A shape or a number is wrong; the node is not there, or says nothing
        of the full image; a RoI has no `box`.
    """
    model, image = check_model(model), check_image(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        image = image.astype(jnp.float32)
    size = (image.shape[0], image.shape[1])
    if not 0 < check_number("error", error) < 1:
        raise ValueError(f"`error` is {error}; expected it between 0 and 1")
    max_passes = check_integer("max_passes", max_passes, _STEPS + 1)
    batch_size = check_integer("batch_size", batch_size)
    if superpixels is None:
        superpixels = grid_superpixels(*size, side=math.ceil(max(size) / 16))
    patches = check_superpixels(superpixels, size)
    masked = _Masked(model, call, image, node, fill, batch_size, report)
    boxes = _growing_boxes(box, node, size, masked.places)
    rectangle, growth = _grow(masked, error, boxes)
    region, removal, complete = _shrink(
        masked, error, rectangle, growth.error[-1], patches, max_passes
    )
    return SaliencyRegion(
        region=region,
        error=float(removal.error[-1]),
        rectangle=rectangle,
        growth=growth,
        removal=removal,
        passes=masked.passes,
        complete=complete,
    )


class _Masked:
    """A network on masked images.

    Attributes:
      size: (H, W).
      places: Size of what the pass returns, without its first and last axis.
      batch_size: How many images go through at once.
      passes: How many have.
    """

    def __init__(self, model, call, image, node, fill, batch_size, report):
        self.size = (image.shape[0], image.shape[1])
        self.passes = 0
        self.batch_size, self._report = batch_size, report
        fill = np.asarray(fill)
        if fill.ndim > 1 or fill.size not in (1, image.shape[2]):
            raise ValueError(
                f"`fill` has shape {fill.shape}; expected a number, or one for each of "
                f"the {image.shape[2]} channels"
            )
        fill = jnp.broadcast_to(jnp.asarray(fill, image.dtype), image.shape[2:])
        result = jax.eval_shape(lambda x: call(copy_of(model), x[None]), image)
        self.places = check_result(result).shape[1:-1]
        if np.shape(node) != (len(self.places),):
            raise ValueError(
                f"`node` has shape {np.shape(node)}; expected ({len(self.places)},)"
            )
        nodes = check_nodes(np.asarray([node]), self.places, "node")
        definition, arrays = split_model(model)
        self._respond = lambda masks: _unit_responses(
            *(arrays, image, fill, masks, nodes), call=call, definition=definition
        )
        (self._wanted,) = self._responses([np.ones(self.size, bool)])
        if not np.isfinite(self._wanted).all() or not self._wanted.any():
            raise ValueError(
                f"`node` is {tuple(node)}, whose response to the full image is zero or "
                "not finite; expected one with a direction"
            )

    def errors(self, masks: Iterable[np.ndarray], area: float) -> list[float]:
        """1 - cosine of each mask's response; `area` is reported."""
        masks, found = iter(masks), []
        while batch := list(itertools.islice(masks, self.batch_size)):
            vectors = self._responses(batch)
            # Half the squared distance of unit vectors, which is exact near 0. What has
            # no direction is as wrong as what is at right angles.
            error = np.square(vectors - self._wanted).sum(-1) / 2
            error = np.where(vectors.any(-1), error, 1)
            found += np.where(np.isnan(error), np.inf, error).tolist()
            if self._report is not None:
                self._report(self.passes, area)
        return found

    def _responses(self, masks: list[np.ndarray]) -> Float[np.ndarray, "M F"]:
        # A batch that is not full is filled up: one program serves all.
        filler = [np.zeros(self.size, bool)] * (self.batch_size - len(masks))
        found = self._respond(jnp.asarray(np.stack([*masks, *filler])))
        self.passes += len(masks)
        return np.asarray(found)[: len(masks)].astype(np.float64)


@functools.partial(jax.jit, static_argnames=("call", "definition"))
def _unit_responses(arrays, image, fill, masks, nodes, *, call, definition):
    model = merge_model(definition, arrays)

    def of_mask(mask):
        masked = jnp.where(mask[..., None], image, fill[None, None])
        return responses(check_result(call(copy_of(model), masked[None])), nodes)[0]

    return unit(jax.vmap(of_mask)(masks))


def _growing_boxes(box, node, size, places) -> list[tuple[int, int, int, int]]:
    """Boxes of one centre and shape, the last of which is the image."""
    if box is None:
        if len(places) != 2:
            raise ValueError("`box` is None; expected x1 y1 x2 y2, as `node` is a RoI")
        try:
            stride = map_stride(size, places)
        except ValueError as error:
            raise ValueError(
                f"`box` is None, and the map that `call` returns has {places}; "
                f"expected {size} over a power of two, rounded up, or a box"
            ) from error
        centre = stride * np.asarray(node) + 0.5
        half = np.ones(2)
    else:
        corners = np.asarray(box, np.float64)
        sound = corners.shape == (4,) and np.isfinite(corners).all()
        if not sound or not (corners[:2] < corners[2:]).all():
            raise ValueError(
                f"`box` is {box}; expected x1 y1 x2 y2, x1 < x2 and y1 < y2"
            )
        centre = (corners[:2] + corners[2:])[::-1] / 2
        half = (corners[2:] - corners[:2])[::-1] / 2
        if not ((centre >= 0) & (centre <= size)).all():
            raise ValueError(
                f"`box` is {box}; expected its centre on the image, which has {size}"
            )
    whole = (np.maximum(centre, size - centre) / half).max()
    boxes = []
    for step in range(1, _STEPS + 1):
        reach = half * whole * step / _STEPS
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach), size).astype(int)
        boxes.append((int(low[1]), int(low[0]), int(high[1]), int(high[0])))
    return [*boxes[:-1], (0, 0, size[1], size[0])]


def _grow(masked: _Masked, bound: float, boxes: list[tuple[int, int, int, int]]):
    """The first box with an error within the bound, and the curve until there."""
    masks = [_filled(box, masked.size) for box in boxes]
    areas, errors = [float(mask.mean()) for mask in masks], []
    for start in range(0, len(boxes), masked.batch_size):
        batch = slice(start, start + masked.batch_size)
        errors += masked.errors(masks[batch], areas[batch][-1])
        if min(errors) <= bound:
            break
    # The last is the full image, even where rounding is all that its error is.
    last = next((i for i, e in enumerate(errors) if e <= bound), len(errors) - 1)
    curve = Curve(np.asarray(areas[: last + 1]), np.asarray(errors[: last + 1]))
    return boxes[last], curve


def _shrink(
    masked: _Masked,
    bound: float,
    rectangle: tuple[int, int, int, int],
    error: float,
    patches: np.ndarray,
    max_passes: int,
):
    """Removes patches from a rectangle while the bound holds.

    Returns:
      The region, the curve of what was kept, and whether nothing more can be removed.
    """
    region = _filled(rectangle, masked.size)
    curve = [(region.mean(), error)]
    kept = np.unique(patches[region])
    complete = True
    while len(kept):
        # The numbers 1, 2, 4, ... of patches that are removed together.
        counts = [2**i for i in range(len(kept).bit_length())]
        if masked.passes + len(kept) + len(counts) > max_passes:
            complete = False
            break
        area = float(region.mean())
        alone = masked.errors((region & (patches != patch) for patch in kept), area)
        if min(alone) > bound:
            break
        order = np.argsort(alone, kind="stable")
        regions = [region & ~np.isin(patches, kept[order[:count]]) for count in counts]
        together = masked.errors(regions, area)
        # One alone may take all that is left of the bound.
        allowed = (error + bound) / 2
        best = max((i for i, e in enumerate(together) if e <= allowed), default=0)
        region, error = regions[best], together[best]
        kept = np.delete(kept, order[: counts[best]])
        curve.append((region.mean(), error))
    return region, Curve(*np.asarray(curve).T), complete


def _filled(box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask
