"""Fault 3: the chat template drops thinking from a conversation, so the trainer never saw any."""

from pathlib import Path

import pytest
import torch

from mmar_jobs.audio import canary_clip
from mmar_jobs.encode import EncodedPrompt, encode_prompt, load_processor
from mmar_jobs.engine import Request
from mmar_jobs.errors import ExitCode
from mmar_jobs.grade import parse
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.prompt import Prompt, render
from mmar_jobs.qlora.encode import check_row, encode_example, token_ids
from mmar_jobs.qlora.packing import TrainRow
from mmar_jobs.records import Finish
from tests.fakes import make_question, think
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Row, stopped

QUESTION = make_question("q3")


@pytest.fixture(scope="module")
def prompt(model_folder: Path) -> EncodedPrompt:
    """One encoded prompt."""
    processor = load_processor(model_folder)
    return encode_prompt(processor, render(QUESTION, "v9"), canary_clip(), question_id="q3")


def test_03_a_conversation_through_the_template_loses_its_thinking(
    model_folder: Path, prompt: EncodedPrompt
) -> None:
    """The earlier attempt rendered question and answer in one go: no thinking was in the labels."""
    processor = load_processor(model_folder)
    said = {"role": "assistant", "content": [{"type": "text", "text": think("one", "I count.")}]}
    messages = [*render(QUESTION, "v9").messages(), said]
    text = processor.apply_chat_template(messages, tokenize=False)
    assert "I count." not in text
    answer = text.rpartition("<|im_start|>assistant\n")[2]
    ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    row = TrainRow(
        "q3",
        torch.cat((prompt.input_ids_S, torch.tensor(ids))),
        prompt.input_ids_S.numel(),
        1.0,
        "clip",
    )
    stop = stopped(lambda: check_row(row, prompt, token_ids(processor)))
    stop.says(ExitCode.DATA, "question q3", "0 </think> tokens", "append the completion verbatim")


def test_03_our_own_rows_keep_it(model_folder: Path, prompt: EncodedPrompt) -> None:
    """The prompt alone goes through the template; the completion is appended as it was emitted."""
    processor = load_processor(model_folder)
    completion = think("one", "I count.")
    row = encode_example(
        processor, prompt, completion, question_id="q3", audio_sha256="clip", weight=1.0
    )
    labels = processor.tokenizer.decode(row.input_ids_S[row.num_prompt_tokens :])
    assert f"{completion}<|im_end|>\n" == labels


def test_03_an_example_without_thinking_stops_training(run_after: HealthyRun) -> None:
    """Whatever wrote the examples: a completion without its closing tag is never trained on."""
    run = run_after("filter")

    def strip(rows: list[Row]) -> list[Row]:
        return [row | {"completion": row["completion"].partition("</think>")[2]} for row in rows]

    run.replant("iter-1/examples", strip)
    run.cli("train").says(ExitCode.DATA, "question tiny-", "</think>", "thinking is lost")


def without_thinking(text: str) -> str:
    """What a server's reasoning parser leaves in the content field."""
    return text.rpartition("</think>")[2]


def test_03_answers_without_thinking_become_no_examples(run_after: HealthyRun) -> None:
    """A server that strips the thinking gives nothing to learn from, and the filter says why."""
    run = run_after("ingest")

    def content_only(request: Request, draw: int, identity: ModelIdentity) -> str:
        return without_thinking(run.exam.healthy(request, draw, identity))

    run.stage("generate", opener=run.opener(content_only))
    run.cli("filter").says(ExitCode.DATA, "none of 72 candidates", "unparsed 72", "prompt")


def test_03_answers_without_thinking_are_not_submitted(run_after: HealthyRun) -> None:
    """A benchmark answered by fallback choices looks like a submission and must not become one."""
    run = run_after("evaluate")

    def content_only(request: Request, draw: int, identity: ModelIdentity) -> str:
        return without_thinking(run.exam.healthy(request, draw, identity))

    stop = run.stop("infer", opener=run.opener(content_only))
    stop.says(ExitCode.DATA, "6 of 6", "no answer", "tiny-benchmark")


@pytest.mark.parametrize(
    "completion", ["<think>I count.</think>one", "I count.</think>\n\none", "I count.\n</think>one"]
)
def test_03_the_closing_tag_alone_is_enough(completion: str) -> None:
    """The opening tag may have been the end of the prompt: such a reply is whole."""
    assert ("I count.", "one") == parse(completion, Finish.STOP, QUESTION.choices)


def test_03_an_opening_tag_in_the_prompt_is_counted(
    model_folder: Path, prompt: EncodedPrompt
) -> None:
    """Trained with the tag in the prompt, the completion must not open it a second time."""
    processor = load_processor(model_folder)
    opened = encode_prompt(processor, Prompt("Listen.", "?"), canary_clip(), question_id="q3")
    tag = torch.tensor([token_ids(processor).think_open])
    opened = EncodedPrompt(
        torch.cat((opened.input_ids_S, tag)), opened.features_MF, opened.num_audio_tokens
    )
    known = {"question_id": "q3", "audio_sha256": "clip", "weight": 1.0}
    encode_example(processor, opened, "I count.</think>one", **known)
    stop = stopped(lambda: encode_example(processor, opened, think("one"), **known))
    stop.says(ExitCode.DATA, "question q3", "2 <think> tokens")
    stop = stopped(lambda: encode_example(processor, prompt, "I count.</think>one", **known))
    stop.says(ExitCode.DATA, "question q3", "0 <think> tokens")
