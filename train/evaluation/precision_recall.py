"""Precision over recall, by category.

Shape letters: C categories, R recalls.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

# As COCO takes them.
RECALLS = np.linspace(0, 1, 101)


class PrecisionRecall(NamedTuple):
    """The best precision at each of `RECALLS` or a higher one, as AP is made of it."""

    names: Sequence[str]  # of the categories
    # What counts as a hit, such as "IoU 0.50" -> [C, R]; NaN where there is nothing to
    # find.
    precision: dict[str, Float[np.ndarray, "C R"]]

    def mean(self, rule: str) -> Float[np.ndarray, " R"]:
        """The mean over the categories in which there is something to find, else NaN.

        Args:
          rule: A key of `precision`.
        """
        curves = self.precision[rule]
        known = ~np.isnan(curves[:, 0])
        return curves[known].mean(0) if known.any() else np.full(len(RECALLS), np.nan)

    def as_json(self) -> dict[str, Any]:
        """Returns rule -> the mean curve, and those by category; None for no curve."""
        return {
            rule: {
                "mean": _numbers(self.mean(rule)),
                "by_class": {
                    name: _numbers(curve)
                    for name, curve in zip(self.names, curves, strict=True)
                },
            }
            for rule, curves in self.precision.items()
        }


def _numbers(curve: Float[np.ndarray, " R"]) -> list[float] | None:
    return None if np.isnan(curve).any() else curve.tolist()
