"""Which addresses are accepted, what they mean, and what never leaves a root."""

import posixpath
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.lines import open_lines
from mmar_jobs.store import join_uri, open_store, read_uri, resolve, split_uri

from .conftest import Place

SEGMENTS = st.sampled_from(["", ".", "..", "a", "b c", "é", "%2e%2e", "~", "\\", "a.wav", "..."])
RELATIVE = st.lists(SEGMENTS, min_size=1, max_size=6).map("/".join)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/srv/runs/", "file:///srv/runs"),
        ("/srv/x/../runs", "file:///srv/runs"),
        ("/srv/my runs", "file:///srv/my%20runs"),
        ("file:///srv/my%20runs/", "file:///srv/my%20runs"),
        ("file://localhost/srv/runs", "file:///srv/runs"),
        ("FILE:///srv/runs", "file:///srv/runs"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/team/runs/", "s3://bucket/team/runs"),
    ],
)
def test_a_store_has_one_spelling(uri: str, expected: str) -> None:
    """Every way to write an address gives the same uri."""
    assert expected == open_store(uri).uri


def test_relative_and_home_folders_are_made_absolute() -> None:
    """What the shell leaves relative is relative to the working directory."""
    assert (Path.cwd().resolve() / "runs").as_uri() == open_store("runs").uri
    assert (Path.home().resolve() / "runs").as_uri() == open_store("~/runs").uri


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "",
            " ",
            "a\nb",
            "gs://bucket/x",
            "http://host/x",
            "s3:bucket",
            "file:/srv",
            "file://srv",
        ),
        *(
            "file://host/srv",
            "s3://",
            "s3:///x",
            "s3://B_d/x",
            "s3://ab/../x",
            "s3://bucket/a/../b",
        ),
        *("file:///a%00b", "s3://bucket/a//b"),
    ],
)
def test_other_addresses_are_settings_errors(uri: str) -> None:
    """One line that names the accepted forms or what is wrong."""
    with pytest.raises(SettingsError, match=r"use a folder, file|s3://") as caught:
        open_store(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "endpoint_url"),
    [
        ("s3://AKIAKEY:secret-word@bucket/x", None),
        ("ftp://user:secret-word@host/x", None),
        ("s3://bucket", "http://user:secret-word@host:9000"),
        ("s3://bucket", "host:9000?key=secret-word"),
        ("s3://bucket", "http://ho st/secret-word"),
    ],
)
def test_no_message_repeats_a_password(uri: str, endpoint_url: str | None) -> None:
    """Addresses with credentials are refused without echoing them."""
    with pytest.raises(SettingsError) as caught:
        open_store(uri, endpoint_url=endpoint_url)
    assert "secret-word" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/data/q.jsonl", ("file:///", "data/q.jsonl")),
        ("file:///my%20data/q.jsonl", ("file:///", "my data/q.jsonl")),
        ("s3://bucket/data/q.jsonl", ("s3://bucket", "data/q.jsonl")),
    ],
)
def test_split_gives_root_and_key(uri: str, expected: tuple[str, str]) -> None:
    """Join is its inverse."""
    assert expected == split_uri(uri)
    assert expected == split_uri(join_uri(*expected))


@pytest.mark.parametrize("uri", ["/data/", "s3://bucket", "s3://bucket/data/", "/"])
def test_a_folder_is_no_file(uri: str) -> None:
    """Where a file is needed, a folder is a data error."""
    with pytest.raises(DataError):
        split_uri(uri)


@given(relative=RELATIVE)
def test_nothing_leaves_its_root(relative: str) -> None:
    """Law: a relative path joins to something strictly below the root, or is a data error."""
    try:
        joined = join_uri("s3://bucket/audio", relative)
    except DataError:
        return
    assert joined.startswith("s3://bucket/audio/")
    path = joined.removeprefix("s3://bucket/audio/")
    assert posixpath.normpath(path) == path
    assert not path.startswith("..") or path.startswith("...")
    assert posixpath.normpath(relative) == path


@pytest.mark.parametrize("relative", ["../x", "a/../../x", "/etc/passwd", "a/..", "", ".", "a//b"])
def test_rows_that_point_out_of_the_audio_root_are_data_errors(
    relative: str, tmp_path: Path
) -> None:
    """A data row is never trusted with more than its root."""
    with pytest.raises(DataError):
        resolve(relative, root=str(tmp_path))
    with pytest.raises(DataError):
        join_uri(str(tmp_path), relative)


def test_a_bad_uri_in_a_row_is_the_rows_fault(tmp_path: Path) -> None:
    """The same address is a setting on the command line and data in a row."""
    with pytest.raises(DataError, match="gs://"):
        resolve("gs://bucket/a.wav", root=str(tmp_path))
    with pytest.raises(SettingsError, match="gs://"):
        resolve("gs://bucket/a.wav")


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_inputs_are_read_from_wherever_they_lie(
    kind: str, places: Callable[[str], Place], tmp_path: Path
) -> None:
    """Relative to a root, with the benchmark's leading "./", by URI, and by local path."""
    place = places(kind)
    store = place.open()
    store.write("audio/a b.wav", b"sound")
    (tmp_path / "local.wav").write_bytes(b"local")
    local = (tmp_path / "local.wav").resolve()
    for relative in ("audio/a b.wav", "./audio/a b.wav"):
        found = read_uri(relative, root=store.uri, endpoint_url=place.endpoint_url)
        assert b"sound" == found
    address = join_uri(store.uri, "audio/a b.wav")
    assert b"sound" == read_uri(address, endpoint_url=place.endpoint_url)
    [line] = open_lines(address, endpoint_url=place.endpoint_url)
    assert b"sound" == line.text
    assert b"sound" == read_uri(address, root=str(tmp_path), endpoint_url=place.endpoint_url)
    assert b"local" == read_uri(local.as_uri(), root=store.uri, endpoint_url=place.endpoint_url)
    assert b"local" == read_uri(str(local))
    with pytest.raises(DataError, match=r"absent\.wav does not exist"):
        read_uri("absent.wav", root=store.uri, endpoint_url=place.endpoint_url)
