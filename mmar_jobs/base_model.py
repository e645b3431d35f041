"""Naming and recognising a base model's folder by its files, without loading it.

Not here: loading the weights (qlora/load.py), and adapters (lineage.py).
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from mmar_jobs.errors import DataError

_MODEL_TYPE: Final = "qwen3_omni_moe"
_PARTS: Final = ("text_config", "audio_config")
_MODEL_FILES: Final = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
_NUM_READERS: Final = 8


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the file system tells it; what is written to changes the times."""

    path: Path
    size_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int


def model_digest(folder: Path) -> str:
    """SHA-256 over name and SHA-256 of all weight, config, tokenizer and chat template files.

    Files are taken in the order of their names, so the digest is the same on every machine; a file
    that is renamed, added or changed in one byte changes it. A process reads a folder once, several
    files at a time (a core hashes 1 GB/s, and the real model has 61), and again when a size or time
    of its files changes. DataError where `folder` holds no weights or a file cannot be read.
    """
    paths = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in paths):
        raise DataError(f"{folder} holds no .safetensors file: give a model folder")
    return _digest(tuple(map(_look_at, paths)))


def _look_at(path: Path) -> _File:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _File(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@lru_cache(maxsize=8)
def _digest(files: tuple[_File, ...]) -> str:
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_NUM_READERS, "mmar-digest") as pool:
        for file, found in zip(files, pool.map(_hash, files), strict=True):
            digest.update(f"{file.path.name}\0{found}\n".encode())
    return digest.hexdigest()


def _hash(file: _File) -> str:
    try:
        with file.path.open("rb", buffering=0) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(file.path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be read ({error.strerror}): give a model folder whose files can be"
    )


def check_config(folder: Path) -> None:
    """Raise DataError unless config.json is that of a whole Qwen3-Omni model.

    What config.json lacks transformers fills with the sizes of the 30B model, whose random weights
    it then builds; so this is asked before anything is built.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no model: config.json is missing; give a model folder")
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not readable JSON ({str(error).splitlines()[0]}): copy the model again"
        ) from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != _MODEL_TYPE:
        raise DataError(
            f"{path} is of model type {found or 'none'}, not {_MODEL_TYPE}: give the folder of a "
            "Qwen3-Omni model in its original layout"
        )
    thinker = config.get("thinker_config")
    lacking = [part for part in _PARTS if not (isinstance(thinker, dict) and thinker.get(part))]
    if lacking:
        raise DataError(
            f"{path} has no thinker_config.{lacking[0]}: copy config.json from the original again"
        )
