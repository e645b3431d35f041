"""What only a store in a folder does: full disks, refused folders, links and what a kill leaves."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmar_jobs.errors import DataError, SettingsError, TryAgain
from mmar_jobs.store import Store, disk, open_store

from .conftest import Place

DISK_BYTES = 256 << 10
TWO_HOURS_S = 7200.0


@pytest.fixture
def here(places: Callable[[str], Place]) -> Place:
    """The place in a folder."""
    return places("file")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of `store`, resolved."""
    return tmp_path.resolve() / "store"


@pytest.fixture
def store(folder: Path) -> Store:
    """An empty store in `folder`."""
    return open_store(str(folder))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB; skips where this user may not mount one."""
    mountpoint = tmp_path / "disk"
    mountpoint.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(mountpoint)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs: a full disk is not tested here")
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=True)


def test_a_folder_never_imports_boto3(tmp_path: Path) -> None:
    """A laptop run does not pay 0.3 s for a client that it never uses."""
    code = (
        "import sys; from mmar_jobs.store import open_store, read_uri\n"
        "store = open_store(sys.argv[1]); store.write('a', b'1'); assert store.list('') == ['a']\n"
        "assert not {'boto3', 'botocore', 's3transfer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_full_disk_asks_to_try_again_and_keeps_what_was_done(small_disk: Path) -> None:
    """Old bytes stay, no trace of the failed write does, and small writes still work after it."""
    store = open_store(str(small_disk))
    store.write("done", b"1")
    too_much = b"x" * DISK_BYTES
    for write in (
        store.write,
        store.write_new,
        lambda key, data: store.write_parts(key, [memoryview(data)]),
    ):
        with pytest.raises(TryAgain, match=r"disk full: cannot write .*free space") as caught:
            write("big", too_much)
        assert "\n" not in str(caught.value)
    with pytest.raises(TryAgain, match="disk full"):
        store.write("done", too_much)
    assert ["done"] == store.list("")
    assert b"1" == store.read("done")
    assert ["done"] == [path.name for path in small_disk.iterdir()]
    store.write("more", b"2")


def test_a_disk_filled_by_upload_download_or_lease_says_so(
    small_disk: Path, moto: Place, tmp_path: Path
) -> None:
    """Every way to write a disk ends in the same words, downloads from S3 included."""
    big = tmp_path / "big"
    big.write_bytes(b"x" * 2 * DISK_BYTES)
    store, bucket, other = open_store(str(small_disk)), moto.open(), open_store(str(tmp_path))
    bucket.upload(big, "big")
    with pytest.raises(TryAgain, match="disk full"):
        store.upload(big, "big")
    for source in (bucket, other):
        with pytest.raises(TryAgain, match="disk full"):
            source.download("big", small_disk / "big")
    assert [] == list(small_disk.iterdir())
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (small_disk / "filler").write_bytes(b"x" * 2 * DISK_BYTES)
    with pytest.raises(TryAgain, match="disk full"), store.lease("runs/demo"):
        raise AssertionError("a lease without room for its owner")


def test_a_folder_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    """Below a file and below /proc nobody can write, root included."""
    (tmp_path / "file").touch()
    for root in (f"{tmp_path}/file/below", "/proc/mmar"):
        store = open_store(root)
        assert not store.exists("a")
        assert [] == store.list("")
        calls: list[Callable[[], object]] = [
            lambda store=store: store.write("a", b""),  # type: ignore[misc]
            lambda store=store: store.write_new("a", b""),  # type: ignore[misc]
            lambda store=store: store.lease("a").__enter__(),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(SettingsError, match=r"cannot (write|lock) .*choose another place"):
                call()
    with pytest.raises(SettingsError, match="is a file: choose a folder"):
        open_store(f"{tmp_path}/file")


def test_a_key_below_another_key_is_refused(store: Store) -> None:
    """No file system holds both a and a/b: the error comes at once and changes nothing."""
    store.write("a", b"1")
    with pytest.raises(SettingsError, match="a/b"):
        store.write("a/b", b"2")
    store.write("c/d", b"3")
    with pytest.raises(SettingsError, match="/c: is a directory"):
        store.write("c", b"4")
    assert ["a", "c/d"] == store.list("")


def test_links_that_leave_the_root_are_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    """A link to a secret outside, a linked folder and a loop of links are all data errors."""
    (tmp_path / "secret").write_bytes(b"secret")
    store.write("inside/a", b"1")
    (folder / "file").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    for key in ("file", "folder/secret", "folder/absent", "loop"):
        with pytest.raises(DataError, match=r"out of .* by a symbolic link"):
            store.read(key)
        with pytest.raises(DataError, match=r"out of .* by a symbolic link"):
            store.write(key, b"2")
    assert ["inside/a"] == store.list("")
    assert b"secret" == (tmp_path / "secret").read_bytes()


def test_links_within_the_root_work(store: Store, folder: Path) -> None:
    """Data sets come as trees of links; those that stay inside can be read."""
    store.write("blobs/1", b"1")
    (folder / "audio").symlink_to("blobs")
    assert b"1" == store.read("audio/1")


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    """A linked store is the store that it links to."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert open_store(str(tmp_path / "real")).uri == open_store(str(tmp_path / "link")).uri


def test_a_writer_killed_half_way_leaves_only_a_hidden_file(here: Place) -> None:
    """Half a file is on the disk, yet no reader sees it; once it is old, list removes it."""
    code = """
from mmar_jobs.store import disk
def fill(file):
    file.write(b"half"); file.flush(); print("half", flush=True); time.sleep(60)
disk.replace_file(Path(sys.argv[1].removeprefix("file://")) / "data", fill)
"""
    uri = here.fresh_uri()
    store = here.open(uri)
    store.write("data", b"old and whole")
    with here.python(code, uri) as writer:
        assert writer.stdout
        assert "half\n" == writer.stdout.readline()
    folder = Path(uri.removeprefix("file://"))
    assert b"old and whole" == store.read("data")
    assert ["data"] == store.list("")
    (rest,) = (path for path in folder.iterdir() if path.name != "data")
    assert rest.name.startswith(".mmar-tmp-")
    assert b"half" == rest.read_bytes()
    old = time.time() - TWO_HOURS_S
    os.utime(rest, (old, old))
    assert ["data"] == store.list("")
    assert [folder / "data"] == list(folder.iterdir())


def test_a_download_clears_what_killed_downloads_left(store: Store, tmp_path: Path) -> None:
    """A model folder does not fill up with half adapters; a running download is left alone."""
    store.write("a", b"1")
    target = tmp_path / "models" / "a"
    store.download("a", target)
    for name, age_s in (("old", TWO_HOURS_S), ("young", 0.0)):
        rest = target.parent / f".mmar-tmp-{name}"
        rest.touch()
        os.utime(rest, (time.time() - age_s,) * 2)
    store.download("a", target)
    assert [".mmar-tmp-young", "a"] == sorted(path.name for path in target.parent.iterdir())


def test_a_forked_worker_does_not_keep_the_lease_of_its_killed_parent(here: Place) -> None:
    """A data worker inherits the lock's descriptor; without care it would block the restart."""
    code = """
with store.lease("runs/demo"):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""
    uri = here.fresh_uri()
    with here.python(code, uri) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            with here.open(uri).lease("runs/demo"):
                os.kill(child, 0)  # it is still there
        finally:
            os.kill(child, signal.SIGKILL)


def test_new_files_have_the_permissions_of_the_umask(store: Store, folder: Path) -> None:
    """Temporary files are private by habit; a shared store needs what the user's umask says."""
    (folder.parent / "plain").touch()
    store.write("a", b"1")
    assert (folder.parent / "plain").stat().st_mode == (folder / "a").stat().st_mode


def test_a_passing_fault_of_the_disk_asks_to_try_again() -> None:
    """An input/output error is neither the user's setting nor their data."""
    expected = "cannot read x: input/output error: run the same command"
    with pytest.raises(TryAgain, match=expected), disk.explained("read", "x"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
