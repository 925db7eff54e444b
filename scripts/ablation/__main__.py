"""Runs the rows of studies and prints, or writes, their tables; see the package."""

import argparse
import subprocess
import sys
from pathlib import Path

import jax
from flax import nnx

from scripts.ablation.results import Result, read_result, table
from scripts.benchmark.markdown import replace_section
from train.configs import ablation
from train.data import make_source
from train.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "ablation.md"


def start(name: str, folder: Path) -> Path:
    """Trains the network that the rows of a study go on from; returns its file.

    Raises:
      subprocess.CalledProcessError: The program failed.
    """
    config = f"{name}/{ablation.START}"
    file = folder / TASKS[ablation.get_config(config).task].network_file
    if not file.exists():
        _call(
            "train.main",
            f"--config=train/configs/ablation.py:{config}",
            f"--workdir={folder}",
        )
    return file


def run(name: str, seed: int, weights: Path, folder: Path) -> None:
    """Trains STUDY/ROW, or goes on with it, and judges it by the test images.

    Raises:
      subprocess.CalledProcessError: A program failed.
    """
    common = [
        f"--config=train/configs/ablation.py:{name}",
        f"--config.seed={seed}",
        f"--config.init_from={weights}",
        f"--workdir={folder}",
    ]
    _call("train.main", *common)
    _call(
        "train.evaluate",
        *common,
        "--config.data.eval_split=test",
        f"--output={folder / 'test'}",
    )


def count_parameters(name: str) -> int:
    """Returns how many numbers the network of STUDY/ROW learns."""
    config = ablation.get_config(name)
    data = config.data
    source = make_source(
        data.name, data.train_split, ROOT / data.data_dir, **data.options
    )
    task, classes = TASKS[config.task], len(source.categories)
    model = nnx.eval_shape(lambda: task.build(config, classes, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _call(program: str, *flags: str) -> None:
    subprocess.run([sys.executable, "-m", program, *flags], cwd=ROOT, check=True)


def study(name: str, seeds: int, folder: Path) -> list[str]:
    """Runs what is missing of a study; returns the lines of its table."""
    place = folder.absolute() / name
    weights = start(name, place / ablation.START)
    results: dict[str, list[Result]] = {row: [] for row in ablation.STUDIES[name]}
    # Seed by seed, so that a study that is stopped has looked at every row.
    for seed in range(seeds):
        for row, found in results.items():
            of_row = place / row / f"seed{seed}"
            if read_result(of_row) is None:
                run(f"{name}/{row}", seed, weights, of_row)
            result = read_result(of_row)
            assert result is not None
            found.append(result)
    return table(results, {row: count_parameters(f"{name}/{row}") for row in results})


def _markers(name: str) -> tuple[str, str]:
    """Between which the table of a study stands."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def main() -> None:
    """Runs what is missing, then shows the tables."""
    parser = argparse.ArgumentParser(prog="python -m scripts.ablation")
    studies = tuple(ablation.STUDIES)
    parser.add_argument(
        "studies", nargs="*", metavar="STUDY", help=f"of {studies}; all"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--write", action="store_true", help="into docs/ablation.md")
    options = parser.parse_args()
    if unknown := set(options.studies) - set(studies):
        parser.error(f"no studies: {sorted(unknown)}; expected some of {studies}")
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; expected at least 1")
    chosen = options.studies or studies
    if options.write:
        document = DOCUMENT.read_text() if DOCUMENT.exists() else ""
        lacking = [m for name in chosen for m in _markers(name) if m not in document]
        if lacking:
            parser.error(f"--write: {DOCUMENT} lacks {', '.join(lacking)}")
    for name in chosen:
        text = "\n".join(study(name, options.seeds, options.folder))
        print(text)
        if options.write:
            replace_section(DOCUMENT, text, *_markers(name))


if __name__ == "__main__":
    main()
