"""Servers of tiny models on the loopback, and engines over them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.chat import load_tokenizer
from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.engine.server import ServerEngine, Site
from mmar_jobs.identity import CANARY_TOLERANCE_NATS
from mmar_jobs.recipes import EngineSettings
from tests.engine.cases import QUICK, Connect
from tests.engine.loopback import LoopbackVllm, serve


@pytest.fixture(scope="module")
def local(model_folder: Path) -> LocalEngine:
    """The model in this process."""
    return open_local_engine(model_folder, None, EngineSettings(threads=1))


@pytest.fixture(scope="module")
def other(other_model_folder: Path) -> LocalEngine:
    """Another model."""
    return open_local_engine(other_model_folder, None, EngineSettings(threads=1))


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    """The model's tokenizer and template."""
    return load_tokenizer(model_folder)


@pytest.fixture
def vllm(local: LocalEngine) -> Iterator[LoopbackVllm]:
    """A server of the model."""
    with serve(local) as running:
        yield running


@pytest.fixture
def connect(local: LocalEngine, tokenizer: Any) -> Connect:
    """An engine over servers, which has little patience."""

    def open_engine(*urls: str, **options: Any) -> ServerEngine:
        site = Site(urls, options.get("key"), options.get("media_dir"), QUICK)
        patience = options.get("patience", QUICK)
        return ServerEngine(
            local.identity,
            tokenizer,
            replace(site, patience=patience),
            tolerance_nats=CANARY_TOLERANCE_NATS,
        )

    return open_engine
