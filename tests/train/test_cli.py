"""What the programs print of a mistake."""

import subprocess
import sys

from tests.support.launch import ROOT, environment


def test_an_error_is_one_short_printable_line(tmp_path):
    name = "\x1b[31m" * 1000 + "\n"
    run = subprocess.run(
        [sys.executable, "-m", "train.main", f"--config={tmp_path}/{name}.py"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 2000
