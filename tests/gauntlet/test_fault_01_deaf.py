"""Fault 1: the processor was called with max_length=4096, truncation=True: it cut the sound."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.audio import canary_clip
from mmar_jobs.encode import encode_prompt, load_processor
from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.errors import ExitCode
from mmar_jobs.prompt import Prompt
from mmar_jobs.recipes import EngineSettings
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import stopped


class TruncatingProcessor:
    """The real processor, called as the earlier attempt called it."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, **inputs: Any) -> Any:
        """Text and sound, both cut at 4,096."""
        return self._processor(**inputs, max_length=4096, truncation=True)


def open_deaf_engine(base: Path, adapter: Path | None, chosen: EngineSettings) -> LocalEngine:
    """The real engine with the truncating processor."""
    hearing = open_local_engine(base, adapter, chosen)
    processor = TruncatingProcessor(load_processor(base))
    return LocalEngine(hearing._model, processor, hearing.identity, rows_per_batch=8)


@pytest.mark.parametrize(("before", "stage"), [("ingest", "generate"), ("evaluate", "infer")])
def test_01_truncated_audio_is_never_asked_about(
    run_after: HealthyRun, before: str, stage: str
) -> None:
    """The earlier attempt's models heard 0.256 s of each clip: 4 audio tokens instead of 130."""
    run = run_after(before)
    if stage == "infer":
        # A random model of the same kind: the fault is in the processor, whatever the weights.
        shutil.rmtree(run.path("iter-1"))
    stop = run.stop(stage, opener=open_deaf_engine)
    stop.says(ExitCode.DATA, "question ", "4 audio tokens", "truncat", "max_length")


def test_01_truncated_audio_is_never_trained_on(run_after: HealthyRun, tmp_path: Path) -> None:
    """A trainer has a processor of its own: that the server heard all says nothing about it."""
    run = run_after("ingest")
    halved = tmp_path / "model"
    shutil.copytree(run.model, halved)
    config = json.loads((halved / "preprocessor_config.json").read_text())
    config["hop_length"] *= 2
    (halved / "preprocessor_config.json").write_text(json.dumps(config))
    run.model = halved
    run.stage("generate")
    run.stage("filter")
    run.cli("train").says(
        ExitCode.DATA, "question tiny-", "audio tokens", "its clip of", "truncated"
    )


def test_01_the_encoder_that_train_shares_refuses_it(model_folder: Path) -> None:
    """Generate, train, evaluate and infer encode by one function, which counts what is heard."""
    processor = TruncatingProcessor(load_processor(model_folder))
    prompt = Prompt("Listen.", "What is it?")
    stop = stopped(lambda: encode_prompt(processor, prompt, canary_clip(), question_id="q7"))
    stop.says(ExitCode.DATA, "question q7", "4 audio tokens (0.31 s)", "1.00 s gives 13")


def test_01_a_server_that_heard_less_is_not_believed(run_after: HealthyRun) -> None:
    """What counts is the number of audio tokens that the engine reports, not what it was sent."""
    run = run_after("ingest")
    stop = run.stop("generate", opener=run.opener(audio_tokens=4))
    stop.says(ExitCode.DATA, "4 audio tokens", "truncated")


def test_01_a_clip_changed_between_stages_is_noticed(run_after: HealthyRun, tmp_path: Path) -> None:
    """Training on another file than the one that was answered about is refused by its digest."""
    run = run_after("filter")
    spoilt = tmp_path / "world"
    shutil.copytree(run.world.folder, spoilt)
    for path in (spoilt / "audio").iterdir():
        path.write_bytes(path.read_bytes()[:-2] + b"\0\1")
    stop = run.cli("train", "--audio-root", str(spoilt))
    stop.says(ExitCode.DATA, "question tiny-", "not the file that ingest saw", "put the original")
