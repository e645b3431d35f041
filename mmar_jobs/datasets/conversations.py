"""The question and answer of a row, as AudioSkills and its kin write them.

Not here: what is asked. Known forms: `conversations` as a list of {from: human|gpt, value} turns
(nvidia/AudioSkills), `messages` as {role: user|assistant, content}, or plain `question` and
`answer`. A row with several questions gives its first.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from mmar_jobs.datasets.rows import text_of

_SOUND: Final = re.compile(r"\s*<(?:sound|audio)>\s*")
_TURNS: Final = (
    ("conversations", "from", "value", ("human", "user"), ("gpt", "assistant")),
    ("messages", "role", "content", ("user",), ("assistant",)),
)
_QUESTION: Final = ("question", "text", "instruction")
_ANSWER: Final = ("answer", "gold", "answer_text")


def question_and_answer(row: Mapping[str, Any]) -> tuple[str, str]:
    """Both texts, the sound's placeholder removed; raises ValueError naming what lacks."""
    for field, speaker, content, askers, answerers in _TURNS:
        turns = row.get(field)
        if not isinstance(turns, list) or not turns:
            continue
        said = [(turn.get(speaker), turn.get(content)) for turn in turns if isinstance(turn, dict)]
        asked = next((text for who, text in said if who in askers and text), None)
        answered = next((text for who, text in said if who in answerers and text), None)
        if not isinstance(asked, str) or not isinstance(answered, str):
            lacking = f"its {field} have no turn of {askers[0]} and {answerers[0]}"
            raise ValueError(lacking)  # noqa: TRY004 - a fault of the row
        return _plain(asked), answered.strip()
    return _plain(text_of(row, _QUESTION)), text_of(row, _ANSWER)


def _plain(text: str) -> str:
    plain = _SOUND.sub("\n", text).strip()
    if not plain:
        raise ValueError("its question is empty")
    return plain
