"""Lists the rows of the papers' tables: `python -m train.tables`.

Each row of the second paper is an argument of train/configs/dcnv2.py. Beside the
paper's AP stand its parameters and multiply-adds, what our networks have, and the AP of
an evaluation that lies in runs/NAME, where a run of that row wrote one.

The paper does not say which network it counted: no network of its text has the figures
of its regular rows. What a row adds to them is exact, so of each column one number, the
baseline, is chosen, and "implied" is that number and what our networks add. "M" is
2^20, "G" is 2^30. Ours of Mask R-CNN is counted with its masks in the parameters; what
rows add is counted without, as the paper does.

Each row of the first paper is an argument of train/configs/dcnv1.py; beside what is
printed stands what a run of it has reached. Of its Table 4 the parameters stand beside
ours, in millions: what offsets add to R-FCN agrees, and three offset convolutions are
248,886, whatever they are added to.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from train.configs import dcnv1, dcnv2
from train.tables import first_paper
from train.tables.columns import IMAGES, UNITS, columns, costs
from train.tables.cost import parameters_of
from train.tables.paper import PRINTED
from train.task import Task
from train.tasks import TASKS

# Figure of the first paper -> where evaluation.json has it.
_PLACES = {
    "mIoU": ("pixels", "mIoU"),
    "mAP50": ("voc", "mAP50_11point"),
    "mAP70": ("voc", "mAP70_11point"),
    "AP": ("bbox", "AP"),
    "AP50": ("bbox", "AP50"),
}


def recorded(runs: Path, arg: str) -> str:
    """Returns the AP that a run of a row has reached, or "-"."""
    places = [("bbox", "AP"), ("segm", "AP")]
    return _figures(runs / dcnv2.get_config(arg).name, places)


def recorded_first(runs: Path, arg: str) -> str:
    """Returns what a run of a row of the first paper has reached, or "-"."""
    places = [_PLACES[name] for name in first_paper.PRINTED[arg].names]
    return _figures(runs / dcnv1.get_config(arg).name, places)


def _figures(run: Path, places: Sequence[tuple[str, str]]) -> str:
    path = run / "evaluation.json"
    if not path.exists():
        return "-"
    groups = json.loads(path.read_text())
    values = [groups[group].get(name) for group, name in places if group in groups]
    return " ".join("-" if v is None else f"{100 * v:.1f}" for v in values) or "-"


def _ap(arg: str) -> str:
    row = PRINTED[arg]
    return f"{row.box:.1f}" + ("" if row.mask is None else f" {row.mask:.1f}")


def _print_costs(table: str, net: str, task: Task, runs: Path) -> None:
    own = costs(table, dcnv2.NETS[net], task)
    bare = costs(table, "faster_rcnn_fpn", task) if net == "mask" else own
    both = columns(table, net, bare)
    print(
        f"\n{table}/{net}, {IMAGES[table][0]} x {IMAGES[table][1]}; baselines "
        f"{both['params'].baseline:.2f} M, {both['flops'].baseline:.1f} G; "
        f"ours {own['regular'].params / 2**20:.2f} M, "
        f"{own['regular'].flops / 2**30:.1f} G"
    )
    print(
        f"{'row':38}{'AP':>11}{'run':>11}"
        f"{'params':>9}{'implied':>9}{'ours':>8}{'G':>9}{'implied':>9}{'ours':>8}"
    )
    for layers in dcnv2.LAYERS:
        arg = f"{table}/{net}/{layers}"
        if arg not in PRINTED:
            continue
        line = f"{arg:38}{_ap(arg):>11}{recorded(runs, arg):>11}"
        shown = "regular" if layers == "roi_pool" else layers
        for name, unit in UNITS.items():
            printed = getattr(PRINTED[arg], name)
            implied = both[name].implied[shown]
            mark = "" if both[name].agrees[shown] else "*"
            ours = getattr(own[layers], name) / unit
            line += f"{printed:9.1f}{f'{implied:.1f}{mark}':>9}{ours:8.1f}"
        print(line)


def _print_first_paper(runs: Path) -> None:
    print(f"\nDCNv1\n{'row':38}{'':>15}{'paper':>12}{'run':>12}")
    for arg, row in first_paper.PRINTED.items():
        names = " ".join(row.names)
        values = " ".join(f"{value:.1f}" for value in row.values)
        print(f"{arg:38}{names:>15}{values:>12}{recorded_first(runs, arg):>12}")
    print(f"\nDCNv1, table 4\n{'network':38}{'paper':>20}{'ours':>20}{'added':>12}")
    for name, row in first_paper.TABLE4.items():
        configs = [dcnv1.get_config(arg) for arg in row.rows]
        ours = [parameters_of(c, TASKS[c.task], row.classes) for c in configs]
        printed = "{:.1f} M {:.1f} M".format(*row.printed)
        counted = " ".join(f"{count / 1e6:.1f} M" for count in ours)
        print(f"{name:38}{printed:>20}{counted:>20}{ours[1] - ours[0]:12,}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of runs"
    )
    runs = parser.parse_args().runs
    task = TASKS["detection"]
    for table in IMAGES:
        for net in dcnv2.NETS:
            _print_costs(table, net, task, runs)
    print(
        "\n*: not what is printed, which no baseline makes agree: taken for a misprint"
    )
    for table, images in (("table3", "val2017"), ("table4", "test-dev; runs val2017")):
        print(f"\n{table}, AP on {images}\n{'row':38}{'AP':>11}{'run':>11}")
        for arg in PRINTED:
            if arg.startswith(table):
                print(f"{arg:38}{_ap(arg):>11}{recorded(runs, arg):>11}")
    _print_first_paper(runs)


if __name__ == "__main__":
    main()
