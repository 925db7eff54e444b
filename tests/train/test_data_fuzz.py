"""Drawn files of a data set are read, or refused in one line, within bounds."""

import subprocess
import sys

import pytest

from tests.support import launch


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["annotations", "images", "labels"])
def test_fuzzed_files(kind, tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "scripts.fuzz_files", kind),
            *("--seconds=20", f"--keep={tmp_path}"),
        ],
        cwd=launch.ROOT,
        env=launch.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
