"""A figure as the bytes of a file."""

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# What SVG's identifiers are made of; by default it is drawn anew each time.
_SALT: dict[Any, Any] = {"svg.hashsalt": "dcn_jax"}
_KINDS: dict[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None, "Creator": None}},
}


def render(figure: Figure, kind: str, *, dpi: int = 200) -> bytes:
    """Returns a figure as a file; the same figure, made anew, gives the same bytes.

    Args:
      figure: What is drawn.
      kind: "png" or "svg".
      dpi: Pixels per inch of a PNG, and of images in an SVG.

    Raises:
      ValueError: It is another kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` is {kind!r}; expected one of {', '.join(_KINDS)}")
    file = io.BytesIO()
    with matplotlib.rc_context(_SALT):
        figure.savefig(file, format=kind, dpi=dpi, **_KINDS[kind])
    return file.getvalue()
