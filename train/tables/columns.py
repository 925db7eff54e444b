"""What rows of the paper's tables add, beside the figures that it prints."""

from collections.abc import Mapping
from typing import NamedTuple

from train.configs import dcnv2
from train.tables.cost import Cost, cost_of
from train.tables.paper import PRINTED
from train.task import Task

_CLASSES = 80
UNITS = {"params": 2**20, "flops": 2**30}
# The paper's images: the shorter side, and the cap of the longer one.
IMAGES = {"table1": (1000, 1667), "table2": (800, 1333)}


class Column(NamedTuple):
    """One printed figure of the rows of a table and a net.

    Attributes:
      baseline: The regular network, by the number that agrees with most rows.
      implied: Row -> the baseline and what the row adds.
      agrees: Row -> whether that is printed.
    """

    baseline: float
    implied: dict[str, float]
    agrees: dict[str, bool]


def column(printed: Mapping[str, float], added: Mapping[str, int], unit: int) -> Column:
    """Chooses the baseline of a column.

    Args:
      printed: Row -> figure, in units, with one decimal.
      added: Row -> what it has beyond the regular network.
      unit: Numbers in a unit.
    """
    half = 0.05
    # Baselines that print as each row does: from the first to before the second.
    ranges = {
        row: (value - half - added[row] / unit, value + half - added[row] / unit)
        for row, value in printed.items()
    }

    def agreeing(baseline: float) -> list[str]:
        return [r for r, (low, high) in ranges.items() if low <= baseline < high]

    best = max((low for low, _ in ranges.values()), key=lambda low: len(agreeing(low)))
    rows = agreeing(best)
    baseline = (best + min(ranges[row][1] for row in rows)) / 2
    implied = {row: baseline + added[row] / unit for row in printed}
    return Column(baseline, implied, {row: row in rows for row in printed})


def costs(table: str, network: str, task: Task) -> dict[str, Cost]:
    """Counts the networks of a table's rows: layers -> cost."""
    side = dcnv2.TABLES[table][0]
    return {
        layers: cost_of(
            dcnv2.make_config(network, dcnv2.LAYERS[layers], side),
            task,
            _CLASSES,
            IMAGES[table],
        )
        for layers in dcnv2.LAYERS
    }


def columns(table: str, net: str, counted: Mapping[str, Cost]) -> dict[str, Column]:
    """Sets what our networks add beside the printed figures: "params" and "flops".

    Args:
      table: "table1" or "table2".
      net: A key of dcnv2.NETS.
      counted: Layers -> cost, of networks without masks.
    """
    # The first two rows differ in nothing that counts.
    rows = [
        layers
        for layers in dcnv2.LAYERS
        if layers != "roi_pool" and f"{table}/{net}/{layers}" in PRINTED
    ]
    found = {}
    for name, unit in UNITS.items():
        printed = {r: getattr(PRINTED[f"{table}/{net}/{r}"], name) for r in rows}
        regular = getattr(counted["regular"], name)
        added = {r: getattr(counted[r], name) - regular for r in rows}
        found[name] = column(printed, added, unit)
    return found
