import errno
import signal
import subprocess
import sys

import pytest

from tests.support.launch import ROOT, environment
from train import workdir

HOLDER = """
import sys, time
from pathlib import Path
from train.workdir import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_until_its_process_dies(tmp_path):
    folder = tmp_path / "runs" / "one"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        said = rf"{folder} is in use by another run \(process {holder.pid} on .+\)"
        with pytest.raises(ValueError, match=said), workdir.claim(folder):
            pass
        # Another folder is another run's.
        with workdir.claim(tmp_path / "two"):
            pass
        holder.kill()
        assert holder.wait() == -signal.SIGKILL
    with workdir.claim(folder):
        pass


def test_a_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), workdir.claim(tmp_path):
        raise KeyError
    with (
        workdir.claim(tmp_path),
        pytest.raises(ValueError, match="is in use"),
        workdir.claim(tmp_path),
    ):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with caplog.at_level("WARNING", logger="train"), workdir.claim(tmp_path):
        pass
    assert "has no locks (No locks available)" in caplog.text


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), workdir.claim(tmp_path / "file"):
        pass
