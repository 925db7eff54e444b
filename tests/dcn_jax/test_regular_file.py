"""Opening of files that somebody names."""

import os
import socket

import pytest

from dcn_jax.regular_file import open_regular


def test_regular_files_are_opened(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    link = tmp_path / "link"
    link.symlink_to(path)
    for name in (path, str(path), link):
        with open_regular(name, max_bytes=7) as file:
            assert file.read() == b"content"


def test_what_does_not_end_is_refused(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    link = tmp_path / "link"
    link.symlink_to(fifo)
    for path, kind in (
        (fifo, "a pipe"),
        (link, "a pipe"),
        ("/dev/zero", "a device"),
        ("/dev/null", "a device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(ValueError, match=f"{path}' is {kind}.*; expected a reg"):
            open_regular(path, max_bytes=10)
    with socket.socket(socket.AF_UNIX) as server:
        name = os.path.relpath(tmp_path / "socket")
        server.bind(name)
        with pytest.raises(ValueError, match="socket"):
            open_regular(name, max_bytes=10)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    file, path = tmp_path / "file", tmp_path / "fifo"
    file.touch()
    os.mkfifo(path)
    before = os.stat(file)
    # As if it were exchanged between the check and the opening.
    monkeypatch.setattr("dcn_jax.regular_file.os.stat", lambda _: before)
    with pytest.raises(ValueError, match="a pipe"):
        open_regular(path, max_bytes=10)


def test_large_files_are_refused(tmp_path):
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 10 * 10**9)  # sparse
    with pytest.raises(ValueError, match=r"has 10000000000 bytes; expected at most 8"):
        open_regular(path, max_bytes=8)
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_regular(tmp_path / "nothing", max_bytes=8)
