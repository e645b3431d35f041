"""Fault 9: of all right traces the shortest was kept, which teaches a model to stop listening."""

import random
from collections.abc import Callable, Sequence

from mmar_jobs.errors import ExitCode
from mmar_jobs.records import Candidate, Grade, Zone
from mmar_jobs.stages.filter import Tally
from mmar_jobs.zone import Rate, Selection, SelectionRule, examples_of, select
from tests.fakes import make_candidate, make_question, think
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import stopped

Chooser = Callable[[Sequence[Candidate], int], list[Candidate]]
RULE = SelectionRule(top_k=2, min_valid=2)


def by_lot(candidates: Sequence[Candidate], top_k: int) -> list[Candidate]:
    """Our own choice."""
    return select(candidates, RULE)


def shortest(candidates: Sequence[Candidate], top_k: int) -> list[Candidate]:
    """The earlier attempt's choice."""
    return sorted(candidates, key=lambda candidate: candidate.num_tokens)[:top_k]


def tally_of(choose: Chooser, num_questions: int) -> Tally:
    """What filter counts when it chooses 2 of 8 right traces of different lengths a question."""
    tally, dice = Tally(), random.Random(0)
    for index in range(num_questions):
        question = make_question(f"q{index}")
        candidates = [
            make_candidate(
                question, draw, completion=think("one", f"draw {draw}"), num_tokens=length
            )
            for draw, length in enumerate(dice.sample(range(50, 500), 8))
        ]
        honest = examples_of(question, candidates, RULE)
        chosen = choose(candidates, RULE.top_k)
        kept = {candidate.draw for candidate in chosen}
        everything = examples_of(question, candidates, RULE.model_copy(update={"top_k": 8}))
        selection = Selection(
            examples=tuple(e for e in everything.examples if e.draw in kept),
            drops=honest.drops,
            grades={Grade.CORRECT: 8},
            zone=Zone.MASTERED,
            rate=Rate(8, 8),
            choosable_tokens=honest.choosable_tokens,
            chosen_tokens=tuple(candidate.num_tokens for candidate in chosen),
        )
        tally.add(selection, 8)
    return tally


def test_09_keeping_the_shortest_is_refused() -> None:
    """A choice that leans on length is found by its numbers, whatever code made it."""
    stop = stopped(tally_of(shortest, 60).check_blind)
    stop.says(ExitCode.DATA, "kept traces are", "shorter", "tokens", "length must not decide")


def test_09_keeping_the_longest_is_refused_as_well() -> None:
    """The check looks both ways."""

    def longest(candidates: Sequence[Candidate], top_k: int) -> list[Candidate]:
        return shortest(candidates, len(candidates))[-top_k:]

    stopped(tally_of(longest, 60).check_blind).says(ExitCode.DATA, "longer")


def test_09_our_choice_is_blind_to_length() -> None:
    """A lot by hash keeps long and short traces alike."""
    tally_of(by_lot, 300).check_blind()


def test_09_there_is_no_setting_for_it(run_after: HealthyRun) -> None:
    """The strategy of the earlier attempt cannot be asked for."""
    stop = run_after("generate").cli("filter", "--filter.strategy", "shortest")
    stop.says(ExitCode.SETTINGS, "--filter.strategy", "'top_k' or 'all'")
