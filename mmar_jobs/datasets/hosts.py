"""The listing of a data set as its host gives it: files with sizes and digests, revision, licence.

Not here: downloading (download.py). The only importer of huggingface_hub. A token comes from
HF_TOKEN or the login of `hf auth login`, goes to the Hub alone and is never written down.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import httpx

from mmar_jobs.datasets.catalogue import Dataset
from mmar_jobs.datasets.download import TIMEOUT_S, Wanted
from mmar_jobs.errors import DataError, SettingsError, TryAgain

_ZENODO: Final = "https://zenodo.org"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Listing(NamedTuple):
    """A data set at one revision: the files asked for, and the patterns that none matched."""

    endpoint: str
    revision: str
    licence: str
    files: tuple[Wanted, ...]
    unmatched: tuple[str, ...]


def list_files(
    dataset: Dataset, patterns: Sequence[str], *, revision: str | None, endpoint: str | None
) -> Listing:
    """Ask the host for the files that match `patterns`.

    Raises SettingsError where access is refused, DataError where there is no such data set and
    TryAgain where the host cannot be reached.
    """
    if dataset.host == "hub":
        return _list_hub(dataset.repository, patterns, revision=revision, endpoint=endpoint)
    if revision is not None and revision != dataset.repository:
        raise SettingsError("--revision is for data sets on the Hub; a Zenodo record has one")
    return _list_zenodo(dataset.repository, patterns, endpoint or _ZENODO)


def _list_hub(
    repository: str, patterns: Sequence[str], *, revision: str | None, endpoint: str | None
) -> Listing:
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - heavy, and of the extra `data`
    except ModuleNotFoundError:
        raise SettingsError("fetch needs huggingface_hub: install mmar-jobs[data]") from None
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 - the same

    api = hub.HfApi(endpoint=endpoint)
    token = hub.get_token()
    _check_token_is_safe(token, str(api.endpoint))
    try:
        info = api.dataset_info(repository, revision=revision, files_metadata=True)
    except (hub.errors.HfHubHTTPError, httpx.HTTPError) as error:
        raise _explain(error, f"data set {repository} at {api.endpoint}", revision) from None
    except HFValidationError as error:
        raise SettingsError(f"--revision or repository is wrong: {error}") from None
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    sizes: dict[str, Any] = {file.rfilename: file for file in info.siblings or ()}
    matched, unmatched = _match(sizes, patterns)
    files = tuple(
        Wanted(
            path=name,
            url=hub.hf_hub_url(
                repository,
                name,
                repo_type="dataset",
                revision=info.sha,
                endpoint=str(api.endpoint),
            ),
            size_bytes=sizes[name].size,
            sha256=sizes[name].lfs.sha256 if sizes[name].lfs else None,
            headers=headers,
        )
        for name in matched
    )
    licence = next((tag[8:] for tag in info.tags or () if tag.startswith("license:")), "")
    return Listing(str(api.endpoint), info.sha or "", licence, files, unmatched)


def _check_token_is_safe(token: str | None, endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if token and parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise SettingsError(
            f"endpoint {parts.scheme}://{parts.hostname} would get the Hub's token unencrypted: "
            "use https, or unset HF_TOKEN"
        )


def _list_zenodo(record: str, patterns: Sequence[str], endpoint: str) -> Listing:
    base = f"{endpoint.rstrip('/')}/api/records/{record}"
    try:
        response = httpx.get(base, timeout=TIMEOUT_S, follow_redirects=True)
        response.raise_for_status()
        value: Any = response.json()
        files = {str(file["key"]): file for file in value["files"]}
        licence = str((value.get("metadata", {}).get("license") or {}).get("id", ""))
    except httpx.HTTPError as error:
        raise _explain(error, f"record {record} at {endpoint}", None) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{base} is not the listing of a Zenodo record: check --endpoint") from None
    matched, unmatched = _match(files, patterns)
    wanted = tuple(
        Wanted(
            path=name,
            url=f"{base}/files/{quote(name)}/content",
            size_bytes=int(files[name]["size"]),
            md5=str(files[name].get("checksum", "")).partition("md5:")[2] or None,
        )
        for name in matched
    )
    return Listing(endpoint, record, licence, wanted, unmatched)


def _match(
    names: Mapping[str, object], patterns: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    found = {pattern: fnmatch.filter(names, pattern) for pattern in patterns}
    matched = sorted({name for hits in found.values() for name in hits})
    return matched, tuple(pattern for pattern, hits in found.items() if not hits)


def _explain(error: Exception, what: str, revision: str | None) -> Exception:
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else None
    if status in (401, 403):
        return SettingsError(
            f"{what} refuses access: accept its terms on its page, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if status == 404:
        at = f", or no revision {revision}" if revision else ""
        return DataError(f"there is no {what}{at}")
    reason = f"HTTP {status}" if status else str(error).splitlines()[0]
    return TryAgain(f"{what} cannot be listed ({reason}): run the same command again")
