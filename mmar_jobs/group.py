"""From all candidates of one question to what a policy gradient learns from: their advantages.

Pure. Not here: what is rewarded (rewards.py), which candidates plain fine-tuning learns (zone.py).

An advantage is a reward less its group's mean (Shao et al. 2024, arXiv 2402.03300). Dividing by the
group's deviation makes the easiest and hardest questions count most, so it is off unless asked for
(Liu et al. 2025, arXiv 2503.20783). Where all rewards are equal nothing can be learned.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mmar_jobs.drawn_tokens import unpack_tokens
from mmar_jobs.errors import GateError
from mmar_jobs.grade import has_control_token
from mmar_jobs.records import Candidate, Example, Finish, PolicyExample, Question
from mmar_jobs.rewards import Circumstances, total_reward
from mmar_jobs.zone import DropReason, Selection

_FLAT: Final = 1e-9  # sums of the same rewards in another order are equal
_EPSILON: Final = 1e-4  # as TRL's


@dataclass(frozen=True, slots=True)
class GroupRule:
    """How candidates are rewarded; `keeps_examples` adds what plain fine-tuning learns, weighted.

    `solved_muted` are ids of questions, `rubric_scores` is by them; see Circumstances.
    """

    weights: Mapping[str, float]
    divides_by_std: bool
    keeps_examples: bool
    max_tokens: int
    think_open_in_prompt: bool
    solved_muted: frozenset[str] = frozenset()
    rubric_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def is_flat(rewards: Sequence[float]) -> bool:
    """Whether all rewards are equal, so that nothing can be learned from their differences."""
    return not rewards or max(rewards) - min(rewards) < _FLAT


def advantages(rewards: Sequence[float], *, divides_by_std: bool) -> list[float]:
    """Rewards less their mean; all 0 where they are equal, or there is but one."""
    if is_flat(rewards):
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    scale = statistics.stdev(rewards) + _EPSILON if divides_by_std else 1.0
    return [(reward - mean) / scale for reward in rewards]


def with_advantages(
    question: Question,
    candidates: Sequence[Candidate],
    selection: Selection,
    rule: GroupRule,
    *,
    veto: DropReason | None = None,
) -> Selection:
    """`selection`, the same as plain fine-tuning has it, with PolicyExamples for its examples.

    Every candidate becomes one but errors, those with control tokens, those of a flat group that
    nothing else gives weight, and all where `veto` says why their question is left out. GateError
    for candidates without tokens.
    """
    if veto is not None:
        return replace(selection, examples=(), drops={veto: len(candidates)})
    answered = [one for one in candidates if one.finish is not Finish.ERROR]
    drawn = sorted(
        (one for one in answered if not has_control_token(one.completion)),
        key=lambda one: one.draw,
    )
    known = Circumstances(
        question.id in rule.solved_muted,
        rule.max_tokens,
        rule.think_open_in_prompt,
        rule.rubric_scores.get(question.id),
    )
    rewards = [total_reward(question, one, known, rule.weights) for one in drawn]
    found = advantages(rewards, divides_by_std=rule.divides_by_std)
    chosen = {example.draw: example for example in selection.examples if rule.keeps_examples}
    examples = [
        _example(question, one, selection, reward=reward, advantage=advantage, chosen=chosen)
        for one, reward, advantage in zip(drawn, rewards, found, strict=True)
        if advantage or one.draw in chosen
    ]
    drops = Counter(
        {
            DropReason.ERROR: len(candidates) - len(answered),
            DropReason.CONTROL_TOKEN: len(answered) - len(drawn),
            DropReason.FLAT_GROUP: len(drawn) - len(examples),
        }
    )
    return replace(selection, examples=tuple(examples), drops=+drops, rewards=tuple(rewards))


def _example(
    question: Question,
    candidate: Candidate,
    selection: Selection,
    *,
    reward: float,
    advantage: float,
    chosen: Mapping[int, Example],
) -> PolicyExample:
    where = f"question {question.id} draw {candidate.draw}"
    if not candidate.drawn_tokens:
        raise GateError(
            f"{where}: its tokens were not recorded, so only --objective rest can learn from "
            "it: generate again under another --run-id"
        )
    num_drawn = len(unpack_tokens(candidate.drawn_tokens).ids)
    if num_drawn != candidate.num_tokens:
        raise GateError(
            f"{where}: {num_drawn} tokens recorded, its completion has {candidate.num_tokens}: "
            "generate again under another --run-id"
        )
    weight = chosen[candidate.draw].weight if candidate.draw in chosen else 0.0
    return PolicyExample(
        question_id=question.id,
        draw=candidate.draw,
        completion=candidate.completion,
        weight=weight,
        zone=selection.zone,
        rate=selection.rate.value,
        num_tokens=candidate.num_tokens,
        audio_sha256=question.audio_sha256,
        prompt_hash=candidate.prompt_hash,
        model_hash=candidate.model_hash,
        finish=candidate.finish,
        reward=reward,
        advantage=advantage,
        drawn_tokens=candidate.drawn_tokens,
    )
