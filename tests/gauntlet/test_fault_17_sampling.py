"""Fault 17: options went into a field called extra_body, which the server silently dropped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mmar_jobs.engine import Completion, Engine, Request, Sampling
from mmar_jobs.engine.local import open_local_engine
from mmar_jobs.engine.probe import check_sampling
from mmar_jobs.errors import ExitCode
from mmar_jobs.identity import Canary, ModelIdentity
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.tiny import tiny_model_folder
from tests.fakes import FakeEngine, think
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import stopped

USED = Sampling(
    temperature=0.9, top_p=0.95, top_k=20, repetition_penalty=1.2, max_tokens=64, seed=0
)


@dataclass
class Ignorant:
    """A real engine behind a client whose option never arrives."""

    engine: Engine
    ignored: str

    @property
    def identity(self) -> ModelIdentity:
        """The real one."""
        return self.engine.identity

    def canary(self) -> Canary:
        """The real one."""
        return self.engine.canary()

    def answer(
        self, requests: Sequence[Request], sampling: Sampling, on_answer: Callable[[int], None]
    ) -> list[list[Completion]]:
        """Answers with the option's default."""
        default = {"top_k": 0, "repetition_penalty": 1}[self.ignored]
        return self.engine.answer(requests, replace(sampling, **{self.ignored: default}), on_answer)


@pytest.fixture(scope="module", params=["random", "trained"])
def engine(request: pytest.FixtureRequest, model_folder: Path) -> Engine:
    """The engine that users get, with a model that hardly cares and with one that speaks."""
    folder = model_folder if request.param == "random" else tiny_model_folder()
    return open_local_engine(folder, None, EngineSettings(threads=1))


def test_17_our_engine_honours_what_it_is_given(engine: Engine) -> None:
    """top_k and repetition_penalty change what a model says, as they must."""
    check_sampling(engine, USED)


@pytest.mark.parametrize("option", ["top_k", "repetition_penalty"])
def test_17_an_ignored_option_is_found_by_asking(engine: Engine, option: str) -> None:
    """The earlier attempt tuned two options for weeks that never reached the model."""
    stop = stopped(lambda: check_sampling(Ignorant(engine, option), USED))
    stop.says(ExitCode.DATA, f"the engine ignores {option}", "top-level field")


def test_17_an_ignored_budget_of_thinking_is_found_by_asking() -> None:
    """Thinking that goes on past a budget is found; of what never thinks nothing is claimed."""
    budgeted = Sampling(0, 1, 0, 1, 64, 0, thinking_token_budget=32)
    identity = ModelIdentity(base_digest="b" * 64)
    deaf = FakeEngine(identity, lambda *_: think("one", "a tone, and then " * 9))
    stop = stopped(lambda: check_sampling(deaf, budgeted))
    stop.says(ExitCode.DATA, "the engine ignores thinking_token_budget", "top-level field")
    check_sampling(FakeEngine(identity, lambda *_: "<think>"), budgeted)


def test_17_a_run_stops_before_its_first_question(run_after: HealthyRun) -> None:
    """The proof comes before the questions, and only where an option is used."""
    run = run_after("ingest")

    def open_ignorant(base: Path, adapter: Path | None, chosen: EngineSettings) -> Engine:
        return Ignorant(open_local_engine(base, adapter, chosen), "top_k")

    stop = run.stop("generate", "--sampling.top-k", "20", opener=open_ignorant)
    stop.says(ExitCode.DATA, "ignores top_k")
    assert [] == list(run.path("iter-1/candidates").glob("part-*"))


def test_17_our_engine_passes_in_a_run(run_after: HealthyRun) -> None:
    """The same run with the engine that users get goes through."""
    flags = ("--sampling.top-k", "20", "--sampling.repetition-penalty", "1.1")
    stop = run_after("ingest").cli("generate", *flags, "--sampling.max-tokens", "4")
    assert ExitCode.DONE == stop.code, stop.line


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--sampling.extra-body", "extra"),
        ("--sampling.topk", "topk"),
        ("--top-k", "top-k"),
        ("--sampling.temprature", "temprature"),
    ],
)
def test_17_an_unknown_setting_is_refused(run_after: HealthyRun, flag: str, words: str) -> None:
    """Nothing that is set may have no effect."""
    run_after("ingest").cli("generate", flag, "20").says(ExitCode.SETTINGS, words)


def test_17_an_unknown_variable_is_refused(
    run_after: HealthyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for the environment, where a typing error is harder to see."""
    monkeypatch.setenv("MMAR_SAMPLING__TOPK", "20")
    stop = run_after("ingest").cli("generate")
    stop.says(ExitCode.SETTINGS, "MMAR_SAMPLING__TOPK", "did you mean sampling.top_k?")
