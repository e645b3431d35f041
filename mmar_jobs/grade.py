"""What a completion says and what that is worth: split off the thinking, parse the answer, grade.

Not here: rates and selection (zone.py), the benchmark's own lenient matcher (score.py). Everything
is string matching; nothing is guessed: an answer names exactly one choice or none.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from mmar_jobs.errors import DataError, GateError
from mmar_jobs.prompt import MARKER, THINK_CLOSE, THINK_OPEN
from mmar_jobs.records import Candidate, Finish, Grade, Question

# Models type straight quotes where a choice has curly ones, and the other way round.
_STRAIGHT: Final = str.maketrans("‘’“”", "''\"\"")  # noqa: RUF001 - that is the point
_WRAPPING: Final = " \"'`*«»「」『』"
_PREFIX: Final = re.compile(
    r"(?:(?:so|thus|therefore|hence),? )?(?:the |my )?(?:final |correct )?"
    r"answer(?:\*\*)?(?: is\b:?|:)[\s*]*"
)


class Parsed(NamedTuple):
    """A completion taken apart; `answer` is one of the question's choices verbatim, or None."""

    thinking: str
    answer: str | None


class _Choices(NamedTuple):
    """Look-up tables of one list of choices; None marks a key that more than one choice claims."""

    by_text: dict[str, str | None]
    by_form: dict[str, str | None]


def split_completion(completion: str) -> tuple[str, str] | None:
    """Split a completion into thinking and answer text, both stripped; None where unclear.

    Clear means: exactly one closing tag, at most one opening tag and that at the very start (it may
    have been the end of the prompt), and something after the closing tag.
    """
    head, tag, tail = completion.partition(THINK_CLOSE)
    answer_text = tail.strip()
    if not tag or not answer_text or THINK_CLOSE in tail or THINK_OPEN in tail:
        return None
    thinking = head.strip().removeprefix(THINK_OPEN)
    if THINK_OPEN in thinking:
        return None
    return thinking.strip(), answer_text


def has_control_token(completion: str) -> bool:
    """Whether it says, or spells, a token like <|im_start|> that belongs into prompts only.

    Read back by the tokenizer it would open a turn or stand for sound. The tags of the thinking may
    be there, and the token that ended a completion is not in its text.
    """
    return MARKER.search(completion) is not None


def normal_form(text: str) -> str:
    """Form under which an answer and a choice are the same.

    NFKC and case folded (twice, so that the result is its own normal form), straight quotes, single
    spaces, no quotes, backticks or asterisks around it and no final full stop. May be empty.
    """
    if text.isascii():
        text = text.lower()
    else:
        for _ in range(2):
            text = unicodedata.normalize("NFKC", text).translate(_STRAIGHT).casefold()
        text = unicodedata.normalize("NFKC", text)
    text = " ".join(text.split())
    while True:
        bare = text.strip(_WRAPPING).removesuffix(".").removesuffix("。")
        if bare == text:
            return text
        text = bare


def parse_answer(answer_text: str, choices: Sequence[str]) -> str | None:
    """Name the one choice that `answer_text` is, or None.

    The text of a choice wins over its normal form, and that over the normal form of what follows
    a phrase like "The answer is". Letters, parts of a choice and several choices name none.
    """
    tables = _choices(tuple(choices))
    text = answer_text.strip()
    if text in tables.by_text:
        return tables.by_text[text]
    form = normal_form(text)
    if form in tables.by_form:
        return tables.by_form[form]
    prefix = _PREFIX.match(form)
    return tables.by_form.get(normal_form(form[prefix.end() :])) if prefix else None


def parse(completion: str, finish: Finish, choices: Sequence[str]) -> Parsed:
    """Take one completion apart; only a completion that ended by itself can hold an answer.

    Where no answer can be split off, everything before a closing tag counts as thinking.
    """
    parts = split_completion(completion)
    if parts is None:
        head = completion.partition(THINK_CLOSE)[0]
        return Parsed(head.strip().removeprefix(THINK_OPEN).strip(), None)
    thinking, answer_text = parts
    return Parsed(thinking, parse_answer(answer_text, choices) if finish is Finish.STOP else None)


def grade_answer(answer: str | None, finish: Finish, question: Question) -> Grade:
    """Grade a parsed answer; a question without a gold answer is a DataError."""
    if question.answer is None:
        raise DataError(
            f"question {question.id} has no answer to grade against: leave it out of the questions"
        )
    if finish is Finish.ERROR:
        return Grade.ERROR
    if finish is Finish.LENGTH:
        return Grade.TRUNCATED
    if answer is None:
        return Grade.UNPARSED
    return Grade.CORRECT if answer == question.answer else Grade.WRONG


def grade(candidate: Candidate, question: Question) -> Grade:
    """Grade a candidate by parsing its verbatim completion again: its stored answer is not trusted.

    Raises DataError for a question without a gold answer, GateError for a candidate of another
    question.
    """
    if candidate.question_id != question.id:
        raise GateError(
            f"draw {candidate.draw} of question {candidate.question_id} was about to be graded as "
            f"question {question.id}: join candidates and questions by id"
        )
    parsed = parse(candidate.completion, candidate.finish, question.choices)
    return grade_answer(parsed.answer, candidate.finish, question)


@lru_cache(maxsize=4096)
def _choices(choices: tuple[str, ...]) -> _Choices:
    by_text: dict[str, str | None] = {}
    by_form: dict[str, str | None] = {}
    for choice in choices:
        for table, key in ((by_text, choice.strip()), (by_form, normal_form(choice))):
            if key:
                table[key] = choice if table.get(key, choice) == choice else None
    return _Choices(by_text, by_form)
