"""Addresses of stores and of single files: plain paths, file:// and s3://bucket/prefix.

Not here: any IO, so a symbolic link that leads out of a root is caught by the store itself.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote

from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.store.base import check_key

_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ACCEPTED: Final = "use a folder, file:///folder or s3://bucket/prefix"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: `path` is absolute for file, and the key prefix within `bucket` for s3."""

    scheme: Literal["file", "s3"]
    bucket: str
    path: str

    @property
    def uri(self) -> str:
        """The one spelling of this address."""
        if self.scheme == "file":
            return Path(self.path).as_uri()
        return f"s3://{self.bucket}/{self.path}".rstrip("/")


def parse_uri(uri: str) -> Address:
    """Parse a plain path (relative to the working directory), file:// or s3://; SettingsError else.

    Messages repeat no more than the scheme and the bucket, for a URI may hold a password.
    """
    if not uri.strip() or "\0" in uri or "\n" in uri:
        raise SettingsError(f"a store's address is empty or has a line break: {_ACCEPTED}")
    found = _SCHEME.match(uri)
    scheme = found.group(1).lower() if found and uri.startswith("//", found.end()) else None
    if scheme is None and found and found.group(1).lower() in {"file", "s3"}:
        raise SettingsError(f"an address begins with {found.group()} but lacks the //: {_ACCEPTED}")
    if scheme is None:
        return Address("file", "", os.path.abspath(Path(uri).expanduser()))  # noqa: PTH100 - keeps links
    rest = uri[len(scheme) + len("://") :]
    if scheme == "file":
        return _parse_file(rest)
    if scheme == "s3":
        return _parse_s3(rest)
    raise SettingsError(f"{scheme}:// cannot be read or written: {_ACCEPTED}")


def split_uri(uri: str) -> tuple[str, str]:
    """The widest root of one file, and the file's key there: the bucket, or file:///.

    Raises SettingsError on a bad address and DataError where the key could not be one.
    """
    address = parse_uri(uri)
    if uri.endswith("/"):
        raise DataError(f"{address.uri}/ is a folder, a file is needed: name the file")
    root = Address(address.scheme, address.bucket, "/" if address.scheme == "file" else "")
    return root.uri, check_key(address.path.lstrip("/"))


def join_uri(root: str, relative: str) -> str:
    """The URI of `relative` below `root`; see `relative_key`."""
    key = relative_key(relative)
    address = parse_uri(root)
    path = f"{address.path.rstrip('/')}/{key}" if address.path else key
    return Address(address.scheme, address.bucket, path).uri


def relative_key(relative: str) -> str:
    """The key that a relative path means; "./" is dropped, and leaving the root is a DataError."""
    return check_key("/".join(segment for segment in relative.split("/") if segment != "."))


def _parse_file(rest: str) -> Address:
    host, slash, path = rest.partition("/")
    if host not in {"", "localhost"} or not slash:
        raise SettingsError(f"a file:// address needs three slashes and no host: {_ACCEPTED}")
    decoded = unquote(path, errors="surrogateescape")
    if "\0" in decoded:
        raise SettingsError(f"a file:// address holds a NUL byte: {_ACCEPTED}")
    return Address("file", "", os.path.abspath(f"/{decoded.lstrip('/')}"))  # noqa: PTH100 - keeps links


def _parse_s3(rest: str) -> Address:
    bucket, _, path = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise SettingsError(
            "an s3:// address has no valid bucket name (3 to 63 of a-z 0-9 . -, no credentials): "
            f"{_ACCEPTED}"
        )
    prefix = path.strip("/")
    if prefix:
        try:
            check_key(prefix)
        except DataError as error:
            raise SettingsError(f"in an s3:// address, {error}") from None
    return Address("s3", bucket, prefix)
