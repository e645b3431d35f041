"""The edge to where bytes rest: a folder (file://) or a bucket (s3://), behind one protocol.

Not here: what the bytes mean (artifact.py). Only the s3*.py modules import boto3,
and only an s3:// address imports those: a run on a folder never pays for it.
"""

from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.store.base import Keys, Store
from mmar_jobs.store.file import FileStore
from mmar_jobs.store.uri import join_uri, parse_uri, relative_key, split_uri

__all__ = ["Keys", "Store", "join_uri", "open_store", "read_uri", "resolve", "split_uri"]


def open_store(uri: str, *, endpoint_url: str | None = None) -> Store:
    """The store at `uri`: a plain path, file:// or s3://bucket/prefix; no IO yet.

    `endpoint_url` names an S3 server other than AWS; credentials come from boto3's own chain and
    never through settings. Raises SettingsError on any other scheme or a malformed address.
    """
    address = parse_uri(uri)
    if address.scheme == "file":
        return FileStore(address.path)
    from mmar_jobs.store.s3 import S3Store  # noqa: PLC0415 - boto3 costs 0.3 s, only s3:// pays it

    return S3Store(address, endpoint_url=endpoint_url)


def resolve(
    reference: str, *, root: str | None = None, endpoint_url: str | None = None
) -> tuple[Store, str]:
    """Store and key of one input file that a user or a data row names.

    With `root`, a reference is a URI or a path below `root`; "..", an absolute path or a symbolic
    link that leads out of it is a DataError. Without, it is a URI or a local path.
    """
    if root is not None and "://" not in reference:
        return open_store(root, endpoint_url=endpoint_url), relative_key(reference)
    try:
        base, key = split_uri(reference)
    except SettingsError as error:
        if root is None:
            raise
        raise DataError(str(error)) from None  # a row named it, no setting did
    return open_store(base, endpoint_url=endpoint_url), key


def read_uri(reference: str, *, root: str | None = None, endpoint_url: str | None = None) -> bytes:
    """The bytes of one input file; see `resolve` for what `reference` and `root` may be."""
    store, key = resolve(reference, root=root, endpoint_url=endpoint_url)
    return store.read(key)
