"""The data of the page: columns of bytes and short integers.

A row of a column is what one node, or one detection, has. Bokeh puts them into the page
compressed, and the page reads them as typed arrays.

Shape letters: K nodes, D detections, h w cells of the receptive field.
"""

import numpy as np
from bokeh.models import ColumnDataSource
from jaxtyping import Float, Int16, UInt8

from dcn_jax.explain import Atlas, PointSet
from train.explain.viewer.detected import Detected

# Steps to a pixel of a point's place.
STEPS = 8
# Steps of a strength, whose square root is stored: weak ones are seen too.
LEVELS = 255


def node_columns(atlas: Atlas) -> ColumnDataSource:
    """Nodes: place, receptive field and the field's sizes."""
    y, x = atlas.nodes.T
    return ColumnDataSource(
        {
            "x": x.astype(np.int16),
            "y": y.astype(np.int16),
            "field": in_levels(atlas.field),
            "area_side": atlas.area_side.astype(np.float32),
            "square_side": atlas.square_side.astype(np.float32),
        },
        name="nodes",
    )


def point_columns(points: PointSet, name: str) -> ColumnDataSource:
    """Points of each node in the order of their strength, the strongest last."""
    order = np.argsort(points.strength, axis=1, kind="stable")
    y, x = np.moveaxis(in_steps(points.position), -1, 0)
    columns = {
        "x": x,
        "y": y,
        "strength": in_levels(points.strength),
        "inside": points.inside.astype(np.uint8),
    }
    columns = {k: np.take_along_axis(v, order, axis=1) for k, v in columns.items()}
    columns["outside"] = points.outside.astype(np.int32)
    return ColumnDataSource(columns, name=name)


def detection_columns(detected: Detected) -> ColumnDataSource:
    """Detections, and bins where they are known."""
    x1, y1, x2, y2 = np.asarray(detected.boxes, np.float32).T
    columns = {
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
        "score": np.asarray(detected.scores, np.float32),
        "name": list(detected.names),
    }
    if detected.bins is not None:
        count = len(detected.names)
        centre = np.asarray(detected.bins.centre, np.float32).reshape(count, -1, 2)
        height, width = np.asarray(detected.bins.size, np.float32).T
        columns |= {
            "bin_x": centre[..., 1],
            "bin_y": centre[..., 0],
            "bin_width": width,
            "bin_height": height,
            "mask": np.asarray(detected.bins.mask, np.float32).reshape(count, -1),
        }
    return ColumnDataSource(columns, name="detections")


def in_steps(position: Float[np.ndarray, "*s"]) -> Int16[np.ndarray, "*s"]:
    """Eighths of a pixel; what is 4095 pixels away, or no number, is there."""
    far = np.iinfo(np.int16).max
    steps = np.nan_to_num(position * STEPS, nan=far, posinf=far, neginf=-far)
    return np.clip(np.round(steps), -far, far).astype(np.int16)


def in_levels(strength: Float[np.ndarray, "K *s"]) -> UInt8[np.ndarray, "K *s"]:
    """Square roots of a node's strengths, as a share of that of the strongest."""
    finite = np.nan_to_num(strength, nan=0, posinf=0, neginf=0)
    strongest = finite.max(axis=tuple(range(1, finite.ndim)), keepdims=True)
    share = np.divide(finite, strongest, out=np.zeros_like(finite), where=strongest > 0)
    return np.round(LEVELS * np.sqrt(share)).astype(np.uint8)
