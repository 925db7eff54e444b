"""Files that are replaced whole."""

import pytest

from train.whole_file import whole_file, write_whole


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    for content in ("é\n", b"\x00\xff"):
        write_whole(path, content)
        data = content.encode() if isinstance(content, str) else content
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_stays_where_there_is_no_space(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    # Every write to this device says that it is full.
    (tmp_path / "a.json.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*/a\.json'$"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_mistake_on_the_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="of its own"), whole_file(path) as temporary:
        temporary.write_text("half")
        raise ValueError("of its own")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
