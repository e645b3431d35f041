"""What is odd about one prediction: its answer, and how its thinking is written.

Not here: counting over a file (survey.py). Pure. A prediction file does not say how generation
ended, so truncation is read off the text; languages that share a script cannot be told apart.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from mmar_jobs.grade import normal_form
from mmar_jobs.prompt import THINK_CLOSE, THINK_OPEN
from mmar_jobs.submission import MAX_THINKING_CHARACTERS

NGRAM: Final = 8
MAX_REPEATED: Final = 0.2  # of n-grams; none of MMAR's 1,000 reference thinkings has as many
_MIN_NGRAMS: Final = 40
_MIN_TURNS: Final = 3
_MIN_LOOP_TOKENS: Final = 30
_MAX_TAIL_TOKENS: Final = 3_000
MAX_FOREIGN: Final = 0.3  # share of letters; quoting a song in its language stays below
_MIN_FOREIGN_LETTERS: Final = 20
_TOKEN: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s]")
_LETTER: Final = re.compile(r"\W*(?:option|choice|answer)?\W*([a-z])\W*", re.IGNORECASE)
# The last two rows: full-width stops of Chinese and Japanese, and what closes a quotation.
_SENTENCE_END: Final = (
    *(".", "!", "?", "…", ":", ")", "*", "`"),
    *("\u3002", "\uff01", "\uff1f"),
    *('"', "'", "\u201d", "\u300d"),
)
# Chinese and Japanese share one entry: both write with Han characters.
_SCRIPTS: Final = {
    "Latin": re.compile(r"[A-Za-z\u00c0-\u024f]"),
    "Han or Kana": re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"),
    "Hangul": re.compile(r"[\u1100-\u11ff\uac00-\ud7af]"),
    "Cyrillic": re.compile(r"[\u0400-\u052f]"),
    "Greek": re.compile(r"[\u0370-\u03ff]"),
    "Arabic": re.compile(r"[\u0600-\u06ff\u0750-\u077f]"),
    "Hebrew": re.compile(r"[\u0590-\u05ff]"),
    "Devanagari": re.compile(r"[\u0900-\u097f]"),
    "Thai": re.compile(r"[\u0e00-\u0e7f]"),
}


class Sign(StrEnum):
    """One oddity; the first four are about the answer and exclude each other."""

    NO_ANSWER = "no_answer"
    LETTER = "letter"
    SEVERAL_CHOICES = "several_choices"
    NOT_A_CHOICE = "not_a_choice"
    NO_THINKING = "no_thinking"
    OVER_LONG = "over_long"
    TRUNCATED = "truncated"
    REPEATED = "repeated"
    LOOP = "loop"
    OTHER_LANGUAGE = "other_language"


SIGN_TEXT: Final[Mapping[Sign, str]] = {
    Sign.NO_ANSWER: "the answer is missing or blank",
    Sign.LETTER: "a letter instead of a choice's text",
    Sign.SEVERAL_CHOICES: "the answer names several choices",
    Sign.NOT_A_CHOICE: "the answer is none of the choices",
    Sign.NO_THINKING: "no thinking",
    Sign.OVER_LONG: f"thinking of {MAX_THINKING_CHARACTERS + 1:,} characters or more: refused by "
    "the benchmark",
    Sign.TRUNCATED: "thinking that was cut off",
    Sign.REPEATED: f"at least {MAX_REPEATED:.0%} of its {NGRAM}-grams came before",
    Sign.LOOP: "thinking that ends in a loop",
    Sign.OTHER_LANGUAGE: f"at least {MAX_FOREIGN:.0%} of its letters in a script that neither "
    "question nor choices use",
}


def find_signs(
    row: Mapping[str, Any], question: str, choices: Sequence[str], *, is_named: bool
) -> list[Sign]:
    """All signs of one prediction row; `is_named` says that its answer names one choice."""
    answer = row.get("answer_prediction") or ""
    thinking = row.get("thinking_prediction") or ""
    found = [] if is_named else [_answer_sign(answer, choices)]
    if not thinking.strip():
        return [*found, Sign.NO_THINKING]
    tokens = _TOKEN.findall(thinking.lower())
    checks = {
        Sign.OVER_LONG: len(thinking) > MAX_THINKING_CHARACTERS,
        Sign.TRUNCATED: _is_truncated(thinking, row.get("finish"), is_named=is_named),
        Sign.REPEATED: repeated_share(tokens) >= MAX_REPEATED,
        Sign.LOOP: loop_length(tokens) > 0,
        Sign.OTHER_LANGUAGE: foreign_share(thinking, [question, *choices]) >= MAX_FOREIGN,
    }
    return found + [sign for sign, is_there in checks.items() if is_there]


def repeated_share(tokens: Sequence[str]) -> float:
    """Share of n-grams that are copies of earlier ones; 0 for short texts."""
    num = len(tokens) - NGRAM + 1
    if num < _MIN_NGRAMS:
        return 0.0
    return 1 - len({tuple(tokens[i : i + NGRAM]) for i in range(num)}) / num


def loop_length(tokens: Sequence[str]) -> int:
    """Tokens of the longest end that is the same part said again and again; 0 for no loop.

    A loop has at least 30 tokens and three turns, of which the first may be cut. Its period falls
    out of the prefix function (Knuth, Morris and Pratt 1977) of the reversed text, in linear time.
    """
    tail = list(reversed(tokens[-_MAX_TAIL_TOKENS:]))
    borders = [0] * len(tail)
    longest = 0
    for i in range(1, len(tail)):
        border = borders[i - 1]
        while border and tail[i] != tail[border]:
            border = borders[border - 1]
        borders[i] = border + (tail[i] == tail[border])
        length = i + 1
        period = length - borders[i]
        if length >= _MIN_LOOP_TOKENS and length >= _MIN_TURNS * period:
            longest = length
    return longest


def script_counts(text: str) -> Counter[str]:
    """Letters of a text by script."""
    counts = Counter({name: len(found.findall(text)) for name, found in _SCRIPTS.items()})
    return +counts


def foreign_share(thinking: str, given: Sequence[str]) -> float:
    """Share of the thinking's letters in scripts that nothing given uses; 0 for a few letters."""
    counts = script_counts(thinking)
    known = script_counts(" ".join(given))
    num_foreign = sum(num for script, num in counts.items() if script not in known)
    if num_foreign < _MIN_FOREIGN_LETTERS:
        return 0.0
    return num_foreign / counts.total()


def _answer_sign(answer: str, choices: Sequence[str]) -> Sign:
    if not answer.strip():
        return Sign.NO_ANSWER
    if _LETTER.fullmatch(answer):
        return Sign.LETTER
    form = f" {normal_form(answer)} "
    num_inside = sum(_is_inside(normal_form(choice), form) for choice in choices)
    return Sign.SEVERAL_CHOICES if num_inside > 1 else Sign.NOT_A_CHOICE


def _is_inside(choice: str, answer: str) -> bool:
    return bool(choice) and re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", answer) is not None


def _is_truncated(thinking: str, finish: object, *, is_named: bool) -> bool:
    """Cut by the token limit, by the benchmark's limit, or without an end and an answer."""
    if finish == "length" or len(thinking) == MAX_THINKING_CHARACTERS:
        return True
    if THINK_OPEN in thinking and THINK_CLOSE not in thinking:
        return True
    return not is_named and not thinking.rstrip().endswith(_SENTENCE_END)
