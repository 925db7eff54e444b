"""explanation.json: numbers of an explanation, in pixels of the given image."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dcn_jax.explain import (
    BinLocations,
    SamplingLocations,
    area_side,
    square_side,
)
from dcn_jax.images.geometry import Geometry
from train.explain.network import ERROR_BOUND, ExplainedNetwork, Explanation
from train.explain.nodes import Node, Position

# Significant digits.
_DIGITS = 6


def network_record(network: ExplainedNetwork, workdir: str) -> dict[str, Any]:
    """Returns what is said of a network."""
    height, width = network.geometry.size
    return {
        "name": network.name,
        "workdir": workdir,
        "step": network.step,
        "layers": list(network.layers),
        "given_size": [width, height],
    }


def node_record(node: Node) -> dict[str, Any]:
    """Returns what is said of a node."""
    if isinstance(node, Position):
        return {"label": node.label, "position": _numbers([node.x, node.y])}
    return {"label": node.label, "roi": _numbers(node.box)}


def explanation_record(found: Explanation, geometry: Geometry) -> dict[str, Any]:
    """Returns what a network sees of a node.

    Points are (x, y), centres of pixels; rectangles and bins count edges. Strengths are
    norms of the gradient by the location, per pixel of the given image.
    """
    record: dict[str, Any] = {}
    if found.place is not None:
        y, x = found.place
        record["map_position"] = [x, y]
    if isinstance(found.where, SamplingLocations):
        record["locations"] = _locations(found.where, geometry)
    else:
        record["bins"] = _bins(found.where, geometry)
    record["receptive_field"] = _receptive_field(found, geometry)
    record["saliency"] = _saliency(found, geometry)
    return record


def length_scale(geometry: Geometry) -> float:
    """Pixels that the network is given for one of the given image, in one direction."""
    return float(np.sqrt(np.prod(geometry.scale)))


def _locations(where: SamplingLocations, geometry: Geometry) -> dict[str, Any]:
    scale = np.asarray(geometry.scale)
    points = (where.position + 0.5) / scale - 0.5
    return {
        "points": _numbers(points[:, ::-1]),
        "inside": where.inside.tolist(),
        "weights": _numbers(where.weight),
        "strengths": _numbers(np.linalg.norm(where.gradient * scale, axis=-1)),
    }


def _bins(where: BinLocations, geometry: Geometry) -> dict[str, Any]:
    scale = np.asarray(geometry.scale)
    return {
        "centres": _numbers((where.centre / scale)[..., ::-1]),
        "size": _numbers((where.size / scale)[::-1]),
        "masks": _numbers(where.mask),
        "strengths": _numbers(np.linalg.norm(where.gradient * scale, axis=-1)),
    }


def _receptive_field(found: Explanation, geometry: Geometry) -> dict[str, Any]:
    scale = length_scale(geometry)
    field = jnp.asarray(found.field)
    sides = {
        "area_side": area_side(field),
        "square_side": square_side(field, found.centre),
    }
    return {name: _numbers(float(side) / scale) for name, side in sides.items()}


def _saliency(found: Explanation, geometry: Geometry) -> dict[str, Any]:
    y, x = geometry.scale
    region = found.saliency
    return {
        "area": _numbers(float(region.region.mean())),
        "error": _numbers(region.error),
        "bound": ERROR_BOUND,
        "rectangle": _numbers(np.asarray(region.rectangle) / (x, y, x, y)),
        "passes": region.passes,
        "complete": region.complete,
        "growth": _numbers(np.stack(region.growth, -1)),
        "removal": _numbers(np.stack(region.removal, -1)),
    }


def _numbers(values: Any) -> Any:
    """Numbers as JSON holds them, without digits that say nothing."""
    array = np.asarray(values, np.float64)
    if array.ndim:
        return [_numbers(value) for value in array]
    return float(f"{array:.{_DIGITS}g}")
