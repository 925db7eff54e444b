"""Sampling locations on an image."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from dcn_jax.explain.figures.image import COLOUR_MAP, outlined
from dcn_jax.explain.sampling import distinct_points

# Areas of markers in points^2: of nothing, and of the strongest.
_SMALLEST, _LARGEST = 1.5, 36.0


def draw_locations(
    axes: Axes,
    position: Float[Array | np.ndarray, "points 2"],
    strength: Float[Array | np.ndarray, "points *c"],
    inside: Bool[Array | np.ndarray, " points"],
    *,
    node: Sequence[int | float] | None = None,
    size: int | float = _LARGEST,
) -> PathCollection:
    """Draws the points that a node reads, the strongest largest and lightest.

    Points at the same place are one, with the sum of their strengths, or the norm of
    the sum of their gradients. Those that do not count as inside are crosses. In the
    lower right corner of the image stands how many places the axes do not show.

    Args:
      axes: Show the image, see `show_image`.
      position: (y, x) in pixels of the image: positions of a map times its stride.
      strength: Weights [points], or gradients by the location [points, 2].
      inside: As of `SamplingLocations`.
      node: (y, x) of the node, which gets a plus sign.
      size: Of the strongest marker, its area in points^2.

    Returns:
      The points inside, coloured by share of the strongest; for a colour bar.
    """
    position, strength, inside = map(np.asarray, (position, strength, inside))
    parts = [_together(position[part], strength[part]) for part in (inside, ~inside)]
    strongest = max([1e-30, *(s.max(initial=0.0) for _, s in parts)])
    drawn = []
    for (place, norm), look in zip(parts, _LOOKS, strict=True):
        # The strongest are drawn last, on top.
        order = np.argsort(norm, kind="stable")
        share = norm[order] / strongest
        points = axes.scatter(
            *(place[order, 1], place[order, 0]),
            c=share,
            s=_SMALLEST + (size - _SMALLEST) * share,
            cmap=COLOUR_MAP,
            vmin=0,
            vmax=1,
            **look,
        )
        drawn.append(points)
    if node is not None:
        axes.plot(
            *(node[1], node[0]),
            marker="+",
            markersize=1.6 * np.sqrt(size),
            markeredgewidth=1.4,
            color="white",
            path_effects=outlined(3.2),
            zorder=4,
        )
    _tell_hidden(axes, np.concatenate([place for place, _ in parts]))
    return drawn[0]


_LOOKS = (
    {"marker": "o", "edgecolors": "black", "linewidths": 0.3, "zorder": 3},
    {"marker": "X", "edgecolors": "black", "linewidths": 0.3, "zorder": 2},
)


def _together(
    position: Float[np.ndarray, "all 2"], strength: Float[np.ndarray, "all *c"]
) -> tuple[Float[np.ndarray, "points 2"], Float[np.ndarray, " points"]]:
    """Distinct places, and the strength at each."""
    parts = strength.T if strength.ndim == 2 else strength[None]
    sums = [distinct_points(position, part) for part in parts]
    norm = np.linalg.norm([points.weight for points in sums], axis=0)
    return sums[0].position, norm


def _tell_hidden(axes: Axes, position: Float[np.ndarray, "points 2"]) -> None:
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()  # Rows count downwards.
    y, x = position.T
    hidden = int((~((left <= x) & (x <= right) & (top <= y) & (y <= bottom))).sum())
    if hidden:
        # On the image, not in the room round it.
        _, end, floor, _ = axes.images[0].get_extent()
        axes.annotate(
            f"{hidden} not shown",
            (end, floor),
            (-2, 2),
            textcoords="offset points",
            annotation_clip=False,
            ha="right",
            va="bottom",
            fontsize=7,
            color="white",
            path_effects=outlined(1.8),
        )
    # Markers must not widen what is shown.
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
