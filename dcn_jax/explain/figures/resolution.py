"""A value by the size of the images, a curve for each network."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

# Curves are told apart by marker and line style, in grey too.
_LOOKS = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))
_GREYS = ("black", "0.45")


def draw_resolution(
    axes: Axes,
    curves: Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]],
    *,
    value: str,
) -> None:
    """Draws how a value depends on the shorter side of the images of an evaluation.

    DCNv2's own figure (Zhu et al. 2019, arXiv:1811.11168, section 4) has the AP of one
    regular and one deformable network at several shorter sides. Here it is any number
    of networks, and any value: an AP as well as the side of a receptive field.

    Args:
      axes: Where.
      curves: Name of a network -> shorter sides in pixels, and the value at each.
      value: Its name, for the axis.
    """
    for i, (name, (sides, values)) in enumerate(curves.items()):
        marker, style = _LOOKS[i % len(_LOOKS)]
        axes.plot(
            *(sides, values),
            color=_GREYS[i % len(_GREYS)],
            marker=marker,
            linestyle=style,
            label=name,
        )
    axes.set_xlabel("shorter side, pixels")
    axes.set_ylabel(value)
    axes.grid(color="0.9")
    axes.legend(fontsize=8, frameon=False)
