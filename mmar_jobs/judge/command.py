"""`score --rubrics`: estimate, rate, score.

Not here: the accuracies of `score` (check_command.py), the protocol (rubric.py).
"""

import argparse
import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmar_jobs.arguments import not_negative, whole_number
from mmar_jobs.errors import DataError, ExitCode, SettingsError, TryAgain
from mmar_jobs.judge.result import RubricGroup, RubricScore, score_items, summarize
from mmar_jobs.judge.rubric import (
    NUM_RATINGS,
    SYSTEM,
    Rubric,
    Subject,
    estimate_reply_tokens,
    estimate_tokens,
    parse_rubric,
    prompt_digest,
    render_prompt,
)
from mmar_jobs.lines import open_lines
from mmar_jobs.records import Question
from mmar_jobs.score import official_correct

if TYPE_CHECKING:
    from mmar_jobs.judge.client import Judge
    from mmar_jobs.judge.journal import Journal
    from mmar_jobs.judge.rate import Failures

_NUM_SHOWN: Final = 3


@dataclass(frozen=True)
class _Work:
    """What is to be rated, and digests of all that shapes it."""

    questions: list[Question]
    right_ids: frozenset[str]
    subjects: list[Subject]
    reply_tokens: int
    predictions_sha256: str
    rubrics_sha256: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the rubric score, in a group of their own."""
    group = parser.add_argument_group("rubric score (reasoning judged by a model)")
    group.add_argument(
        "--rubrics", action="store_true", help="score the reasoning too (default: answers only)"
    )
    group.add_argument(
        "--judge", metavar="URL", help="OpenAI-compatible server, http://host:8000/v1 (required)"
    )
    group.add_argument("--judge-model", metavar="NAME", help="the judge's model name (required)")
    group.add_argument(
        "--judge-reports",
        metavar="NAME",
        help="what the server must call its model (default: --judge-model or a dated version)",
    )
    group.add_argument(
        "--judge-key-env",
        metavar="VARIABLE",
        default="OPENAI_API_KEY",
        help="environment variable that holds the key (default: OPENAI_API_KEY)",
    )
    group.add_argument(
        "--rubric-file",
        metavar="FILE",
        help='JSONL rows {"id", "rubric": [{"name", "scoring_point"}, ...], "thinking"}, the last '
        "optional (default: META, whose rows have this form in MMAR)",
    )
    group.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help="keeps every rating; the same command goes on from it (default: PREDICTIONS with "
        ".ratings.jsonl)",
    )
    group.add_argument(
        "--estimate", action="store_true", help="print calls, tokens and price, and call nobody"
    )
    group.add_argument(
        "--price",
        nargs=2,
        type=not_negative,
        metavar=("IN", "OUT"),
        help="price of a million prompt and reply tokens (default: no price)",
    )
    _add_effort(group)


def _add_effort(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--concurrency", type=whole_number(1), default=8, help="calls at a time (default: 8)"
    )
    group.add_argument(
        "--max-attempts", type=whole_number(1), default=8, help="calls for one rating (default: 8)"
    )
    group.add_argument(
        "--retry-pause",
        type=not_negative,
        default=1.0,
        metavar="SECONDS",
        help="first pause after a failed call, doubling, unless the server says (default: 1)",
    )
    group.add_argument(
        "--timeout",
        type=not_negative,
        default=120.0,
        metavar="SECONDS",
        help="for one whole call (default: 120)",
    )
    group.add_argument(
        "--temperature",
        type=_temperature,
        default=0.0,
        help="of the judge; none leaves it to the server (default: 0)",
    )
    group.add_argument(
        "--judge-seed",
        type=int,
        default=42,
        help="of the judge, as in the official script; -1 sends none (default: 42)",
    )


def score_rubrics(
    chosen: argparse.Namespace, questions: list[Question], rows: Mapping[str, dict[str, Any]]
) -> int:
    """Estimate, rate what the journal lacks of the predictions in `rows`, print the score.

    Exit 75 where items could not be evaluated for reasons that may pass.
    """
    work = _prepare(chosen, questions, rows)
    if chosen.estimate:
        sys.stdout.write(f"{_estimate(work, len(work.subjects) * NUM_RATINGS, chosen.price)}\n")
        return ExitCode.DONE
    if not chosen.judge or not chosen.judge_model:
        raise SettingsError("--rubrics needs --judge URL and --judge-model NAME (or --estimate)")
    scored, failures = _rate(chosen, work)
    text = scored.model_dump_json(indent=1) if chosen.json else "\n".join(_table(scored))
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    if failures.num_transient:
        raise TryAgain(
            f"{scored.num_not_evaluated} of {scored.num_right} right answers are NOT EVALUATED "
            f"({_first(failures.reasons)}): run the same command again, {scored.num_ratings} "
            "ratings are kept"
        )
    if work.subjects and not scored.num_ratings:
        raise DataError(f"the judge gave no usable rating ({_first(failures.reasons)})")
    return ExitCode.DONE


def _rate(chosen: argparse.Namespace, work: _Work) -> "tuple[RubricScore, Failures]":
    from mmar_jobs.judge.client import Judge, check_url  # noqa: PLC0415 - openai, 0.5 s
    from mmar_jobs.judge.journal import Identity, Journal  # noqa: PLC0415 - with it

    judge = Judge(
        url=check_url(chosen.judge),
        model=chosen.judge_model,
        key_name=chosen.judge_key_env,
        timeout_s=chosen.timeout,
        temperature=chosen.temperature,
        seed=None if chosen.judge_seed < 0 else chosen.judge_seed,
    )
    identity = Identity(
        judge_host=judge.host,
        judge_model=judge.model,
        prompt_sha256=prompt_digest(),
        predictions_sha256=work.predictions_sha256,
        rubrics_sha256=work.rubrics_sha256,
        temperature=judge.temperature,
        seed=judge.seed,
    )
    with Journal(_journal_path(chosen), identity) as journal:
        num_open = len(work.subjects) * NUM_RATINGS - len(journal.ratings)
        sys.stderr.write(f"{_estimate(work, num_open, chosen.price)}\n")
        failures = _ask(chosen, judge, work, journal)
        items = score_items(work.questions, work.right_ids, journal.ratings, failures.reasons)
        scored = summarize(
            work.questions,
            items,
            list(journal.ratings.values()),
            identity=identity,
            prices=None if chosen.price is None else (chosen.price[0], chosen.price[1]),
        )
    return scored, failures


def _ask(chosen: argparse.Namespace, judge: "Judge", work: _Work, journal: "Journal") -> "Failures":
    from rich.console import Console  # noqa: PLC0415 - only what calls a judge shows a bar

    from mmar_jobs.judge.client import Client  # noqa: PLC0415 - openai
    from mmar_jobs.judge.rate import Effort, rate_all  # noqa: PLC0415 - the same
    from mmar_jobs.progress import bars, no_bar  # noqa: PLC0415 - rich

    effort = Effort(
        concurrency=chosen.concurrency,
        max_attempts=chosen.max_attempts,
        first_pause_s=chosen.retry_pause,
        judge_model=judge.model,
        expected_model=chosen.judge_reports,
    )
    console = Console(stderr=True)
    track = bars(console) if console.is_terminal else no_bar

    async def ask() -> "Failures":
        client = Client(judge, os.environ.get(judge.key_name))
        try:
            with track("rating answers", num_open) as advance:
                return await rate_all(
                    work.subjects, client, journal, effort=effort, advance=advance
                )
        finally:
            await client.close()

    num_open = len(work.subjects) * NUM_RATINGS - len(journal.ratings)
    try:
        return asyncio.run(ask())
    except* (SettingsError, DataError, TryAgain) as errors:
        # Several workers may fail alike at once; one line says it all.
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        failure = first
    raise failure


def _prepare(
    chosen: argparse.Namespace, questions: list[Question], rows: Mapping[str, dict[str, Any]]
) -> _Work:
    rubrics = read_rubrics(chosen.rubric_file or chosen.meta)
    right_ids = frozenset(
        question.id for question in questions if _is_right(question, rows.get(question.id, {}))
    )
    lacking = [key for key in sorted(right_ids) if key not in rubrics]
    if lacking:
        raise DataError(
            f"{len(lacking)} right answers have no rubric in {chosen.rubric_file or chosen.meta}, "
            f"the first is {lacking[0]!r}: give a --rubric-file that has them all"
        )
    subjects, reply_tokens = [], 0
    for question in questions:
        if question.id in right_ids:
            row, rubric = rows[question.id], rubrics[question.id]
            thinking = row.get("thinking_prediction") or ""
            prompt = render_prompt(question, rubric, thinking, row["answer_prediction"])
            subjects.append(Subject(question.id, prompt, len(rubric.criteria)))
            reply_tokens += estimate_reply_tokens(rubric)
    return _Work(
        questions=questions,
        right_ids=right_ids,
        subjects=subjects,
        reply_tokens=reply_tokens,
        predictions_sha256=_digest(rows),
        rubrics_sha256=_digest(
            [
                (question.model_dump(), rubrics[question.id].model_dump())
                for question in questions
                if question.id in right_ids
            ]
        ),
    )


def _is_right(question: Question, row: dict[str, Any]) -> bool:
    if question.answer is None:
        raise DataError(f"question {question.id} has no answer to score against: add it to META")
    answer = row.get("answer_prediction") or ""
    return official_correct(answer, question.answer, question.choices)


def read_rubrics(uri: str, *, endpoint_url: str | None = None) -> dict[str, Rubric]:
    """The rubrics of a JSONL file by the id of their question."""
    rubrics: dict[str, Rubric] = {}
    for line in open_lines(uri, endpoint_url=endpoint_url):
        try:
            row = json.loads(line.text)
        except (ValueError, RecursionError):
            raise DataError(f"{uri} line {line.number}: is not JSON") from None
        rubric = parse_rubric(row) if isinstance(row, dict) else None
        if rubric is not None:
            rubrics[rubric.id] = rubric
    return rubrics


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _journal_path(chosen: argparse.Namespace) -> Path:
    if chosen.journal is not None:
        path: Path = chosen.journal
        return path
    if "://" in chosen.predictions:
        raise SettingsError("--journal FILE is needed where PREDICTIONS is not a local path")
    return Path(f"{chosen.predictions}.ratings.jsonl")


def _estimate(work: _Work, num_calls: int, price: Sequence[float] | None) -> str:
    """What the open calls need, by a rule of thumb: a real tokenizer may differ by a quarter."""
    share = num_calls / max(1, len(work.subjects) * NUM_RATINGS)
    per_pass = sum(
        estimate_tokens(SYSTEM) + estimate_tokens(subject.prompt) for subject in work.subjects
    )
    tokens_in = round(share * NUM_RATINGS * per_pass)
    tokens_out = round(share * NUM_RATINGS * work.reply_tokens)
    cost = ""
    if price is not None:
        total = (tokens_in * price[0] + tokens_out * price[1]) / 1e6
        cost = f", price about {total:.2f} at {price[0]:g} and {price[1]:g} a million"
    return (
        f"{len(work.right_ids):,} of {len(work.questions):,} answers are right: {num_calls:,} "
        f"calls, about {tokens_in:,} prompt and {tokens_out:,} reply tokens{cost}"
    )


def _first(reasons: dict[str, str]) -> str:
    shown = [f"{key}: {reason}" for key, reason in list(reasons.items())[:_NUM_SHOWN]]
    return "; ".join(shown)


def _table(scored: RubricScore) -> list[str]:
    rows: list[tuple[str, RubricGroup]] = [("all", scored)]
    rows += [(f"  {name or '(none)'}", row) for name, row in scored.by_category.items()]
    width = max(len(name) for name, _ in rows)
    low, high = scored.score_ci95
    identity = scored.judge
    return [
        f"{'':<{width}}  items  right  NOT EVALUATED  rubric score (lowest-highest)",
        *(
            f"{name:<{width}}  {row.num_items:>5}  {row.num_right:>5}  "
            f"{row.num_not_evaluated:>13}  {_shown(row)}"
            for name, row in rows
        ),
        f"95 % over evaluated items: {low:.4f}-{high:.4f}",
        f"judge {identity.judge_host} {scored.reported_model or identity.judge_model}, prompt "
        f"{identity.prompt_sha256[:12]}, {scored.num_ratings:,} ratings, "
        f"{scored.prompt_tokens:,} prompt and {scored.completion_tokens:,} reply tokens"
        + ("" if scored.price is None else f", price {scored.price:.2f}"),
    ]


def _shown(row: RubricGroup) -> str:
    known = row.score.evaluated_only
    return (
        f"{'-' if known is None else f'{known:.4f}'} ({row.score.lowest:.4f}-"
        f"{row.score.highest:.4f})"
    )


def _temperature(text: str) -> float | None:
    return None if text == "none" else not_negative(text)
