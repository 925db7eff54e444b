"""Starting the programs of train as a user does, with the fast double inside."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--config=train/configs/digits.py",
    "--config.steps=24",
    "--config.data.options.train_images=24",
    "--config.data.options.test_images=8",
    "--config.data.canvases=((64,64),)",
    "--config.data.short_sides=(48,64)",
    "--config.data.eval_short_side=64",
    "--config.log.every=4",
    "--config.log.offset_health_every=8",
    "--config.checkpoint.every=6",
    "--config.eval.every=0.5",
    "--config.eval.batch_size=4",
    "--config.eval.pictures=2",
)


def environment(devices=1):
    """Returns the environment of a process with so many CPU devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Most of a short run is compilation.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }


def start(program, *flags, data, workdir, devices=1):
    """Starts a program; its output can be read from the process.

    "tests.support.double train.evaluate" is train.evaluate with the double.
    """
    return subprocess.Popen(
        [
            *(sys.executable, "-m", *program.split(), *FLAGS),
            *(f"--config.data.data_dir={data}", f"--workdir={workdir}", *flags),
        ],
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=240):
    """Returns (exit status, stderr) of a process."""
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


def run(program, *flags, **options):
    """Runs a program to its end; returns (exit status, stderr)."""
    return finish(start(program, *flags, **options))
