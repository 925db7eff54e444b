"""What reading files costs, as the kernel counts it: in processes of their own."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from dcn_jax.weights import read_detector
from dcn_jax.weights.detector import missing_variables
from dcn_jax.weights.torch_writer import write_pth
from tests.support import launch
from tests.support import owner_networks as owners
from tests.support.torch_files import write_legacy

# Prints the peak, in bytes beyond what the process had before, for each file.
_PROGRAM = """
import sys
from dcn_jax.weights import read_state_dict
import safetensors
from scripts.fuzz_files.bounded import Bounds, run_case
for path in sys.argv[1:]:
    outcome = run_case(lambda: read_state_dict(path), Bounds(100, 1 << 30))
    print(outcome.memory if outcome.kind == "read" else outcome)
"""


def peaks(paths):
    process = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, paths)],
        cwd=launch.ROOT,
        env=launch.environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return list(map(int, process.stdout.split()))


def written(folder, tensors):
    """The tensors in every format."""
    paths = [folder / name for name in ("zip.pth", "legacy.pth", "a.safetensors")]
    write_pth(paths[0], tensors)
    write_legacy(paths[1], {"meta": {"epoch": 12}, "state_dict": tensors})
    save_file(tensors, paths[2])
    for protocol in (2, 4, 5):
        paths.append(folder / f"{protocol}.pkl")
        with open(paths[-1], "wb") as file:
            pickle.dump({"model": tensors}, file, protocol=protocol)
    return paths


def test_a_file_is_held_once(tmp_path):
    rng = np.random.default_rng(0)
    # Bytes of all values, and zeros, which the text of protocol 2 writes shorter.
    tensors = {f"layer{i}": np.zeros(1 << 20, np.float32) for i in range(4)}
    tensors |= {f"head{i}": rng.random(1 << 20, np.float32) for i in range(4)}
    paths = written(tmp_path, tensors)
    for path, peak in zip(paths, peaks(paths), strict=True):
        assert peak < 1.3 * os.path.getsize(path), path.name


@pytest.mark.slow
@pytest.mark.parametrize("owner", ["mmdetection", "detectron2"])
def test_deformable_detectors_of_full_size(tmp_path, owner):
    body, masks = owners.R50._replace(branch=27), False
    if owner == "detectron2":
        body, masks = owners.R50._replace(branch=18), True
    shapes = getattr(owners, owner)(body, masks=masks)
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    paths = written(tmp_path, tensors)
    for path, peak in zip(paths, peaks(paths), strict=True):
        assert peak < 1.3 * os.path.getsize(path), path.name
        detector = read_detector(path)
        assert detector.owner == owner and not detector.unused
        assert missing_variables(detector) == ()
        assert len(detector.variables) + len(detector.ignored) == len(shapes)


@pytest.mark.slow
def test_fuzzed_files(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "scripts.fuzz_files", "weights"),
            *("--seconds=20", f"--keep={tmp_path}"),
        ],
        cwd=launch.ROOT,
        env=launch.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
