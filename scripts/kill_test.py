"""Kills a short run again and again, and compares where it ends with an unkilled one.

    python -m scripts.kill_test [--kills 5] [--seed 0] [--folder DIR] [-- FLAGS ...]

Every other kill strikes while a checkpoint is being written, the rest at random moments
of a launch. FLAGS go to the run, after those of a small demo. Ends with status 1 where
a parameter, a number of the optimiser or a line of metrics.jsonl differs by one bit.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from train.checkpoint import read_arrays

ROOT = Path(__file__).resolve().parent.parent
# Seconds that a launch may take.
_PATIENCE = 1800
SMALL_RUN = (
    "--config=train/configs/digits.py",
    "--config.steps=24",
    "--config.batch_size=2",
    "--config.data.options.train_images=40",
    "--config.data.options.test_images=8",
    "--config.data.canvases=((128,128),)",
    "--config.data.short_sides=(112,128)",
    "--config.data.eval_short_side=128",
    "--config.backbone.depths=(1,1,1,1)",
    "--config.backbone.stem_features=16",
    "--config.checkpoint.every=3",
    "--config.log.every=3",
    "--config.log.offset_health_every=0",
    "--config.eval.batch_size=8",
)


def launch(program: str, workdir: Path, flags: list[str]) -> subprocess.Popen:
    """Starts the run, or continues it."""
    command = [sys.executable, "-m", program, *flags, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT)


def saving(workdir: Path) -> bool:
    """Returns whether an unfinished checkpoint lies in the folder."""
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def wait_for_save(run: subprocess.Popen, workdir: Path) -> None:
    """Returns within a save of a run, or when the run has ended."""
    # What a kill left behind is no save of this launch: wait for it to be cleared.
    while run.poll() is None and saving(workdir):
        time.sleep(0.001)
    while run.poll() is None and not saving(workdir):
        time.sleep(0.001)


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """Returns every array of the newest checkpoint, under its name."""
    steps = (workdir / "checkpoints").glob("[0-9]*")
    last = max(int(path.name) for path in steps if path.suffix == "")
    arrays = read_arrays(workdir / "checkpoints" / str(last))
    return arrays | {"last step": np.asarray(last)}


def log_of(workdir: Path) -> list[dict]:
    """Returns metrics.jsonl without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k != "images/s"} for r in records]


def main() -> int:
    """Runs the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--program", default="train.main")
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    straight, killed = folder / "straight", folder / "killed"
    data = f"--config.data.data_dir={folder / 'data'}"
    flags = [*SMALL_RUN, data, *arguments.flags]

    run = launch(arguments.program, straight, flags)
    started = time.monotonic()
    if run.wait(_PATIENCE) != 0:
        return 1
    seconds = time.monotonic() - started
    for i in range(arguments.kills):
        run = launch(arguments.program, killed, flags)
        if i % 2 == 0:
            wait_for_save(run, killed)
            time.sleep(chance.uniform(0, 0.05))
            moment = f"during a save: {saving(killed)}"
        else:
            # Restarts do less than the whole run.
            time.sleep(chance.uniform(0.2, 0.7) * seconds)
            moment = "at a random moment"
        run.send_signal(signal.SIGKILL)
        status = run.wait()
        print(f"kill {i + 1} {moment}, status {status}", flush=True)
    if launch(arguments.program, killed, flags).wait(_PATIENCE) != 0:
        return 1

    expected, found = final_state(straight), final_state(killed)
    differing = [
        name
        for name in expected.keys() | found.keys()
        if name not in expected
        or name not in found
        or expected[name].tobytes() != found[name].tobytes()
    ]
    if differing:
        print(f"{len(differing)} arrays differ: {sorted(differing)[:10]}")
    logs_equal = log_of(straight) == log_of(killed)
    if not logs_equal:
        print("metrics.jsonl differs")
    if differing or not logs_equal:
        return 1
    print(f"{len(expected)} arrays and {len(log_of(straight))} log lines are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
