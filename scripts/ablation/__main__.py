"""Runs the rows and prints, or writes, the table; see the package."""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
from flax import nnx

from scripts.ablation.results import Result, read_result, table
from scripts.benchmark.markdown import replace_section
from train.configs import ablation
from train.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "ablation.md"
BEGIN, END = "<!-- ablation: begin -->", "<!-- ablation: end -->"


def run(row: str, seed: int, folder: Path, flags: list[str]) -> None:
    """Trains a row, or goes on with it, and judges it by the test images.

    Raises:
      subprocess.CalledProcessError: A program failed.
    """
    common = [
        f"--config=train/configs/ablation.py:{row}",
        f"--config.seed={seed}",
        f"--workdir={folder}",
        *flags,
    ]
    _call("train.main", *common)
    _call(
        "train.evaluate",
        *common,
        "--config.data.eval_split=test",
        f"--output={folder / 'test'}",
    )


def count_parameters(row: str) -> int:
    """Returns how many numbers a row's network learns."""
    config = ablation.get_config(row)
    task = TASKS[config.task]
    model = nnx.eval_shape(lambda: task.build(config, 10, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _call(program: str, *flags: str) -> None:
    subprocess.run([sys.executable, "-m", program, *flags], cwd=ROOT, check=True)


def main() -> None:
    """Runs what is missing, then shows the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.ablation")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(ablation.ROWS))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--write", action="store_true", help="into docs/ablation.md")
    parser.add_argument("flags", nargs="*", help="of every run, after --")
    options = parser.parse_args()
    rows = options.rows.split(",")
    results: dict[str, list[Result]] = {row: [] for row in rows}
    # Seed by seed, so that a study that is stopped has looked at every row.
    for seed in range(options.seeds):
        for row in rows:
            folder = options.folder.absolute() / row / f"seed{seed}"
            if read_result(folder) is None:
                run(row, seed, folder, options.flags)
            found = read_result(folder)
            assert found is not None
            results[row].append(found)
    lines = table(results, {row: count_parameters(row) for row in rows})
    print("\n".join(lines))
    if options.write:
        replace_section(DOCUMENT, "\n".join(lines), BEGIN, END)


if __name__ == "__main__":
    main()
