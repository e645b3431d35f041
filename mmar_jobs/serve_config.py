"""`mmar-jobs serve-config`: merge what a node's servers are to load, and write a file for each.

What a server loads depends on the run (its last promoted adapter, merged), how it runs does not:
the first is in the files, for `vllm serve --config`, the second in the chart. Not here: merging
(qlora/merge_run.py), vLLM's other options (engine/serving.py), starting anything.
"""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from mmar_jobs import logs
from mmar_jobs.base_model import check_config, model_digest
from mmar_jobs.engine.serving_command import served_name
from mmar_jobs.errors import ExitCode, SettingsError
from mmar_jobs.layout import adapter_key
from mmar_jobs.lineage import BASE, Model, best_model, child_of, parent_of
from mmar_jobs.output import write_output
from mmar_jobs.settings import ServeConfigCommand, parse
from mmar_jobs.store import Store, open_store

_MERGED: Final = re.compile(r"[0-9a-f]{16}")


def serve_config(arguments: Sequence[str]) -> int:
    """Write `server-<i>.yaml` for each server; what is merged already is verified and kept."""
    command = parse(ServeConfigCommand, arguments, prog="mmar-jobs serve-config")
    log = logs.configure(command.log_format).bind(command="serve-config", run_id=command.run_id)
    check_config(Path(command.model))
    words = command.models.split(",")
    wanted = {word: _model(command, word) for word in dict.fromkeys(words)}
    if command.prune:
        _prune(command, list(wanted.values()))
    folders = {word: _folder(command, model) for word, model in wanted.items()}
    for index in range(command.num_servers):
        word = words[min(index, len(words) - 1)]
        folder = folders[word]
        # JSON is YAML too, and vLLM wants the ending.
        config = {"model": str(folder), "served-model-name": served_name(folder)}
        write_output(command.output / f"server-{index}.yaml", f"{json.dumps(config)}\n".encode())
        log.info("server_configured", server=index, serves=word, **config)
    return int(ExitCode.DONE)


def _model(command: ServeConfigCommand, word: str) -> Model:
    """The model that a word means for the run; the base where there is no run."""
    if word == "base" or not command.run_id:
        return Model(BASE, None)
    store = _store(command)
    if word == "parent":
        return parent_of(store, command.run_id, command.iteration)
    if word == "child":
        return child_of(store, command.run_id, command.iteration)
    return best_model(store, command.run_id)[0]


def _store(command: ServeConfigCommand) -> Store:
    if not command.store:
        raise SettingsError("--store is needed with --run-id (or MMAR_STORE)")
    return open_store(command.store, endpoint_url=command.endpoint_url)


def _prune(command: ServeConfigCommand, wanted: Sequence[Model]) -> None:
    """Delete merged models that no server is to load: each is as large as the base."""
    digest = model_digest(Path(command.model))
    kept = {model.identity(digest).hash[:16] for model in wanted}
    for path in sorted(command.cache.glob("*")):
        if path.is_dir() and _MERGED.fullmatch(path.name) and path.name not in kept:
            structlog.get_logger().info("merged_model_deleted", path=str(path))
            shutil.rmtree(path)


def _folder(command: ServeConfigCommand, model: Model) -> Path:
    """Where the model lies for vLLM: the base itself, or the merge in the cache."""
    base = Path(command.model)
    if model.adapter is None:
        return base
    # Serving the base needs no torch.
    from mmar_jobs.qlora.merge_run import Placement, find_adapter, merge_model  # noqa: PLC0415

    uri = f"{_store(command).uri}/{adapter_key(command.run_id, model.iteration)}"
    merged = merge_model(
        base,
        find_adapter(uri, endpoint_url=command.endpoint_url),
        output=None,
        cache=command.cache,
        placement=Placement(num_threads=len(os.sched_getaffinity(0))),
    )
    return merged.path
