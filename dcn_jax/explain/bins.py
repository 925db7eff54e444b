"""Bin locations: where the bins of a RoI are pooled, and how much they count.

Shape letters: K nodes, N images, B RoIs of an image, h w bins, F features of a RoI.

Source: Zhu et al. 2019 (arXiv:1811.11168) section 2, "effective bin locations".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from dcn_jax.explain.layer_calls import ROI_POOLS, LayerCall, record_of, run_with
from dcn_jax.explain.models import Call, check_model
from dcn_jax.explain.nodes import (
    Nodes,
    check_image,
    check_nodes,
    check_result,
    pull_back,
)
from dcn_jax.modules.roi_pool import RoIAlign
from xla_ops import deform_roi_pool
from xla_ops.arguments import coordinate_dtype


class BinLocations(NamedTuple):
    """The bins of RoIs, in pixels of the image, the first of which is from 0 to 1."""

    centre: Float[Array, "K h w 2"]  # (y, x)
    size: Float[Array, "K 2"]  # (height, width) of each of a RoI's bins
    mask: Float[Array, "K h w"]  # 1 where the layer has none
    gradient: Float[Array, "K h w 2"] | None  # (dy, dx), per pixel of the image

    @property
    def strength(self) -> Float[Array, "K h w"]:
        """Norm of the gradient by the location, as in the paper; needs `gradient`."""
        return jnp.linalg.norm(self.gradient, axis=-1)


def bin_locations(
    model: Any,
    call: Call,
    image: Num[Array | np.ndarray, "H W C"],
    nodes: Nodes,
    *,
    layer: str | None = None,
    gradient: bool = False,
) -> BinLocations:
    """Where a pooling layer pools the RoIs that are nodes, with the bins' factors.

    Layers are those whose bins are means of bilinear samples: `DeformRoIPool`,
    `DeformRoIPoolByLevel`, and `RoIAlign`, whose bins do not move.

    `gradient` is that of a RoI's response by the place of each bin, see
    `dcn_jax.explain.nodes`; of `RoIAlign`, by that of an offset which is zero.

    It is a pure function: under `jax.jit` (of a function of model, image and nodes) all
    nodes are one program.

    Args:
      model: An NNX module, or a Linen module bound to its variables. It is not changed.
      call: The pass, given a copy of the model and the image as a batch of one. Returns
        features [1, B, F] of the RoIs that the layer pools, see
        `effective_receptive_field`.
      image: As the model takes it.
      nodes: [K, 1], RoIs.
      layer: Name of the layer, its path from the model; None: the last that runs.
      gradient: Whether to compute it, which takes two passes and one back.

    Raises:
      TypeError: An argument is not of its kind; the message names it.
      ValueError: A shape is wrong, a node is not there, or there is no such layer.
    """
    model, image = check_model(model), check_image(image)
    log = _Log()
    result, records = run_with(log, model, call, image[None])
    rois = check_result(result).shape[1:-1]
    if len(rois) != 1:
        raise ValueError(
            f"`call` returns an array of shape {result.shape}; expected features of "
            "RoIs [1, B, F]"
        )
    nodes = check_nodes(nodes, rois)
    chosen = _choose(log.calls, layer)
    earlier = sum(call.name == chosen.name for call in log.calls[: chosen.place])
    count = sum(call.name == chosen.name for call in log.calls)
    bins = record_of(records, (chosen.name, "bins"), earlier, count, "layer")
    if bins["rois"].shape != (1, *rois, 4):
        raise ValueError(
            f"`layer`: {chosen.name} pools RoIs of shape {bins['rois'].shape}; "
            f"expected those of what `call` returns, {(1, *rois, 4)}"
        )
    pulled = None
    if gradient:
        pulled = _gradient(model, call, image, nodes, chosen)
    return _located(bins, chosen, nodes[:, 0], pulled)


@dataclass(frozen=True)
class _Pooling:
    """One call of a RoI pooling layer."""

    name: str
    place: int
    kind: str
    output_size: tuple[int, int]
    scales: tuple[float, ...]
    aligned: bool
    recorded: bool


class _Log:
    """A listener that writes down the RoI pooling layers."""

    def __init__(self):
        self.calls: list[_Pooling] = []

    def __call__(self, call: LayerCall) -> jax.Array:
        if isinstance(call.layer, ROI_POOLS):
            self.calls.append(_as_pooling(call, len(self.calls)))
        return call.result


def _as_pooling(call: LayerCall, place: int) -> _Pooling:
    layer, scales = call.layer, call.layer.spatial_scale
    return _Pooling(
        name=call.name,
        place=place,
        kind=type(layer).__name__,
        output_size=(call.result.shape[2], call.result.shape[3]),
        scales=tuple(scales) if isinstance(scales, Sequence) else (scales,),
        aligned=not isinstance(layer, RoIAlign) or layer.aligned,
        recorded=call.record is not None,
    )


def _choose(calls: Sequence[_Pooling], name: str | None) -> _Pooling:
    found = [call for call in calls if name is None or call.name == name]
    if not found or not found[-1].recorded:
        what = f"`layer` is {name!r}"
        if found:
            what += f", which finds {found[-1].name}, a {found[-1].kind}"
        ran = ", ".join(call.name for call in calls if call.recorded) or "none"
        raise ValueError(
            f"{what}; expected a DeformRoIPool, DeformRoIPoolByLevel or RoIAlign that "
            f"runs in `call`, which are {ran}"
        )
    return found[-1]


def _pooled_rois(bins: dict[str, Any], pooling: _Pooling) -> Float[Array, "N B 4"]:
    """RoIs that an aligned layer would sample at the same places."""
    rois = jax.lax.stop_gradient(bins["rois"])
    if pooling.aligned:
        return rois
    # Without alignment they lie half a pixel of their map further.
    scales = jnp.asarray(pooling.scales, rois.dtype)
    scale = scales[jnp.zeros(rois.shape[:2], jnp.int32)]
    if bins["levels"] is not None:
        scale = scales[bins["levels"]]
    first, last = jnp.split(rois, 2, axis=-1)
    # Nor have they less than a pixel of it along a side.
    step = 1 / scale[..., None]
    last = first + jnp.maximum(last - first, step)
    return jnp.concatenate([first, last], axis=-1) + step / 2


def _size(rois: Float[Array, "*s 4"]) -> Float[Array, "*s 2"]:
    """(height, width)."""
    return rois[..., 3:1:-1] - rois[..., 1::-1]


def _located(bins, pooling: _Pooling, nodes: Int[Array, "K"], gradient) -> BinLocations:
    rois = _pooled_rois(bins, pooling)[0, nodes]
    h, w = pooling.output_size
    cell = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)
    part = jnp.asarray((cell + 0.5) / (h, w), rois.dtype)[None]
    if bins["offset"] is not None:
        part = part + jax.lax.stop_gradient(bins["offset"])[0, nodes].astype(rois.dtype)
    size = _size(rois)
    centre = rois[:, None, None, 1::-1] + part * size[:, None, None]
    mask = jnp.ones_like(centre, shape=centre.shape[:3])
    if bins["mask"] is not None:
        mask = jax.lax.stop_gradient(bins["mask"])[0, nodes].astype(rois.dtype)
    count = jnp.asarray([(h, w)], rois.dtype)
    return BinLocations(centre, size / count, mask, gradient)


def _gradient(model, call, image, nodes, pooling: _Pooling) -> Float[Array, "K h w 2"]:
    """Gradient of RoIs' responses by where each of their bins is."""

    def moved(shift):
        log = _Log()

        def listen(run: LayerCall):
            here = isinstance(run.layer, ROI_POOLS) and (
                _as_pooling(run, len(log.calls)) == pooling
            )
            log(run)
            return _move(run, pooling, nodes[:, 0], shift) if here else run.result

        return run_with(listen, model, call, image[None])[0]

    real = coordinate_dtype(image.dtype)
    shift = jnp.zeros((len(nodes), *pooling.output_size, 2), real)
    # Of each node by the places of its own bins.
    each = pull_back(moved, shift, nodes).gradient
    return each[jnp.arange(len(nodes)), jnp.arange(len(nodes))]


def _move(run: LayerCall, pooling: _Pooling, nodes: Array, shift: Array) -> Array:
    """The result of a layer, with the derivative by a shift, zero, of nodes' bins."""
    assert run.record is not None
    bins, features = jax.lax.stop_gradient((run.record, run.arguments["features"]))
    maps = features if isinstance(features, list | tuple) else [features]
    real = coordinate_dtype(maps[0].dtype)
    rois = _pooled_rois(bins, pooling).astype(real)
    size = _size(rois)[0, nodes][:, None, None]
    part = jnp.where(size > 0, shift.astype(real) / jnp.where(size > 0, size, 1), 0)
    offset = jnp.zeros((*rois.shape[:2], *pooling.output_size, 2), real)
    if bins["offset"] is not None:
        offset = bins["offset"].astype(real)
    offset = offset.at[0, nodes].add(part)
    mask = None if bins["mask"] is None else bins["mask"].astype(real)
    several = isinstance(features, list | tuple)
    y = deform_roi_pool(
        [x.astype(real) for x in maps] if several else features.astype(real),
        rois,
        offset,
        mask,
        output_size=pooling.output_size,
        spatial_scale=pooling.scales if several else pooling.scales[0],
        levels=bins["levels"],
        map_sizes=run.arguments.get("map_sizes"),
        sampling_ratio=run.layer.sampling_ratio,
        offset_scale=1.0,
    ).astype(run.result.dtype)
    return run.result + (y - jax.lax.stop_gradient(y))
