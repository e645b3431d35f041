"""Tests of inspect: it shows what the stages see, on a terminal and as a page of its own."""

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_html import tags_of, words_of
from rich.console import Console

from mmar_jobs.audio import Clip, num_audio_tokens
from mmar_jobs.cli import run_command
from mmar_jobs.encode import encode_prompt, load_processor
from mmar_jobs.engine import Request
from mmar_jobs.engine.local import open_local_engine
from mmar_jobs.errors import ExitCode
from mmar_jobs.inspection.look import Inspection, labels_of, look
from mmar_jobs.inspection.mel import bin_of, describe, mel_shades, mel_svg
from mmar_jobs.inspection.page import render_page
from mmar_jobs.inspection.subject import Asked, open_subject
from mmar_jobs.inspection.terminal import prompt_text, render_inspection
from mmar_jobs.inspection.tokens import Piece, labelled, least_likely, pieces_of
from mmar_jobs.prompt import SYSTEM_BY_VERSION, render
from mmar_jobs.qlora.export import export_adapter
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.lora import attach_lora
from mmar_jobs.qlora.recipes import LoraRecipe
from mmar_jobs.recipes import EngineSettings, SamplingRecipe
from mmar_jobs.stages.answering import greedy
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails, make_question, think, tone

PROCESSOR = load_processor(tiny_model_folder())


def first_id(path: Path) -> str:
    """The id of the first question in a file."""
    return str(json.loads(path.read_text().splitlines()[0])["id"])


@pytest.fixture(scope="module")
def adapter(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose factors are far from zero."""
    folder = tmp_path_factory.mktemp("adapter") / "child"
    model = load_thinker(model_folder, dtype=torch.float32, device=torch.device("cpu"))
    lora = attach_lora(model, LoraRecipe(2, 4.0, 0.0), seed=0)
    for factor in lora.factors().values():
        torch.nn.init.normal_(factor, std=0.3, generator=torch.Generator().manual_seed(1))
    export_adapter(lora, folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def seen(world: TinyWorld, model_folder: Path, adapter: Path) -> Inspection:
    """One question, asked of a random model with and without an adapter."""
    asked = Asked(
        question_id=first_id(world.heldout),
        model=model_folder,
        questions=str(world.heldout),
        adapter=adapter,
        variants=("baseline", "v9"),
        num_draws=2,
        max_tokens=6,
        engine=EngineSettings(threads=1),
    )
    with open_subject(asked) as (subject, way):
        return look(subject, way)


def test_every_model_answers_in_every_way(seen: Inspection) -> None:
    """Base and adapter: greedy, drawn and muted, and greedily to each variant."""
    ways = ["greedy", "draw 1", "draw 2", "greedy, muted"]
    assert ["base", "adapter child"] == seen.models
    for model in seen.models:
        assert ways == [reply.how for reply in seen.replies if reply.model == model]
    greedy = {reply.model: reply for reply in seen.replies if reply.how == "greedy"}
    assert greedy["base"].pieces != greedy["adapter child"].pieces
    assert ["baseline", "v9"] == [variant.name for variant in seen.variants]
    assert seen.models == [reply.model for reply in seen.variants[0].replies]
    assert seen.variants[0].num_prompt_tokens < seen.variants[1].num_prompt_tokens


def test_audio_tokens_are_checked_against_the_clip(seen: Inspection) -> None:
    """The figures shown are those of the prompt, the features and the clip."""
    heard = seen.hearing
    in_prompt = sum(len(piece.token_ids) for piece in seen.prompt if piece.kind == "audio")
    assert num_audio_tokens(len(seen.clip.waveform)) == heard.expected_audio_tokens
    assert in_prompt == heard.num_audio_tokens
    assert heard.is_whole
    assert seen.mel_MF.shape[1] == heard.num_mel_frames


def test_pieces_hold_every_token_of_the_prompt(seen: Inspection, model_folder: Path) -> None:
    """Nothing of the prompt is hidden: ids and text are those that the engine reads."""
    processor = load_processor(model_folder)
    prompt = render(seen.question, seen.version)
    encoded = encode_prompt(processor, prompt, seen.clip, question_id="q")
    ids = [token for piece in seen.prompt for token in piece.token_ids]
    assert encoded.input_ids_S.tolist() == ids
    text = "".join(piece.text for piece in seen.prompt)
    assert prompt.system in text
    assert prompt.user in text
    kinds = {piece.text: piece.kind for piece in seen.prompt}
    assert "special" == kinds["<|im_start|>"]
    assert "audio" == kinds["<|audio_pad|>"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30))
def test_pieces_lose_no_character(text: str) -> None:
    """Also where a character is spread over several tokens, and where the text is a tag."""
    processor = PROCESSOR
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(processor, ids)
    assert ids == [token for piece in pieces for token in piece.token_ids]
    whole = processor.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    if all(piece.kind != "audio" for piece in pieces):
        assert whole == "".join(piece.text for piece in pieces)


def test_probabilities_are_those_of_the_engine(seen: Inspection, model_folder: Path) -> None:
    """The product over the pieces of a reply is the likelihood that the engine reports."""
    engine = open_local_engine(model_folder, None, EngineSettings(threads=1))
    prompt = render(seen.question, seen.version)
    request = Request(seen.question.id, prompt, seen.clip, (0,))
    asked = greedy(SamplingRecipe(max_tokens=6), seen.version).sampling
    sampling = replace(asked, logprobs=True)
    [completion] = engine.answer([request], sampling, lambda _: None)[0]
    reply = next(reply for reply in seen.replies if reply.how == "greedy")
    told = sum(math.log(piece.probability or 0) for piece in reply.pieces)
    assert pytest.approx(completion.logprob_sum, abs=1e-4) == told
    assert all((piece.probability or 0) < 0.5 for piece in least_likely(reply.pieces, 3))


def test_labels_are_those_of_training(seen: Inspection) -> None:
    """The completion and the end of its turn have labels, the prompt has none."""
    question = seen.question
    encoded = encode_prompt(PROCESSOR, render(question, "v9"), seen.clip, question_id=question.id)
    found = labels_of(PROCESSOR, encoded, think("buzz", "one"), question=question, source="s")
    taught = "".join(piece.text for piece in found.pieces if piece.is_label)
    assert "<think>one</think>buzz<|im_end|>\n" == taught
    assert "" == found.problem
    bare = [piece for piece in found.pieces if not piece.is_label]
    assert encoded.input_ids_S.tolist() == [token for piece in bare for token in piece.token_ids]


@pytest.mark.parametrize("completion", ["", "no tags at all", "<think>cut off"])
def test_completion_that_training_refuses_is_said(seen: Inspection, completion: str) -> None:
    """A gate's words are shown instead of a row that would never be trained."""
    question = seen.question
    encoded = encode_prompt(PROCESSOR, render(question, "v9"), seen.clip, question_id=question.id)
    found = labels_of(PROCESSOR, encoded, completion, question=question, source="s")
    assert question.id in found.problem
    assert 0 == found.num_labels


def test_page_needs_nothing_and_says_everything(seen: Inspection) -> None:
    """One document without scripts or addresses, with labelled axes, alternatives and headings."""
    page = render_page(seen)
    tags = tags_of(page)
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in tags)
    addresses = [value for _, given in tags for name, value in given.items() if name == "src"]
    assert all(str(value).startswith("data:") for value in addresses)
    assert "http://" not in re.sub(r'"data:[^"]*"', "", page)
    words = words_of(page)
    for part in (
        seen.question.text,
        "time (s)",
        "frequency (kHz, mel scale)",
        "audio tokens (13 a second)",
        f"{seen.hearing.num_audio_tokens} audio tokens",
        "What it is taught",
        "greedy, muted",
        SYSTEM_BY_VERSION["v9"],
    ):
        assert part in words
    pictures = [given for tag, given in tags if tag == "svg" and given.get("role") == "img"]
    assert all("Mel spectrogram of" in str(given["aria-label"]) for given in pictures)
    assert render_page(seen) == page


def test_page_escapes_what_data_says(seen: Inspection) -> None:
    """A question that is markup is shown as text."""
    text = "<script>alert(1)</script> & <b>so</b>"
    hostile = seen.question.model_copy(update={"text": text, "id": "<i>"})
    page = render_page(replace(seen, question=hostile))
    assert "<script>" not in page
    assert text in html.unescape(page)


def test_terminal_shows_hostile_text_as_text(seen: Inspection) -> None:
    """Neither markup of our own printer nor an escape sequence reaches the terminal as such."""
    text = "[red]Which[/red] \x1b]0;title\x07 \x9b2J?"
    hostile = seen.question.model_copy(update={"text": text})
    console = Console(width=90, force_terminal=True, color_system=None, record=True)
    with console.capture() as caught:
        console.print(render_inspection(replace(seen, question=hostile), width=90))
    said = caught.get()
    assert "[red]Which[/red] \u241b]0;title\u2407 \u24212J?" in said
    assert not {"\x1b", "\x07", "\x9b"} & set(said)


def test_terminal_colours_tell_tokens_apart(seen: Inspection) -> None:
    """With colours, template tokens, audio and labels each have one of their own."""
    console = Console(width=90, force_terminal=True, color_system="standard")
    with console.capture() as caught:
        console.print(prompt_text([*seen.prompt, *labelled([Piece("taught", (1,))])]))
    said = caught.get()
    for text, code in (("<|im_start|>", "1;35"), ("<|audio_pad|> x", "1;33"), ("taught", "32")):
        assert f"\x1b[{code}m{text}" in said


def test_mel_axis_is_slaneys(model_folder: Path) -> None:
    """A tone is brightest at the bin that the axis labels with its frequency."""
    processor = load_processor(model_folder)
    for pitch_hz in (440.0, 1000.0, 3000.0):
        sound = tone(seconds=1.0, pitch_hz=pitch_hz)[:, 0]
        clip = Clip(sound, 1.0, 16_000, 1)
        encoded = encode_prompt(processor, render(make_question(), "v9"), clip, question_id="q")
        mel_MF = encoded.features_MF.numpy()
        brightest = int(mel_MF.mean(axis=1).argmax())
        assert pytest.approx(bin_of(pitch_hz, mel_MF.shape[0]), abs=1.0) == brightest


def test_silence_has_a_picture() -> None:
    """Features that are all equal divide by nothing."""
    mel_MF = np.full((128, 40), -1.5, np.float32)
    assert "nothing but silence" in describe(mel_MF)
    assert [" " * 40] * 6 == mel_shades(mel_MF, width=60, height=6)
    assert mel_svg(mel_MF, alt="silence").startswith("<svg")


def test_command_shows_the_trained_model(
    world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal without colours, and a page where one was asked for."""
    page = tmp_path / "sub" / "page.html"
    flags = ["--model", str(tiny_model_folder()), "--questions", str(world.heldout)]
    flags += ["--prompt", "baseline", "--variants", "", "--draws", "1", "--threads", "1"]
    question_id = first_id(world.heldout)
    assert ExitCode.DONE == run_command("inspect", [question_id, *flags, "--html", str(page)])
    said = capsys.readouterr().out
    for part in (question_id, "the whole clip", "<|audio_pad|> x ", "labelled", "base, draw 1"):
        assert part in said
    assert "\x1b" not in said
    assert "other prompts" not in said
    assert question_id in page.read_text()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ((), ExitCode.SETTINGS, "either --questions FILE"),
        (("--run-id", "r"), ExitCode.SETTINGS, "needs --store"),
        (("--questions", "{questions}", "--run-id", "r"), ExitCode.SETTINGS, "either"),
        (("--questions", "{questions}"), ExitCode.DATA, "no question nobody: its first ids are"),
        (("--questions", "missing.jsonl"), ExitCode.DATA, "missing.jsonl"),
        (("--questions", "{questions}", "--draws", "-1"), ExitCode.SETTINGS, "--draws -1"),
        (("--store", "{store}", "--run-id", "none"), ExitCode.DATA, "run the ingest stage first"),
    ],
)
def test_wrong_arguments_are_one_line(
    world: TinyWorld,
    tmp_path: Path,
    flags: tuple[str, ...],
    code: ExitCode,
    said: str,
    fails: Fails,
) -> None:
    """What is missing, contradicts itself or names nothing."""
    known = {"questions": str(world.heldout), "store": str(tmp_path)}
    given = [flag.format(**known) for flag in flags]
    line = fails(code, "inspect", "nobody", "--model", str(tiny_model_folder()), *given)
    assert said in line


def test_adapter_folder_without_weights_is_refused(
    world: TinyWorld, model_folder: Path, tmp_path: Path, fails: Fails
) -> None:
    """Named before any model is loaded."""
    flags = ("--questions", str(world.heldout), "--adapter", str(tmp_path))
    question_id = first_id(world.heldout)
    model = ("--model", str(model_folder))
    assert "holds no adapter" in fails(ExitCode.SETTINGS, "inspect", question_id, *model, *flags)
