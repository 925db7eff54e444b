"""Kills a short run again and again, and compares where it ends with an unkilled one.

    python -m scripts.kill_test [--kills 5] [--seed 0] [--folder DIR] [-- FLAGS ...]

Every other kill strikes while a checkpoint is being written, the rest at random moments
of a launch. FLAGS go to the run, after those of a small demo. Ends with status 1 where
a parameter, a number of the optimiser or a line of metrics.jsonl differs by one bit;
and where a run ended before its kill, or no kill left an unfinished checkpoint.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from train.checkpoint import read_arrays

ROOT = Path(__file__).resolve().parents[2]
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
    "--config.model.backbone.depths=(1,1,1,1)",
    "--config.model.backbone.stem_features=16",
    "--config.checkpoint.every=3",
    "--config.log.every=3",
    "--config.log.offset_health_every=0",
    "--config.eval.batch_size=8",
)


def launch(program: str, workdir: Path, flags: list[str]) -> subprocess.Popen:
    """Starts the run, or continues it."""
    command = [sys.executable, "-m", program, *flags, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT)


def finish(run: subprocess.Popen) -> None:
    """Waits for the end of a run; ends the test where that fails or takes too long."""
    try:
        status = run.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        sys.exit(f"a run was not done after {_PATIENCE} s")
    if status != 0:
        sys.exit(f"a run that nothing killed ended with status {status}")


def saving(workdir: Path) -> bool:
    """Returns whether an unfinished checkpoint lies in the folder."""
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def logged(workdir: Path) -> int:
    """Returns the newest step in metrics.jsonl, or 0."""
    path = workdir / "metrics.jsonl"
    # A last line without its end is being written, or was when a kill struck.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_until(run: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Returns when the condition holds, the run has ended or patience is at its end."""
    end = time.monotonic() + _PATIENCE
    while run.poll() is None and not condition() and time.monotonic() < end:
        time.sleep(0.001)


def kill(run: subprocess.Popen) -> None:
    """Kills a run; ends the test where it had ended before."""
    run.kill()
    status = run.wait()
    if status != -signal.SIGKILL:
        sys.exit(f"a run ended by itself, with status {status}, before it was killed")


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
    own = (
        f"--config.data.data_dir={folder / 'data'}",
        # Restarts compile nothing, so that random moments are moments of training.
        f"--config.compile_cache={folder / 'programs'}",
    )
    flags = [*SMALL_RUN, *own, *arguments.flags]

    started = time.monotonic()
    finish(launch(arguments.program, straight, flags))
    seconds = time.monotonic() - started
    steps = logged(straight)
    torn = 0
    for i in range(arguments.kills):
        before = logged(killed)
        run = launch(arguments.program, killed, flags)
        if i % 2 == 0:
            # What a kill left behind is no save of this launch: it is cleared first.
            wait_until(run, lambda: not saving(killed))
            wait_until(run, lambda: saving(killed))
            time.sleep(chance.uniform(0, 0.02))
            kill(run)
            unfinished = saving(killed)
            torn += unfinished
            moment = "during a save" if unfinished else "just after a save"
        else:
            # At a moment of its own, but with steps left for the kills to come.
            last = before + (steps - before) // (arguments.kills - i + 1)
            end = time.monotonic() + chance.uniform(0.1, 1.0) * seconds
            wait_until(
                run,
                lambda last=last, end=end: (
                    logged(killed) > last or time.monotonic() > end
                ),
            )
            kill(run)
            moment = "at a random moment"
        print(f"kill {i + 1} {moment}; step {logged(killed)} is logged", flush=True)
    if not torn:
        sys.exit("no kill struck during a save")
    finish(launch(arguments.program, killed, flags))

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
