"""Which engine the settings open, and what they refuse where it cannot be had."""

from importlib.util import find_spec
from typing import Any

import pytest
from pydantic import ValidationError

from mmar_jobs.engine.open import open_engine
from mmar_jobs.errors import SettingsError
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.tiny import tiny_model_folder


def test_vllm_in_this_process_needs_vllm() -> None:
    """One line says where it is, before anything is loaded."""
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    with pytest.raises(SettingsError, match="run in the image `serve`"):
        open_engine(tiny_model_folder(), None, EngineSettings(backend="vllm"))


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ({"vllm_args": "--enforce-eager"}, "vllm-args"),
        ({"merged_dir": "/cache"}, "merged-dir"),
    ],
)
def test_what_nobody_would_read_is_refused(chosen: dict[str, Any], name: str) -> None:
    """Options of vLLM in this process say nothing to servers, or to transformers."""
    with pytest.raises(ValidationError, match=f"{name} is for vLLM in this process"):
        EngineSettings(**chosen)


def test_servers_and_vllm_here_exclude_each_other() -> None:
    """Nobody could say which of them answered."""
    with pytest.raises(ValidationError, match="leave one of them out"):
        EngineSettings(backend="vllm", servers="http://host:1")


def test_a_server_and_vllm_here_make_one_recipe() -> None:
    """A stage that one of them began may be ended by the other; options of vLLM are told apart."""
    offline = EngineSettings(backend="vllm")
    served = EngineSettings(servers="http://host:8000")
    assert served.recipe() == offline.recipe() != EngineSettings().recipe()
    assert offline.recipe() != EngineSettings(backend="vllm", vllm_args="-q fp8").recipe()
