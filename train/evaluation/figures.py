"""Pictures of an evaluation: precision over recall, and confusions.

They are to be read in grey and by the colour-blind, and with as many categories as COCO
has.

Shape letters: C categories, R recalls.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from dcn_jax.explain.figures.image import COLOUR_MAP
from dcn_jax.quoting import one_line
from train.evaluation.precision_recall import RECALLS, PrecisionRecall

# So many curves can be told apart. Of more, the best and the worst are named.
_TOLD_APART = 10
_AT_EACH_END = 4
# In matrices of so many rows shares are written into the cells.
_WRITTEN = 24
# In those of more, rows and columns have no names: the numbers stand in a file.
_NAMED = 150
_NAME = 24


def precision_recall_figure(curves: Mapping[str, PrecisionRecall]) -> Figure:
    """Returns a figure with a row for each kind and a column for each rule.

    Args:
      curves: By what is compared, such as "bbox".
    """
    columns = max(len(of_kind.precision) for of_kind in curves.values())
    size = (6.5 * columns, 4.6 * len(curves))
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(len(curves), columns, squeeze=False)
    for row, (kind, of_kind) in zip(axes, curves.items(), strict=True):
        for axis, rule in zip(row, of_kind.precision, strict=True):
            axis.set_title(f"{kind}, {rule}", fontsize=10)
            _draw_curves(axis, of_kind, rule)
    return figure


def _draw_curves(axes: Axes, curves: PrecisionRecall, rule: str) -> None:
    precision = curves.precision[rule]
    known = np.flatnonzero(~np.isnan(precision[:, 0]))
    ranked: list[int] = known[
        np.argsort(-precision[known].mean(1), kind="stable")
    ].tolist()
    told = ranked
    if len(ranked) > _TOLD_APART:
        told = ranked[:_AT_EACH_END] + ranked[-_AT_EACH_END:]
        for k in ranked[_AT_EACH_END:-_AT_EACH_END]:
            axes.plot(RECALLS, precision[k], color="0.8", linewidth=0.6)
    handles, labels = [], []
    for rank, k in enumerate(told):
        # The worse the lighter, and next to one another of other dashes.
        shade = colormaps[COLOUR_MAP](0.85 * rank / max(len(told) - 1, 1))
        dashes = ("-", "--", "-.", ":")[rank % 4]
        handles += axes.plot(RECALLS, precision[k], dashes, color=shade, linewidth=1.2)
        labels.append(f"{precision[k].mean():.2f}  {_shown(curves.names[k])}")
    if known.size:
        mean = curves.mean(rule)
        handles += axes.plot(RECALLS, mean, color="black", linewidth=2.5)
        labels.append(f"{mean.mean():.2f}  mean of {known.size}")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color="0.9", linewidth=0.6)
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
    if handles:
        legend = axes.legend(handles, labels, fontsize=8, title="AP", **beside)
        _plain(legend.get_texts())


def confusion_figure(
    names: Sequence[str], counts: Int[np.ndarray, "C C"], title: str
) -> Figure:
    """Returns a figure of a confusion matrix, as shares of its rows.

    Args:
      names: Of rows and columns.
      counts: By what is true (the row) and what is predicted.
      title: Says what is counted.
    """
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    written = len(names) <= _WRITTEN
    side = (0.42 if written else 0.17) * min(len(names), _NAMED)
    figure = Figure((max(side, 2) + 3.2, max(side, 2) + 2.4), layout="constrained")
    axes = figure.subplots()
    # From white to black, so that it is the same in grey; by the root, so that what is
    # rare is seen.
    shades: dict[str, Any] = {"cmap": "Greys", "norm": PowerNorm(0.5, 0, 1)}
    # Cells as the layout has room for them: equal sides would cut labels off.
    picture = axes.imshow(shares, aspect="auto", **shades)
    if written:
        _write_shares(axes, shares)
    if len(names) <= _NAMED:
        _name_cells(axes, names, totals, size=9 if written else 7)
    axes.set(xlabel="predicted", ylabel="true (how many)")
    axes.set_title(f"{title}; in % of the row" if written else title, fontsize=9)
    figure.colorbar(picture, ax=axes, label="share of the row", fraction=0.04, pad=0.02)
    return figure


def _name_cells(
    axes: Axes, names: Sequence[str], totals: Int[np.ndarray, " C"], size: int
) -> None:
    shown, places = [_shown(name) for name in names], np.arange(len(names))
    rows = [f"{name} ({total:,})" for name, total in zip(shown, totals, strict=True)]
    axes.set_xticks(places, shown, rotation=90, fontsize=size)
    axes.set_yticks(places, rows, fontsize=size)
    _plain([*axes.get_xticklabels(), *axes.get_yticklabels()])
    # Lines along which one finds row and column.
    axes.set_xticks(places - 0.5, minor=True)
    axes.set_yticks(places - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def _write_shares(axes: Axes, shares: Float[np.ndarray, "C C"]) -> None:
    for row, column in np.argwhere(shares > 0):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        colour = "white" if share > 0.3 else "black"
        place = {"ha": "center", "va": "center", "fontsize": 8}
        axes.text(column, row, text, color=colour, **place)


def _shown(name: str) -> str:
    return one_line(name, _NAME)


def _plain(texts: Sequence[Any]) -> None:
    """Has names taken as they are, dollars too."""
    for text in texts:
        text.set_parse_math(False)
