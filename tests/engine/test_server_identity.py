"""Which model answers: a server is proven by name and canary, anew after each reconnect."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mmar_jobs.engine.local import LocalEngine
from mmar_jobs.engine.server import open_server_engine
from mmar_jobs.errors import GateError, SettingsError
from mmar_jobs.identity import check_canary
from mmar_jobs.recipes import EngineSettings
from tests.engine.cases import DRAWN, GREEDY, Connect, ask, requests
from tests.engine.loopback import LoopbackVllm, serve


def test_canary_tells_models_apart(
    vllm: LoopbackVllm, connect: Connect, local: LocalEngine, other: LocalEngine
) -> None:
    """The canary through the server is that of the model in process, and no other's."""
    served = connect(vllm.url).canary()
    check_canary(local.canary(), served, model="m")
    with pytest.raises(GateError, match="does not serve"):
        check_canary(other.canary(), served, model="m")


def test_another_name_is_refused(connect: Connect, local: LocalEngine) -> None:
    """A server of a model without our hash in its name is asked nothing."""
    with serve(local, name="qwen3-omni") as vllm:
        with pytest.raises(GateError, match="nothing was asked"):
            ask(connect(vllm.url), requests(), GREEDY)
        assert (0, 0) == (len(vllm.bodies), vllm.num_canaries)


def test_a_restart_with_other_weights_ends_it(
    vllm: LoopbackVllm, connect: Connect, other: LocalEngine
) -> None:
    """Under the same name and address other weights appear: their answers never arrive."""
    engine = connect(vllm.url)
    vllm.script = lambda number: vllm.restart(engine=other) if number == 2 else None  # type: ignore[func-returns-value]
    told: list[int] = []
    with pytest.raises(GateError, match="does not serve"):
        engine.answer(requests(range(2)), DRAWN, told.append)
    assert sum(told) <= 4


def test_a_restart_under_another_name_ends_it(vllm: LoopbackVllm, connect: Connect) -> None:
    """A server that comes back with another model refuses our name, which is no bad luck."""
    engine = connect(vllm.url)
    vllm.script = lambda number: vllm.restart(name="i2-0badc0de") if number == 1 else None  # type: ignore[func-returns-value]
    with pytest.raises(GateError, match="no longer serves"):
        ask(engine, requests(), GREEDY)


def test_a_server_of_another_model_is_left_out(
    connect: Connect, local: LocalEngine, other: LocalEngine
) -> None:
    """Parent and child may be served side by side: each is asked by its own name only."""
    with serve(other) as child, serve(local) as parent, capture_logs() as logs:
        assert 4 == len(ask(connect(child.url, parent.url), requests(), GREEDY))
        assert not child.bodies
    assert ["server_skipped"] == [log["event"] for log in logs]


def test_the_key_is_sent_and_never_told(vllm: LoopbackVllm, connect: Connect) -> None:
    """With the key it answers; without it, one line names the variable and shows no key."""
    vllm.key = "sesame-7"
    with capture_logs() as logs:
        assert 4 == len(ask(connect(vllm.url, key="sesame-7"), requests(), GREEDY))
        with pytest.raises(SettingsError, match="VLLM_API_KEY") as caught:
            ask(connect(vllm.url, key="wrong-key"), requests(), GREEDY)
    assert "wrong-key" not in str(caught.value)
    assert "sesame" not in str(logs)


def test_opened_from_settings(vllm: LoopbackVllm, model_folder: Path) -> None:
    """The folder gives the identity, the settings the addresses, with or without /v1."""
    chosen = EngineSettings(servers=f"{vllm.url}/v1/", threads=1)
    engine = open_server_engine(model_folder, None, chosen, key=None)
    assert 1 == len(engine.canary().token_ids) // 8
    assert (vllm.url,) == chosen.server_urls


@pytest.mark.parametrize(
    "address", ["localhost:8000", "ftp://x", "http://", "http://user:pw@host", "http://h?key=1"]
)
def test_addresses_are_checked(address: str) -> None:
    """What is no address, or holds a secret, is refused when settings are read."""
    with pytest.raises(ValueError, match=r"addresses like|leave user"):
        EngineSettings(servers=address)
