"""Tests of training by a policy gradient: it agrees with the engine, learns, resumes, and stops."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmar_jobs.audio import canary_clip
from mmar_jobs.drawn_tokens import pack_tokens
from mmar_jobs.encode import encode_prompt, load_processor
from mmar_jobs.engine import Sampling
from mmar_jobs.engine.local import open_local_engine
from mmar_jobs.errors import GateError, SettingsError, TryAgain
from mmar_jobs.qlora.audio_embeds import MelFeatures, embed_clips
from mmar_jobs.qlora.encode import encode_policy_example
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.lora import LoraModel, attach_lora
from mmar_jobs.qlora.packing import PolicyRow, TrainRow, digest_rows, pack
from mmar_jobs.qlora.policy import PolicyGradient, score
from mmar_jobs.qlora.recipes import LoraRecipe, PolicyRecipe, TrainRecipe
from mmar_jobs.qlora.step import CROSS_ENTROPY, Fit, Objective, StepResult
from mmar_jobs.qlora.trainer import Surroundings, TrainResult, digest_factors, train
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Finish, PolicyExample, Zone
from mmar_jobs.tiny import tiny_model_folder
from tests import qlora_cases as cases
from tests.fakes import make_question, make_request
from tests.test_qlora_trainer import MemoryCheckpoints, adapter_bytes

LENGTHS = [(12, 6), (10, 9), (15, 4), (9, 7)] * 3
RECIPE = TrainRecipe(
    learning_rate=3e-3, num_epochs=3, examples_per_step=6, token_budget=64, checkpoint_every_steps=2
)
PLAIN = PolicyRecipe()
GRPO = PolicyGradient(PLAIN)


def make_candidates(
    lora: LoraModel, *, weights: Sequence[float] = (0.0,)
) -> tuple[list[PolicyRow], dict[str, Tensor]]:
    """Three questions' candidates, and the embeddings of their clips."""
    repeated = [weights[index % len(weights)] for index in range(len(LENGTHS))]
    rows, audio = cases.make_rows(LENGTHS, weights=repeated)
    return cases.as_candidates(lora, rows, audio), audio


def run(
    recipe: TrainRecipe = RECIPE,
    objective: Objective = GRPO,
    *,
    checkpoints: MemoryCheckpoints | None = None,
    stop_after: int | None = None,
    weights: Sequence[float] = (0.0,),
) -> tuple[LoraModel, TrainResult]:
    """Train the tiny random model on fixed candidates; `stop_after` steps it is preempted."""
    lora = cases.adapted(fill=False)
    rows, audio = make_candidates(lora, weights=weights)

    def on_step(step: int, _: int, result: StepResult) -> None:
        assert result.metrics
        if step == stop_after:
            raise TryAgain("preempted")

    around = Surroundings(checkpoints=checkpoints, on_step=on_step)
    return lora, train(lora, rows, recipe, audio=audio, around=around, objective=objective)


def test_it_raises_what_was_better_and_lowers_what_was_worse() -> None:
    """After training right candidates are likelier than before, wrong ones less likely."""
    lora = cases.adapted(fill=False)
    rows, audio = make_candidates(lora)
    before = [part.mean() for part in score(cases.fit_of(lora, audio), rows)]
    train(lora, rows, RECIPE, audio=audio, objective=GRPO)
    after = [part.mean() for part in score(cases.fit_of(lora, audio), rows)]
    moved = [float(new - old) for old, new in zip(before, after, strict=True)]
    good = [move for move, row in zip(moved, rows, strict=True) if row.advantage > 0]
    bad = [move for move, row in zip(moved, rows, strict=True) if row.advantage < 0]
    assert min(good) > 0
    assert sum(bad) / len(bad) < 0


def test_first_step_is_on_policy() -> None:
    """Before the first update every ratio is 1: nothing is clipped, no divergence, then some."""
    _, result = run()
    first, second = result.metrics[0], result.metrics[1]
    assert (0, 0) == (first["clip_fraction"], first["importance_cut_fraction"])
    assert abs(first["kl_old"]) < 1e-9 < second["kl_old"]
    assert result.facts["engine_mean_abs_nats"] == pytest.approx(0.01 * 0.8, rel=0.2)
    assert 0 < result.facts["engine_kl"] < 1e-4
    assert result.num_steps == len(result.metrics) == 6


def test_packing_does_not_matter() -> None:
    """One candidate a row or several: the same losses and divergences to rounding."""
    _, packed = run()
    _, apart = run(replace(RECIPE, token_budget=19))
    assert packed.losses == pytest.approx(apart.losses, abs=1e-5)
    assert packed.grad_norms == pytest.approx(apart.grad_norms, rel=1e-3)


def test_examples_beside_a_policy_change_what_is_learned() -> None:
    """With a weight the cross-entropy of right candidates is part of the loss, else it is not."""
    both = PolicyGradient(replace(PLAIN, example_weight=0.5))
    weights = (1.0, 0.0, 0.0, 0.0)
    with_examples = run(objective=both, weights=weights)[1]
    assert with_examples.losses != run(weights=weights)[1].losses
    assert run(weights=weights)[1].losses == run()[1].losses


@pytest.mark.parametrize("stop_after", [1, 3])
def test_interrupted_and_resumed_is_bit_equal(stop_after: int, tmp_path: Path) -> None:
    """Taken away after any step, resumed in a fresh model: the same adapter and metrics."""
    objective = PolicyGradient(replace(PLAIN, kl_weight=0.1))
    expected, expected_result = run(objective=objective)
    checkpoints = MemoryCheckpoints()
    with pytest.raises(TryAgain):
        run(objective=objective, checkpoints=checkpoints, stop_after=stop_after)
    resumed, result = run(objective=objective, checkpoints=checkpoints)
    assert adapter_bytes(expected, tmp_path / "a") == adapter_bytes(resumed, tmp_path / "b")
    assert replace(expected_result, seconds=0) == replace(result, seconds=0)


class _AskedOnce(PolicyGradient):
    """GRPO that counts how often the model is asked before its first step."""

    num_asked = 0

    def reference(self, fit: Fit, rows: Sequence[TrainRow]) -> dict[str, Tensor]:
        """See Objective."""
        type(self).num_asked += 1
        return super().reference(fit, rows)


def test_resumed_training_asks_neither_policy_again() -> None:
    """What the model said before its first step is in the checkpoint: no second forward pass."""
    objective = _AskedOnce(replace(PLAIN, kl_weight=0.1))
    checkpoints = MemoryCheckpoints()
    with pytest.raises(TryAgain):
        run(objective=objective, checkpoints=checkpoints, stop_after=1)
    run(objective=objective, checkpoints=checkpoints)
    assert 1 == _AskedOnce.num_asked


def test_training_ends_early_and_stays_ended(tmp_path: Path) -> None:
    """A step beyond the divergence allowed is the last one, also for who resumes after it."""
    limit = run()[1].metrics[2]["kl_old"] * 0.999
    objective = PolicyGradient(replace(PLAIN, max_kl=limit))
    ended, result = run(objective=objective)
    assert result.num_steps < 6
    assert result.stop_reason is not None
    assert result.stop_reason.startswith("kl_old ")
    checkpoints = MemoryCheckpoints()
    with pytest.raises(TryAgain):
        run(objective=objective, checkpoints=checkpoints, stop_after=result.num_steps)
    resumed, again = run(objective=objective, checkpoints=checkpoints)
    assert replace(result, seconds=0) == replace(again, seconds=0)
    assert adapter_bytes(ended, tmp_path / "a") == adapter_bytes(resumed, tmp_path / "b")


def test_training_ends_early_by_clipping() -> None:
    """The share of clipped tokens is the other limit."""
    tight = PolicyRecipe(clip_low=1e-4, clip_high=1e-4, max_clip_fraction=0.2)
    _, result = run(objective=PolicyGradient(tight))
    assert 2 == result.num_steps
    assert result.metrics[0]["clip_fraction"] <= 0.2 < result.metrics[1]["clip_fraction"]
    assert result.stop_reason is not None
    assert result.stop_reason.startswith("clip_fraction ")


def test_checkpoint_of_another_objective_is_refused() -> None:
    """Neither another recipe of the policy nor plain fine-tuning goes on from it."""
    checkpoints = MemoryCheckpoints()
    run(checkpoints=checkpoints)
    for other in (PolicyGradient(replace(PLAIN, clip_high=0.5)), CROSS_ENTROPY):
        with pytest.raises(SettingsError, match="another recipe"):
            run(objective=other, checkpoints=MemoryCheckpoints(checkpoints.saved), weights=(1.0,))


def test_rows_digest_covers_advantage_and_engine() -> None:
    """Other advantages or engine log-probabilities are other data."""
    rows, _ = make_candidates(cases.adapted(fill=False))
    other = replace(rows[0], advantage=0.5)
    shifted = replace(rows[0], engine_C=rows[0].engine_C - 1e-4)
    digests = {digest_rows([first, *rows[1:]]) for first in (rows[0], other, shifted)}
    assert 3 == len(digests)


def test_base_is_the_model_with_its_adapter_off() -> None:
    """Switched off, the adapter adds nothing; switched on again, it is what it was, bit for bit."""
    lora = cases.adapted()
    rows, audio = make_candidates(lora)
    fit, digest = cases.fit_of(lora, audio), digest_factors(lora)
    on, base = score(fit, rows), score(fit, rows, is_base=True)
    again = score(fit, rows)
    assert all(torch.equal(one, two) for one, two in zip(on, again, strict=True))
    assert digest == digest_factors(lora)
    assert max((one - two).abs().max() for one, two in zip(on, base, strict=True)) > 0.1
    lora.detach()
    for row, part in zip(rows, base, strict=True):
        logits_SV = cases.separate_logits(lora.model, row, audio)
        logprob_SV = logits_SV[row.num_prompt_tokens - 1 : -1].log_softmax(-1)
        expected = logprob_SV.gather(1, row.input_ids_S[row.num_prompt_tokens :, None])[:, 0]
        assert torch.allclose(expected, part, atol=1e-4)


def test_divergence_from_the_base_holds_the_policy_back() -> None:
    """With a weight on it the trained model ends nearer to its base."""
    free, held = (
        run(objective=PolicyGradient(PolicyRecipe(kl_weight=weight)))[1].metrics[-1]["kl_base"]
        for weight in (1e-9, 20.0)
    )
    assert 0 < held < 0.8 * free


def test_a_trainer_that_is_another_model_is_refused() -> None:
    """Deaf, with another parent or prompt, it would learn from ratios that mean nothing."""
    lora = cases.adapted(fill=False)
    rows, audio = make_candidates(lora)
    deaf = {clip: torch.zeros_like(embeds) for clip, embeds in audio.items()}
    fits = train(lora, rows, RECIPE, audio=audio, objective=GRPO)
    assert fits.num_steps
    worse = [replace(row, engine_C=row.engine_C - 0.5) for row in rows]
    with pytest.raises(GateError, match=r"differ by 0\.\d+ nats a token.* nothing was trained"):
        train(cases.adapted(), worse, RECIPE, audio=deaf, objective=GRPO)


def example_of(engine: Any, sampling: Sampling, draw: int = 0) -> tuple[Any, PolicyExample]:
    """One draw of the tiny model as filter would write it, and its request."""
    request = make_request(make_question(), draws=(draw,))
    [[completion]] = engine.answer([request], sampling, lambda _: None)
    return request, PolicyExample(
        question_id=request.question_id,
        draw=draw,
        completion=completion.text,
        weight=0,
        zone=Zone.MEDIUM,
        rate=0.5,
        num_tokens=completion.num_tokens,
        audio_sha256="clip",
        prompt_hash=request.prompt.hash,
        model_hash="m",
        finish=completion.finish,
        reward=1,
        advantage=0.5,
        drawn_tokens=pack_tokens(completion.token_ids, completion.logprobs),
    )


@pytest.mark.parametrize("max_tokens", [9, 96])
def test_trainer_and_engine_agree(max_tokens: int) -> None:
    """On the tiny model's own draws, cut or ended, to 1e-3 nats a token; a deaf one is refused."""
    folder, processor = tiny_model_folder(), load_processor(tiny_model_folder())
    engine = open_local_engine(folder, None, EngineSettings(threads=1))
    sampling = Sampling(1.0, 1.0, 0, 1.0, max_tokens, seed=4, logprobs=True)
    drawn = [example_of(engine, sampling, draw) for draw in range(4)]
    prompt = encode_prompt(processor, drawn[0][0].prompt, canary_clip(), question_id="q1")
    rows = [encode_policy_example(processor, prompt, example) for _, example in drawn]
    model = load_thinker(folder, dtype=torch.float32, device=torch.device("cpu"))
    clip = MelFeatures("clip", prompt.features_MF)
    [embeds] = embed_clips(model, [clip], [prompt.num_audio_tokens])
    lora = attach_lora(model, LoraRecipe(rank=2, alpha=4.0), seed=0)
    own = score(cases.fit_of(lora, {"clip": embeds}, token_budget=1024), rows)
    finishes = {example.finish for _, example in drawn}
    assert finishes == ({Finish.LENGTH} if max_tokens == 9 else {Finish.STOP})
    for row, part in zip(rows, own, strict=True):
        assert row.num_labels == len(part) > 1
        assert (row.engine_C - part).abs().max() < 1e-3
    assert 1 == len(list(pack(rows, 1024)))
    deaf = cases.fit_of(lora, {"clip": torch.zeros_like(embeds)}, token_budget=1024)
    with pytest.raises(GateError, match="does not hear; nothing was trained"):
        GRPO.prepare(rows, GRPO.reference(deaf, rows))


def test_tokens_of_another_text_are_refused() -> None:
    """What was rewarded must be what is trained, and the prompt must hold the whole clip."""
    folder, processor = tiny_model_folder(), load_processor(tiny_model_folder())
    engine = open_local_engine(folder, None, EngineSettings(threads=1))
    request, example = example_of(engine, Sampling(1.0, 1.0, 0, 1.0, 96, seed=4, logprobs=True))
    prompt = encode_prompt(processor, request.prompt, canary_clip(), question_id="q1")
    other = example.model_copy(update={"completion": "another text"})
    with pytest.raises(GateError, match="its tokens say another text"):
        encode_policy_example(processor, prompt, other)
    audio_id = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
    is_audio_S = prompt.input_ids_S == audio_id
    deaf = replace(prompt, input_ids_S=prompt.input_ids_S[~is_audio_S])
    with pytest.raises(GateError, match="audio token"):
        encode_policy_example(processor, deaf, example)
    faked = pack_tokens([audio_id], [-1.0])
    text = processor.tokenizer.decode([audio_id], skip_special_tokens=False)
    with pytest.raises(GateError, match="labels hold the audio token"):
        encode_policy_example(
            processor,
            prompt,
            example.model_copy(update={"completion": text, "drawn_tokens": faked}),
        )
