"""Keep the candidates that are provably right as training examples; pure but for the artifacts.

Streams: one question's candidates are in memory at a time. Not here: grading (grade.py) and
choosing (zone.py).
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from mmar_jobs.artifact import Artifact, begin, pack_records, require_artifact
from mmar_jobs.audio import check_audio_tokens
from mmar_jobs.errors import DataError, GateError, NothingToLearn, SettingsError
from mmar_jobs.examples import OBJECTIVE
from mmar_jobs.grade import grade, parse
from mmar_jobs.group import GroupRule, is_flat, with_advantages
from mmar_jobs.judge.candidates import read_scores
from mmar_jobs.layout import (
    BENCHMARK,
    TRAIN,
    candidates_key,
    examples_key,
    muted_key,
    questions_key,
)
from mmar_jobs.manifest import Manifest, sha256
from mmar_jobs.prompt import render, template_hash
from mmar_jobs.questions import read_split
from mmar_jobs.recipes import FilterRecipe, recipe
from mmar_jobs.records import Candidate, Example, Finish, Grade, Question, Zone
from mmar_jobs.settings import FilterCommand
from mmar_jobs.split import source_keys
from mmar_jobs.stages import Edges, stopwatch
from mmar_jobs.stages.answering import OPENS_THINKING
from mmar_jobs.store import read_uri
from mmar_jobs.zone import DropReason, Selection, SelectionRule, Strategy, examples_of

STAGE: Final = "filter"
SHARD: Final = "part-00000-of-00001.jsonl.gz"
_MAX_LENGTH_SIGMAS: Final = 6.0  # by chance once in 5e8 iterations
_LEARNING: Final = (Zone.HARD, Zone.MEDIUM, Zone.EASY)


def run(command: FilterCommand, edges: Edges) -> Artifact:
    """Make or verify the examples of one iteration; no example at all is an error."""
    store, run_id = edges.store, command.run_id
    questions = require_artifact(store, questions_key(run_id), stage="ingest")
    candidates = require_artifact(
        store, candidates_key(run_id, command.iteration), stage="generate"
    )
    inputs = {"questions": questions.digest, "candidates": candidates.digest}
    muted = None
    if command.filter.audio_dependence or command.rewards_hearing:
        muted = require_artifact(store, muted_key(run_id, command.iteration), stage="generate")
        inputs["muted"] = muted.digest
    judged = _read_judged(command)
    draft = begin(
        store,
        examples_key(run_id, command.iteration),
        stage=STAGE,
        recipe=_recipe(command, judged),
        inputs=inputs,
    )
    if isinstance(draft, Artifact):
        return draft
    cost: dict[str, float] = {}
    with stopwatch(cost):
        asked = {question.id: question for question in read_split(questions, TRAIN)}
        guard = {key for q in read_split(questions, BENCHMARK) for key in source_keys(q)}
        solved_muted = _solved_muted(muted, asked)
        sieve = Sieve(
            asked,
            selection_rule(
                command.filter, think_open_in_prompt=candidates.manifest.metrics[OPENS_THINKING]
            ),
            command.prompt.version,
            guard,
            solved_muted=solved_muted if command.filter.audio_dependence else frozenset(),
            grouping=_group_rule(
                command,
                candidates.manifest,
                solved_muted=solved_muted,
                rubric_scores=_rubric_scores(command, judged, asked),
            ),
        )
        data, num_examples = pack_records(sieve.examples(candidates.records(Candidate)))
    tally = sieve.tally
    if not num_examples:
        raise NothingToLearn(
            f"iteration {command.iteration}: none of {tally.counts['num_candidates']} candidates "
            f"became an example ({tally.why()}): nothing to train on; look at the prompt, the "
            "choices and the --filter settings"
        )
    tally.check_blind()
    draft.write_bytes(SHARD, data, num_records=num_examples)
    edges.log.info("candidates_filtered", **tally.counts, dropped=tally.why())
    return draft.finish(
        [SHARD], counts=tally.counts, metrics=tally.metrics(), placement={}, cost=cost
    )


def _read_judged(command: FilterCommand) -> bytes | None:
    """What the judge said, if a reward needs it; SettingsError where only one of both is given."""
    is_rewarded = command.objective != "rest" and command.reward.rubric > 0
    if is_rewarded != bool(command.rubric_scores):
        raise SettingsError(
            "--reward.rubric (with --objective grpo or rest+grpo) and --rubric-scores FILE belong "
            "together: write the file by `mmar-jobs candidates`, then `score --rubrics --json`"
        )
    if not is_rewarded:
        return None
    return read_uri(command.rubric_scores, endpoint_url=command.endpoint_url)


def _rubric_scores(
    command: FilterCommand, judged: bytes | None, questions: Mapping[str, Question]
) -> Mapping[str, Mapping[str, float]]:
    if judged is None:
        return {}
    scores = read_scores(judged, command.rubric_scores)
    if scores.keys().isdisjoint(questions):
        raise DataError(
            f"{command.rubric_scores} rates no question of this run: write its candidates by "
            "`mmar-jobs candidates` and have them rated"
        )
    return scores


def _recipe(command: FilterCommand, judged: bytes | None) -> dict[str, Any]:
    groups = recipe(("filter", command.filter), ("prompt", command.prompt))
    groups["template_hash"] = template_hash(command.prompt.version)
    if command.objective != "rest":
        groups |= recipe(("reward", command.reward)) | {OBJECTIVE: command.objective}
    if judged is not None:
        groups["rubric_scores"] = sha256(judged)
    return groups


def _group_rule(
    command: FilterCommand,
    candidates: Manifest,
    *,
    solved_muted: frozenset[str],
    rubric_scores: Mapping[str, Mapping[str, float]],
) -> GroupRule | None:
    """How candidates are rewarded; None where only right ones are learned."""
    if command.objective == "rest":
        return None
    return GroupRule(
        weights=command.reward.weights,
        divides_by_std=command.reward.divide_by_std,
        keeps_examples=command.objective == "rest+grpo",
        max_tokens=candidates.recipe["sampling"]["max_tokens"],
        think_open_in_prompt=candidates.metrics[OPENS_THINKING],
        solved_muted=solved_muted,
        rubric_scores=rubric_scores,
    )


def selection_rule(settings: FilterRecipe, *, think_open_in_prompt: bool) -> SelectionRule:
    """The settings in the form of the pure module."""
    return SelectionRule(
        think_open_in_prompt=think_open_in_prompt,
        strategy=Strategy(settings.strategy),
        top_k=settings.top_k,
        min_valid=settings.min_valid,
        zone_weights={Zone(name): weight for name, weight in settings.weights.model_dump().items()},
        seed=settings.seed,
    )


@dataclass
class Tally:
    """What became of all candidates and questions."""

    counts: Counter[str] = field(default_factory=Counter)
    drops: Counter[DropReason] = field(default_factory=Counter)
    grades: Counter[Grade] = field(default_factory=Counter)
    zones: Counter[Zone] = field(default_factory=Counter)
    weight: float = 0.0
    reward_sum: float = 0.0
    num_chosen: int = 0  # examples that were chosen among more
    length_excess: float = 0.0  # tokens of the kept traces beyond what a blind choice expects
    length_variance: float = 0.0  # of that sum under a blind choice, tokens squared

    def add(self, selection: Selection, num_candidates: int) -> None:
        """Count one question's candidates."""
        self.counts["num_questions"] += 1
        self.counts["num_candidates"] += num_candidates
        self.counts["num_examples"] += len(selection.examples)
        self.counts["num_correct"] += selection.rate.num_correct
        self.counts["num_valid"] += selection.rate.num_valid
        self.counts["num_learning_zone"] += selection.zone in _LEARNING
        self.drops.update(selection.drops)
        self.grades.update(selection.grades)
        self.zones[selection.zone] += 1
        self.weight += sum(example.weight for example in selection.examples)
        if selection.rewards:
            self.counts["num_groups"] += 1
            self.counts["num_flat_groups"] += is_flat(selection.rewards)
            self.counts["num_rewarded"] += len(selection.rewards)
            self.reward_sum += sum(selection.rewards)
        self._add_lengths(selection)

    def _add_lengths(self, selection: Selection) -> None:
        """Mean and variance of drawing k of n without replacement (Cochran 1977, theorem 2.2)."""
        lengths, kept = selection.choosable_tokens, selection.chosen_tokens
        if not 0 < len(kept) < len(lengths):
            return
        n, k = len(lengths), len(kept)
        mean = sum(lengths) / n
        spread = sum((length - mean) ** 2 for length in lengths) / (n - 1)
        self.length_excess += sum(kept) - k * mean
        self.length_variance += k * (n - k) / n * spread
        self.num_chosen += k

    def check_blind(self) -> None:
        """Raise GateError when the kept traces are shorter or longer than a blind choice explains.

        The earlier attempt kept the shortest right trace and so taught to reason ever less.
        """
        limit = _MAX_LENGTH_SIGMAS * math.sqrt(self.length_variance)
        if abs(self.length_excess) <= limit:
            return
        tokens = self.length_excess / self.num_chosen
        raise GateError(
            f"the kept traces are {abs(tokens):.1f} tokens {'longer' if tokens > 0 else 'shorter'} "
            "than the right ones they were chosen from, more than chance explains: length must not "
            "decide which traces are learned; choose by lot"
        )

    def why(self) -> str:
        """The drop reasons in words, most frequent first."""
        return ", ".join(f"{reason.value} {count}" for reason, count in self.drops.most_common())

    def metrics(self) -> dict[str, Any]:
        """Rates and reasons for the manifest."""
        valid, num_rewarded = self.counts["num_valid"], self.counts.get("num_rewarded", 0)
        rewarded = {"mean_reward": self.reward_sum / num_rewarded} if num_rewarded else {}
        return rewarded | {
            "valid_rate": valid / max(1, self.counts["num_candidates"]),
            "correct_rate": self.counts["num_correct"] / max(1, valid),
            "drops": {reason.value: count for reason, count in self.drops.items()},
            "grades": {grade.value: count for grade, count in self.grades.items()},
            "zones": {zone.value: self.zones[zone] for zone in Zone},
            "weight_sum": self.weight,
        }


class Sieve:
    """Turns a stream of candidates, siblings together, into a stream of examples.

    Proves on the way what training will rely on: the prompt is the one that would be rendered now,
    one model gave all answers, every clip was heard in full, and the parse still says what the
    record says.
    """

    def __init__(
        self,
        questions: Mapping[str, Question],
        recipe: SelectionRule,
        prompt_version: str,
        guard: set[tuple[str, str]],
        *,
        solved_muted: frozenset[str] = frozenset(),
        grouping: GroupRule | None = None,
    ) -> None:
        self.tally = Tally()
        self._questions = questions
        self._recipe = recipe
        self._prompt_version = prompt_version
        self._guard = guard
        self._solved_muted = solved_muted
        self._grouping = grouping
        self._model_hash = ""
        self._seen: set[str] = set()

    def examples(self, candidates: Iterable[Candidate]) -> Iterator[Example]:
        """Examples in the order of the candidates."""
        for question_id, group in groupby(candidates, key=lambda candidate: candidate.question_id):
            siblings = list(group)
            question = self._checked_question(question_id)
            prompt_hash = render(question, self._prompt_version).hash
            for candidate in siblings:
                self._check(candidate, question, prompt_hash)
            veto = self._veto(question)
            selection = examples_of(question, siblings, self._recipe, veto=veto)
            if self._grouping is not None:
                selection = with_advantages(
                    question, siblings, selection, self._grouping, veto=veto
                )
            self.tally.add(selection, len(siblings))
            yield from selection.examples

    def _checked_question(self, question_id: str) -> Question:
        question = self._questions.get(question_id)
        if question is None:
            raise GateError(
                f"candidate of unknown question {question_id}: it is not in the training split"
            )
        if question_id in self._seen:
            raise GateError(f"candidates of question {question_id} lie apart: shards are mixed up")
        self._seen.add(question_id)
        return question

    def _veto(self, question: Question) -> DropReason | None:
        hit = next((key for key in source_keys(question) if key in self._guard), None)
        if hit is not None:
            raise GateError(
                f"question {question.id} shares its {hit[0]} {hit[1][:40]} with the benchmark: "
                "training on it would be cheating; ingest again without it"
            )
        return DropReason.SOLVED_MUTED if question.id in self._solved_muted else None

    def _check(self, candidate: Candidate, question: Question, prompt_hash: str) -> None:
        where = f"question {question.id} draw {candidate.draw}"
        if candidate.prompt_hash != prompt_hash:
            raise GateError(
                f"{where}: it was asked with another prompt than {self._prompt_version} renders "
                "now: training would see a prompt that was never answered; use generate's version"
            )
        self._model_hash = self._model_hash or candidate.model_hash
        if candidate.model_hash != self._model_hash:
            raise GateError(f"{where}: another model answered it than the candidates before")
        if candidate.finish is Finish.ERROR:
            return
        check_audio_tokens(
            candidate.audio_tokens, duration_s=question.audio_s, question_id=question.id
        )
        if (
            parse(candidate.completion, candidate.finish, question.choices).answer
            != candidate.answer
        ):
            raise GateError(
                f"{where}: its record says answer {candidate.answer!r}, its completion does not"
            )


def _solved_muted(muted: Artifact | None, questions: Mapping[str, Question]) -> frozenset[str]:
    if muted is None:
        return frozenset()
    return frozenset(
        candidate.question_id
        for candidate in muted.records(Candidate)
        if grade(candidate, questions[candidate.question_id]) is Grade.CORRECT
    )
