"""What every store promises, the rules for its keys, and the lines that its errors share.

Not here: any IO.
"""

import json
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self, TypeAlias

from mmar_jobs.errors import DataError, TryAgain

Keys: TypeAlias = list[str]

RESERVED: Final = ".mmar-"
TEMPORARY: Final = f"{RESERVED}tmp-"
LEASE: Final = f"{RESERVED}lease-"
MAX_SEGMENT_BYTES: Final = 255  # what Linux file systems allow
MAX_KEY_BYTES: Final = 900  # S3 allows 1,024 together with the prefix
LEASE_TTL_S: Final = 60.0
# Control characters, lone surrogates, and separators that would break a one-line message.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


class Measure(NamedTuple):
    """What `key` holds: SHA-256 in hexadecimal, and size in bytes."""

    sha256: str
    size_bytes: int


class Store(Protocol):
    """Named bytes. All methods raise SettingsError where access is refused and TryAgain on outages.

    Keys are relative, "/"-separated and never name folders: see `check_key`.
    """

    @property
    def uri(self) -> str:
        """Normalised root, for example file:///srv/runs or s3://bucket/prefix."""

    def read(self, key: str) -> bytes:
        """All bytes of `key`; DataError naming it when it does not exist."""

    def measure(self, key: str) -> Measure:
        """Digest and size of `key`, read through once in blocks; DataError as read."""

    def exists(self, key: str) -> bool:
        """Whether `key` was written completely and not deleted since."""

    def list(self, prefix: str) -> Keys:
        """All keys that start with `prefix`, sorted; a folder's prefix ends with "/"."""

    def write(self, key: str, data: bytes) -> None:
        """Write or replace, durably; readers and crashes meet the old bytes or the new."""

    def write_new(self, key: str, data: bytes) -> bool:
        """Like write, but False and no change when `key` exists; of many writers one wins."""

    def write_parts(self, key: str, parts: Iterable[memoryview]) -> None:
        """Like write, of any size: `parts` end to end, few of which are in memory at a time.

        An error that `parts` raises goes through, and leaves what `key` held before.
        """

    def delete(self, key: str) -> None:
        """Remove `key`; no error when it is not there."""

    def upload(self, path: Path, key: str) -> None:
        """Write the file at `path` under `key`, of any size, as safely as write does."""

    def download(self, key: str, path: Path) -> None:
        """Put `key` at `path`, replacing it only when size and checksum are right."""

    def lease(self, key: str, *, ttl_s: float = LEASE_TTL_S) -> AbstractContextManager[None]:
        """Hold `key` alone among all processes; TryAgain at once when another one holds it.

        `ttl_s` (seconds) bounds how long a killed holder blocks others where no kernel frees the
        lease: S3. A lost lease makes the holder's next change to the store raise TryAgain.
        """


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease; `since` is UTC in ISO format."""

    host: str
    pid: int
    since: str

    def render(self, **more: float) -> bytes:
        """One JSON line with the fields of `more` added."""
        return json.dumps(asdict(self) | more).encode()

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of render; unknown parts read as such, for a message must never fail."""
        return cls(
            host=str(fields.get("host", "an unknown host")),
            pid=int(fields.get("pid", 0)),
            since=str(fields.get("since", "an unknown time")),
        )


def parse_fields(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, or an empty one where its writer was interrupted."""
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def check_key(key: str) -> str:
    """`key` itself; DataError unless it is relative, without "..", ".", empty or reserved parts."""
    problem = _find_problem(key)
    if problem:
        raise DataError(f"key {key!r} {problem}: correct the path or name that it was made from")
    return key


def check_prefix(prefix: str) -> str:
    """`prefix` itself; like check_key, but "" and a trailing "/" are allowed."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def is_reserved(key: str) -> bool:
    """Whether `key` names a store's own temporary or lease file, which no caller ever sees."""
    return any(segment.startswith(RESERVED) for segment in key.split("/"))


def lease_key(key: str) -> str:
    """The key under which the lease of `key` lies: its neighbour."""
    folder, slash, name = check_key(key).rpartition("/")
    return f"{folder}{slash}{LEASE}{name}"


def missing(address: str) -> DataError:
    """The error for bytes that are not there."""
    return DataError(f"{address} does not exist: check the path, or run the stage that writes it")


def lease_busy(address: str, owner: Owner, advice: str) -> TryAgain:
    """The error for a lease that another process holds."""
    return TryAgain(
        f"{address} is in use by pid {owner.pid} on {owner.host} since {owner.since}: wait until "
        f"that ends{advice}, or choose another --run-id"
    )


def _find_problem(key: str) -> str | None:
    segments = key.split("/")
    if not key or key.startswith("/"):
        return "is absolute" if key else "is empty"
    if not {"", ".", ".."}.isdisjoint(segments):
        return 'has an empty part, or "." or ".." as a part, which could lead out of its root'
    if "\\" in key or any(unicodedata.category(char) in _REFUSED_CATEGORIES for char in key):
        return "has a backslash, a control character or a line break"
    if is_reserved(key):
        return f'has a part that begins with "{RESERVED}", which is reserved'
    longest = max(len(segment.encode()) for segment in segments)
    if longest > MAX_SEGMENT_BYTES or len(key.encode()) > MAX_KEY_BYTES:
        return f"is longer than {MAX_SEGMENT_BYTES} bytes a part or {MAX_KEY_BYTES} in all"
    return None
