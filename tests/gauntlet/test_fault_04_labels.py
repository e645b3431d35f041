"""Fault 4: the labels held the prompt, and what did not fit was cut off on the right."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmar_jobs.audio import canary_clip
from mmar_jobs.encode import EncodedPrompt, encode_prompt, load_processor
from mmar_jobs.errors import ExitCode
from mmar_jobs.prompt import render
from mmar_jobs.qlora.encode import check_row, encode_example, token_ids
from mmar_jobs.qlora.packing import TrainRow
from tests.fakes import make_question, think
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row, stopped


@pytest.fixture(scope="module")
def encoded(model_folder: Path) -> tuple[EncodedPrompt, TrainRow]:
    """A prompt and the healthy training row behind it."""
    processor = load_processor(model_folder)
    prompt = render(make_question("q4"), "v9")
    encoded = encode_prompt(processor, prompt, canary_clip(), question_id="q4")
    row = encode_example(
        processor, encoded, think("one"), question_id="q4", audio_sha256="clip", weight=1.0
    )
    return encoded, row


@pytest.mark.parametrize(
    ("num_moved", "words"),
    [
        (-3, "3 prompt tokens are in the labels"),
        (-10_000, "prompt tokens are in the labels"),
        (2, "completion tokens would not be trained"),
    ],
)
def test_04_labels_are_the_completion_and_nothing_else(
    model_folder: Path, encoded: tuple[EncodedPrompt, TrainRow], num_moved: int, words: str
) -> None:
    """The earlier attempt spent most of its loss on learning to write its own prompt."""
    prompt, row = encoded
    moved = replace(row, num_prompt_tokens=max(1, row.num_prompt_tokens + num_moved))
    tokens = token_ids(load_processor(model_folder))
    stopped(lambda: check_row(moved, prompt, tokens)).says(ExitCode.DATA, "question q4", words)


@pytest.mark.parametrize("num_cut", [1, 2])
def test_04_a_row_cut_on_the_right_is_refused(
    model_folder: Path, encoded: tuple[EncodedPrompt, TrainRow], num_cut: int
) -> None:
    """Right truncation took the answer and the end of the turn: the model learned never to stop."""
    prompt, row = encoded
    cut = replace(row, input_ids_S=row.input_ids_S[: -1 - num_cut])
    stop = stopped(lambda: check_row(cut, prompt, token_ids(load_processor(model_folder))))
    stop.says(ExitCode.DATA, "question q4", "must end with one <|im_end|>")


def test_04_over_long_examples_are_dropped_and_counted(run_after: HealthyRun) -> None:
    """What does not fit into a row is left out whole, and the manifest says how many that were."""
    run = run_after("filter")
    long_ids: list[str] = []

    def lengthen(rows: list[Row]) -> list[Row]:
        long_ids.append(rows[0]["question_id"])
        more = "<think>" + "And again. " * 400
        first = rows[0] | {"completion": rows[0]["completion"].replace("<think>", more)}
        return [first, *rows[1:]]

    run.replant("iter-1/examples", lengthen)
    num_examples = run.artifact("iter-1/examples").manifest.counts["num_examples"]
    assert ExitCode.DONE == run.cli("train", "--optim.token-budget", "700").code
    counts = run.artifact("iter-1/adapter").manifest.counts
    assert (1, num_examples - 1) == (counts["num_dropped"], counts["num_examples"])


def test_04_nothing_that_fits_is_an_error(run_after: HealthyRun) -> None:
    """A budget that every example exceeds stops the run instead of training on stumps."""
    stop = run_after("filter").cli("train", "--optim.token-budget", "50")
    stop.says(ExitCode.DATA, "nothing to train", "24 of them longer than a row of 50 tokens")
