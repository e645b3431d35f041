"""Tests of writing the file that a user named: whole, through links, into pipes, or not at all."""

import os
import threading
from pathlib import Path

import pytest

from mmar_jobs.errors import SettingsError
from mmar_jobs.output import write_output


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """Folders are made, nothing else is left, and half a surrogate pair is no obstacle."""
    path = tmp_path / "sub" / "page.html"
    write_output(path, "old and longer")
    write_output(path, "new \ud800")
    assert "new ?" == path.read_text()
    assert [path] == list(path.parent.iterdir())


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it points to is written, be it there or not."""
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"first", b"second"):
        write_output(link, content)
        assert link.is_symlink()
        assert content == target.read_bytes()


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    """What is no file is never replaced by one: else --html /dev/null would be its end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_output(pipe, b"hello")
    reader.join()
    assert [b"hello"] == read
    assert pipe.is_fifo()


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A folder, and a file where a folder is needed; nothing half-written stays."""
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path, tmp_path / "file" / "page.html"):
        with pytest.raises(SettingsError, match=f"cannot write {path}: .*choose another place"):
            write_output(path, "x")
    assert "kept" == (tmp_path / "file").read_text()
    assert [tmp_path / "file"] == list(tmp_path.iterdir())
