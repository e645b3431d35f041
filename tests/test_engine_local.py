"""Tests of the in-process engine against transformers' own generate and forward."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from mmar_jobs.audio import canary_clip, decode
from mmar_jobs.base_model import model_digest
from mmar_jobs.encode import load_processor
from mmar_jobs.engine import Completion, RepetitionDetection, Request, Sampling
from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.engine.sampling import TokenChooser, draw_seed
from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.identity import ModelIdentity, check_canary
from mmar_jobs.qlora.export import export_adapter
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.lora import attach_lora
from mmar_jobs.qlora.recipes import LoraRecipe
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Finish
from mmar_jobs.weights import WEIGHTS_FILE
from tests.fakes import make_question, make_request, sound_bytes, tone

GREEDY = Sampling(
    temperature=0, top_p=1, top_k=0, repetition_penalty=1, max_tokens=24, seed=0, logprobs=True
)
DRAWN = replace(GREEDY, temperature=0.9, top_p=0.95, seed=3)
STOP = ("<|im_end|>", "<|endoftext|>")


def requests(draws: Sequence[int] = (0,)) -> list[Request]:
    """Four questions of unlike length about clips of unlike length."""
    return [
        make_request(
            make_question(f"q{index}", text="What " * (4 * index + 1) + "is it?"),
            draws,
            decode(sound_bytes(tone(seconds=seconds, pitch_hz=pitch_hz), 16_000), "clip"),
        )
        for index, (seconds, pitch_hz) in enumerate([(1, 300), (0.4, 700), (2.3, 900), (1, 440)])
    ]


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, outspoken: fresh weights find every token as likely and hardly hear."""
    folder = tmp_path_factory.mktemp("outspoken") / "tiny"
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / WEIGHTS_FILE)
    for name in weights:
        if name in ("thinker.lm_head.weight", "thinker.audio_tower.proj2.weight"):
            weights[name] *= 15
        elif ".self_attn." in name and "audio" not in name and "norm" not in name:
            weights[name] *= 5
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> LocalEngine:
    """An engine that serves it."""
    return open_local_engine(folder, None, EngineSettings())


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    """Its processor."""
    return load_processor(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """The same model as transformers loads it, with its own attention."""
    return load_thinker(folder, dtype=torch.float32, device=torch.device("cpu"))


def ask(
    engine: LocalEngine, asked: Sequence[Request], sampling: Sampling
) -> list[list[Completion]]:
    """Answer without listening to progress."""
    return engine.answer(asked, sampling, lambda _: None)


def inputs_of(processor: Any, request: Request) -> dict[str, Any]:
    """A request as the real processor hands it to the real model."""
    text = processor.apply_chat_template(
        request.prompt.messages(), add_generation_prompt=True, tokenize=False
    )
    made: dict[str, Any] = processor(
        text=text, audio=[request.clip.waveform], sampling_rate=16_000, return_tensors="pt"
    )
    return made


def generated(reference: Any, processor: Any, request: Request, sampling: Sampling) -> str:
    """What transformers' generate says, greedily."""
    inputs = inputs_of(processor, request)
    options: dict[str, Any] = {}
    if sampling.repetition_penalty != 1:
        options["repetition_penalty"] = sampling.repetition_penalty
    out_1S = reference.generate(
        **inputs,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=processor.tokenizer.convert_tokens_to_ids(list(STOP)),
        pad_token_id=processor.tokenizer.pad_token_id,
        **options,
    )
    text: str = processor.tokenizer.decode(out_1S[0, inputs["input_ids"].shape[1] :])
    return next((text.removesuffix(stop) for stop in STOP if text.endswith(stop)), text)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_generate(
    engine: LocalEngine, reference: Any, processor: Any, penalty: float
) -> None:
    """In a padded batch the engine says what transformers says to each question alone."""
    sampling = replace(GREEDY, repetition_penalty=penalty)
    answers = ask(engine, requests(), sampling)
    expected = [generated(reference, processor, one, sampling) for one in requests()]
    assert expected == [completions[0].text for completions in answers]


def texts(answers: Sequence[Sequence[Completion]]) -> list[list[str]]:
    """The texts alone."""
    return [[completion.text for completion in completions] for completions in answers]


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_draw_does_not_depend_on_neighbours(engine: LocalEngine, penalty: float) -> None:
    """Alone, in company, in another order, in smaller batches: a draw is the same."""
    sampling = replace(DRAWN, repetition_penalty=penalty)
    together = ask(engine, requests((0, 1, 2)), sampling)
    alone = [ask(engine, [request], sampling)[0] for request in requests((0, 1, 2))]
    assert texts(together) == texts(alone)
    backwards = ask(engine, requests((0, 1, 2))[::-1], sampling)
    assert texts(together) == texts(backwards[::-1])


def test_draw_does_not_depend_on_batch_size(engine: LocalEngine, folder: Path) -> None:
    """Rows that are decoded together do not change what any of them says."""
    small = open_local_engine(folder, None, EngineSettings(rows_per_batch=2))
    expected = texts(ask(engine, requests((0, 1, 2)), DRAWN))
    assert expected == texts(ask(small, requests((0, 1, 2)), DRAWN))


def test_blocks_of_draws_equal_one_block(engine: LocalEngine) -> None:
    """Four draws and four more are the same as eight, as adaptive generation relies on."""
    whole = texts(ask(engine, requests(range(8)), DRAWN))
    first = texts(ask(engine, requests(range(4)), DRAWN))
    second = texts(ask(engine, requests(range(4, 8)), DRAWN))
    assert whole == [a + b for a, b in zip(first, second, strict=True)]


def test_draws_and_seeds_differ(engine: LocalEngine) -> None:
    """Siblings, questions and seeds each draw their own."""
    drawn = texts(ask(engine, requests(range(4)), DRAWN))
    other = texts(ask(engine, requests(range(4)), replace(DRAWN, seed=4)))
    assert 32 == len({text for texts_ in drawn + other for text in texts_})
    assert drawn == texts(ask(engine, requests(range(4)), DRAWN))


def test_audio_is_heard(engine: LocalEngine) -> None:
    """The same question about another or a muted clip has other token probabilities."""
    request = requests()[0]
    sums = [
        ask(engine, [replace(request, clip=clip)], GREEDY)[0][0].logprob_sum
        for clip in (request.clip, request.clip.muted(), canary_clip())
    ]
    assert min(abs(a - b) for a, b in combinations(sums, 2)) > 1e-4


@dataclass
class RecordingTokenizer:
    """The real tokenizer, and a log of the ids that it turned into text."""

    real: Any
    decoded: list[list[int]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def decode(self, ids: list[int], **options: Any) -> str:
        """Log and decode."""
        self.decoded.append(list(ids))
        text: str = self.real.decode(ids, **options)
        return text


@dataclass
class RecordingProcessor:
    """The real processor with a recording tokenizer."""

    real: Any
    tokenizer: RecordingTokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __call__(self, **inputs: Any) -> Any:
        """Encode."""
        return self.real(**inputs)


def forced_logprobs(reference: Any, processor: Any, request: Request, ids: list[int]) -> Any:
    """Log-softmax (T + 1, V) of the model at every place of a completion, teacher-forced."""
    inputs = inputs_of(processor, request)
    whole_1S = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    inputs |= {"input_ids": whole_1S, "attention_mask": torch.ones_like(whole_1S)}
    with torch.no_grad():
        return reference(**inputs).logits[0, -len(ids) - 1 :].log_softmax(-1)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, repetition_penalty=1.2)])
def test_logprobs_are_those_of_the_model(
    folder: Path, reference: Any, processor: Any, sampling: Sampling
) -> None:
    """The sum of logprobs is the teacher-forced forward's, before any truncation."""
    tokenizer = RecordingTokenizer(processor.tokenizer)
    model = load_thinker(folder, dtype=torch.float32, device=torch.device("cpu"))
    identity = ModelIdentity(base_digest="b")
    engine = LocalEngine(
        model, RecordingProcessor(processor, tokenizer), identity, rows_per_batch=64
    )
    asked = requests((0, 1))
    flat = [one for completions in ask(engine, asked, sampling) for one in completions]
    for index, (completion, ids) in enumerate(zip(flat, tokenizer.decoded, strict=True)):
        logprobs_TV = forced_logprobs(reference, processor, asked[index // 2], ids)
        expected = sum(logprobs_TV[place, token].item() for place, token in enumerate(ids))
        rest = completion.logprob_sum - expected
        stops = processor.tokenizer.convert_tokens_to_ids(list(STOP))
        wanted = (
            [logprobs_TV[-1, stop].item() for stop in stops]
            if completion.finish is Finish.STOP
            else [0.0]
        )
        assert min(abs(rest - value) for value in wanted) < 1e-4


def test_length_is_a_finish_reason(engine: LocalEngine) -> None:
    """What did not end by itself says so, and counts every token."""
    answers = ask(engine, requests(range(8)), replace(DRAWN, max_tokens=4))
    for completion in (one for completions in answers for one in completions):
        assert completion.finish in (Finish.LENGTH, Finish.STOP)
        assert completion.finish is Finish.STOP or completion.num_tokens == 4


def test_stop_token_ends_and_is_left_out(engine: LocalEngine) -> None:
    """Drawn at high temperature some answers stop early; none shows the stop token."""
    sampling = replace(DRAWN, temperature=20.0, top_p=1, max_tokens=150)
    answers = ask(engine, requests(range(48))[:1], sampling)
    flat = [one for completions in answers for one in completions]
    stopped = [one for one in flat if one.finish is Finish.STOP]
    assert stopped
    assert len(stopped) < len(flat)
    assert all(one.num_tokens < 150 for one in stopped)
    assert not [one for one in flat if any(stop in one.text for stop in STOP)]


def test_audio_tokens_are_counted_in_the_prompt(engine: LocalEngine) -> None:
    """Each completion says how much of its clip went into the prompt."""
    answers = ask(engine, requests(), replace(GREEDY, max_tokens=1))
    assert [13, 5, 30, 13] == [completions[0].audio_tokens for completions in answers]


def test_progress_counts_every_draw(engine: LocalEngine) -> None:
    """Progress adds up to the number of completions."""
    told: list[int] = []
    engine.answer(requests(range(3)), replace(GREEDY, max_tokens=1), told.append)
    assert 12 == sum(told)


def test_canary_is_stable_and_tells_models_apart(
    engine: LocalEngine, folder: Path, other_model_folder: Path
) -> None:
    """The same folder gives the same canary, other weights another one."""
    again = open_local_engine(folder, None, EngineSettings(rows_per_batch=1))
    check_canary(engine.canary(), again.canary(), model="m")
    other = open_local_engine(other_model_folder, None, EngineSettings())
    assert engine.canary() != other.canary()
    assert engine.identity.base_digest == model_digest(folder)
    assert engine.identity != other.identity


def test_adapter_changes_identity_and_canary(
    engine: LocalEngine, folder: Path, tmp_path: Path
) -> None:
    """A merged adapter is part of what the engine says it serves."""
    model = load_thinker(folder, dtype=torch.float32, device=torch.device("cpu"))
    lora = attach_lora(model, LoraRecipe(rank=2, alpha=4.0, dropout=0.0), seed=0)
    with torch.no_grad():
        for factor in lora.factors().values():
            factor.copy_(
                0.2 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(1))
            )
    export_adapter(lora, tmp_path / "adapter", "tiny")
    adapted = open_local_engine(folder, tmp_path / "adapter", EngineSettings())
    assert engine.identity.base_digest == adapted.identity.base_digest
    assert adapted.identity.adapter_digest is not None
    assert engine.canary().logprobs != adapted.canary().logprobs


def test_drawn_tokens_are_those_of_the_text(engine: LocalEngine, processor: Any) -> None:
    """Every draw names its tokens, the end of the turn included, and their log-probabilities."""
    sampling = replace(DRAWN, max_tokens=12)
    request = requests(draws=(0, 1, 2))[0]
    [answers] = ask(engine, [request], sampling)
    for completion in answers:
        assert len(completion.token_ids) == len(completion.logprobs) == completion.num_tokens > 0
        ended = completion.finish is Finish.STOP
        text_ids = completion.token_ids[:-1] if ended else completion.token_ids
        decoded = processor.tokenizer.decode(text_ids, skip_special_tokens=False)
        assert completion.text == decoded


@pytest.mark.parametrize(
    "options",
    [{"thinking_token_budget": 9}, {"repetition_detection": RepetitionDetection(9, 1, 4)}],
    ids=["thinking-token-budget", "repetition-detection"],
)
def test_what_only_servers_do_is_refused(engine: LocalEngine, options: dict[str, Any]) -> None:
    """It is not ignored: candidates would not be what the recipe says."""
    sampling = Sampling(0.9, 0.95, 0, 1, 8, 0, **options)
    [name] = options
    with pytest.raises(SettingsError, match=rf"--sampling.{name.replace('_', '-')} .*servers"):
        engine.answer([make_request(make_question("q"))], sampling, lambda _: None)


def test_folder_without_a_model_is_a_data_error(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(DataError, match="holds no model"):
        open_local_engine(tmp_path, None, EngineSettings())


def test_threads_are_set(folder: Path) -> None:
    """The setting reaches torch."""
    open_local_engine(folder, None, EngineSettings(threads=1))
    assert 1 == torch.get_num_threads()


def warped(
    reference: Any, sampling: Sampling, scores_1V: torch.Tensor, history_1L: torch.Tensor
) -> torch.Tensor:
    """Probabilities by the processors that transformers' own generate makes of these settings."""
    config = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
    )
    processors = reference._get_logits_processor(config, input_ids_seq_length=3)
    return torch.softmax(processors(history_1L, scores_1V), dim=-1)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.6, "top_p": 1.0},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_p": 1.0, "top_k": 3},
        {"temperature": 1.4, "top_p": 0.8, "top_k": 6, "repetition_penalty": 1.5},
    ],
)
def test_draws_follow_transformers_distribution(reference: Any, changes: dict[str, Any]) -> None:
    """Over 20,000 draws every token is as frequent as transformers' processors make it."""
    sampling = replace(DRAWN, max_tokens=1, **changes)
    num_draws = 20_000
    scores_1V = torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0]])
    history_1L = torch.tensor([[0, 0, 5]])
    seeds = [draw_seed(sampling.seed, "q", draw) for draw in range(num_draws)]
    chosen, logprobs = TokenChooser(sampling, seeds).choose(
        scores_1V.expand(num_draws, -1),
        history_1L.expand(num_draws, -1),
        torch.arange(num_draws),
        0,
    )
    expected_V = warped(reference, sampling, scores_1V, history_1L)[0]
    counts_V = torch.bincount(chosen, minlength=8)
    assert not counts_V[expected_V == 0].any()
    spread_V = 4 * (expected_V * (1 - expected_V) * num_draws).sqrt() + 1e-6
    assert ((counts_V - expected_V * num_draws).abs() <= spread_V).all()
    assert torch.equal(scores_1V.log_softmax(-1)[0][chosen], logprobs)


def test_draw_seed_is_pinned() -> None:
    """A draw's seed is a function of run seed, question and draw that must never change."""
    assert 0x5A3E == draw_seed(0, "q", 0) >> 48
