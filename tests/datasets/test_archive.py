"""Tests of unpacking: what is well meant comes out whole, everything else is refused by name."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.datasets.archive import Limits, Unpacked, safe_parts, unpack
from mmar_jobs.errors import DataError

FILES = {"audio/a.wav": b"RIFF" * 100, "./audio/deep/b.wav": b"", "note é.txt": b"hello"}


def tar_bytes(
    *members: tuple[tarfile.TarInfo, bytes], packed: bool = True, form: int = tarfile.PAX_FORMAT
) -> bytes:
    """A tar of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else info.size
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0) if packed else buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: object) -> tarfile.TarInfo:
    """A member's header."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in values.items():
        setattr(info, field, value)
    return info


def zip_bytes(
    files: dict[str, bytes], *, mode: int = 0, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """A zip of these files, each with these Unix mode bits."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as zipped:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = method
            zipped.writestr(info, data)
    return buffer.getvalue()


def refused(tmp_path: Path, data: bytes, limits: Limits | None = None) -> str:
    """Unpack what must be refused without a trace, and return why."""
    archive = tmp_path / "given.archive"
    archive.write_bytes(data)
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        unpack(archive, folder, limits=limits)
    assert [] == list(folder.iterdir())
    assert {archive, folder} == set(tmp_path.iterdir())
    return str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tar_bytes(*((member(name), data) for name, data in FILES.items())),
        lambda: tar_bytes(*((member(name), data) for name, data in FILES.items()), packed=False),
        lambda: tar_bytes(
            *((member(name), data) for name, data in FILES.items()), form=tarfile.GNU_FORMAT
        ),
        lambda: zip_bytes(FILES),
        lambda: zip_bytes(FILES, mode=stat.S_IFREG | 0o4777, method=zipfile.ZIP_STORED),
    ],
)
def test_what_is_well_meant_comes_out_whole(make: Callable[[], bytes], tmp_path: Path) -> None:
    """tar, tar.gz and zip give the same files, without set-uid bits, and count them."""
    archive = tmp_path / "x.archive"
    archive.write_bytes(make())
    counted: list[int] = []
    found = unpack(archive, tmp_path / "out", advance=counted.append)
    assert Unpacked(3, 405) == found
    assert 3 == sum(counted)
    out = tmp_path / "out"
    got = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    assert {name.removeprefix("./"): data for name, data in FILES.items()} == {
        name: path.read_bytes() for name, path in got.items()
    }
    assert all(path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID) == 0 for path in got.values())


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "/etc/evil", "a/../../evil", "a/..", "C:/evil", "a\\..\\evil", "a\nb"),
        *("", ".", "./", "x" * 256, "a\x1b[2Jb", "a\x7f"),
    ],
)
def test_a_path_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    """Neither tar nor zip may name a place outside the folder, nor a name that hides something."""
    assert () == safe_parts(name)
    if name:
        reason = "unsafe path"
        assert reason in refused(tmp_path, tar_bytes((member("ok"), b"1"), (member(name), b"x")))
    if name and "\\" not in name and not name.endswith("/"):
        assert "unsafe path" in refused(tmp_path, zip_bytes({"ok": b"1", name: b"x"}))


@given(st.text(min_size=1, max_size=40))
def test_a_safe_path_stays_in_the_folder(name: str) -> None:
    """Whatever the name, its safe parts lead to a place below the folder."""
    parts = safe_parts(name)
    if parts:
        inside = os.path.normpath(os.path.join("/folder", *parts))  # noqa: PTH118 - by text alone
        assert inside.startswith("/folder/")


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "device"),
        (tarfile.GNUTYPE_SPARSE, "special file"),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, word: str, tmp_path: Path) -> None:
    """A link could lead the next member out of the folder, so none is unpacked at all."""
    evil = member("audio", kind, linkname="/etc")
    form = tarfile.GNU_FORMAT
    data = tar_bytes((member("ok"), b"1"), (evil, b""), (member("audio/x"), b"x"), form=form)
    if kind == tarfile.GNUTYPE_SPARSE:
        assert "refused" in refused(tmp_path, data) or "broken" in refused(tmp_path, data)
    else:
        assert f"which is a {word}" in refused(tmp_path, data)


@pytest.mark.parametrize(
    ("mode", "word"), [(stat.S_IFLNK, "link"), (stat.S_IFCHR, "special"), (stat.S_IFIFO, "special")]
)
def test_links_and_devices_in_a_zip_are_refused(mode: int, word: str, tmp_path: Path) -> None:
    """A zip says what a member is in its Unix mode bits."""
    reason = refused(tmp_path, zip_bytes({"audio": b"/etc"}, mode=mode | 0o777))
    assert f"which is a {word}" in reason


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    """100 MiB of zeros in 100 KiB are refused at the ratio, in tar.gz and zip."""
    zeros = bytes(100 << 20)
    for data in (tar_bytes((member("zeros"), zeros)), zip_bytes({"zeros": zeros})):
        assert "100 times its size" in refused(tmp_path, data)


def test_nested_bombs_stay_packed(tmp_path: Path) -> None:
    """An archive inside an archive is a file like any other."""
    archive = tmp_path / "x.zip"
    archive.write_bytes(zip_bytes({"inner.zip": zip_bytes({"zeros": bytes(1 << 20)})}))
    assert 1 == unpack(archive, tmp_path / "out").num_files


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(num_files=2), "more than 2 files"),
        (Limits(total_bytes=300), "more than 300 bytes"),
        (Limits(file_bytes=300), "of more than 300 bytes"),
    ],
)
@pytest.mark.parametrize("packed", ["tar", "zip"])
def test_limits_hold(limits: Limits, reason: str, packed: str, tmp_path: Path) -> None:
    """Files, bytes in all and bytes of one file are limited, each with its own reason."""
    members = [(member(name), data) for name, data in FILES.items()]
    data = tar_bytes(*members) if packed == "tar" else zip_bytes(FILES)
    assert reason in refused(tmp_path, data, limits)


def test_what_an_archive_says_of_itself_is_not_believed(tmp_path: Path) -> None:
    """A zip that declares 10 bytes for 1 MiB is broken, not unpacked."""
    data = bytearray(zip_bytes({"lies": bytes(1 << 20)}))
    for start in (data.find(b"PK\x03\x04") + 22, data.find(b"PK\x01\x02") + 24):
        data[start : start + 4] = (10).to_bytes(4, "little")
    assert "broken" in refused(tmp_path, bytes(data))


def test_a_header_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    """A long name would be read into memory as long as it says it is."""
    header = member("x" * 10, tarfile.GNUTYPE_LONGNAME, size=8 << 30)
    data = header.tobuf(tarfile.GNU_FORMAT) + b"n" * (8 << 20)
    assert "header of more than 1 MiB" in refused(tmp_path, gzip.compress(data))


@pytest.mark.parametrize("second", ["a", "A/../a", "a/b"])
def test_a_name_given_twice_is_refused(second: str, tmp_path: Path) -> None:
    """The second could replace the first after it was looked at."""
    data = tar_bytes((member("a"), b"1"), (member(second), b"2"))
    assert "refused" in refused(tmp_path, data)


@pytest.mark.parametrize("make", [lambda: tar_bytes((member("a"), os.urandom(9000))),
                                  lambda: zip_bytes({"a": os.urandom(9000)})])  # fmt: skip
def test_a_cut_archive_is_broken(make: Callable[[], bytes], tmp_path: Path) -> None:
    """An archive that ends too early says so, and leaves nothing."""
    assert "fetch it again" in refused(tmp_path, make()[:-3000])


def test_encrypted_unknown_and_oddly_packed_archives_are_refused(tmp_path: Path) -> None:
    """Each with what is wrong with it."""
    assert "none of tar" in refused(tmp_path, b"just text")
    assert "none of tar" in refused(tmp_path, b"")
    odd = zip_bytes({"a": b"x" * 100}, method=zipfile.ZIP_LZMA)
    assert "not supported" in refused(tmp_path, odd)
    locked = bytearray(zip_bytes({"a": b"x"}))
    for start in (6, locked.find(b"PK\x01\x02") + 8):
        locked[start] |= 1
    assert "encrypted" in refused(tmp_path, bytes(locked))


def test_unpacking_again_replaces_what_a_killed_run_left(tmp_path: Path) -> None:
    """Leftovers of an unpacking that was cut off are no obstacle, other files stay."""
    archive = tmp_path / "x.zip"
    archive.write_bytes(zip_bytes({"a": b"new", "b/c": b"new"}))
    out = tmp_path / "out"
    (out / ".unpacking-x.zip").mkdir(parents=True)
    (out / ".unpacking-x.zip" / "a").write_bytes(b"half")
    (out / "a").write_bytes(b"old")
    (out / "mine").write_bytes(b"kept")
    unpack(archive, out)
    found = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {"a": b"new", "c": b"new", "mine": b"kept"} == found
