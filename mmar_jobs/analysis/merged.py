"""META rows with their predictions, in the form that the benchmark's own scripts read.

Not here: reading and writing files. Source: code/evaluation.py (reads answer_prediction, answer,
choices, modality, category, sub-category, and skips rows without answer_prediction) and
code/evaluation_rubrics.py (also question, thinking, cue, rubric, thinking_prediction) in
github.com/ddlBoJack/MMAR; model_prediction is what MMAU's script, their origin, and earlier
versions of evaluation.py read.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

# evaluation.py counts by these and ends with a KeyError on any other.
MODALITIES: Final = frozenset(
    {
        *("sound", "music", "speech", "mix-sound-music", "mix-sound-speech", "mix-music-speech"),
        "mix-sound-music-speech",
    }
)
CATEGORIES: Final = frozenset(
    {"Signal Layer", "Perception Layer", "Semantic Layer", "Cultural Layer"}
)
_OWN_FIELDS: Final = {"audio": "audio_path", "text": "question", "sub_category": "sub-category"}


def merge_rows(
    meta: Iterable[Mapping[str, Any]], predictions: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Every META row in its order; the fields of the prediction are added where there is one.

    A row of this project's own form gets the benchmark's names for its fields.
    """
    for row in meta:
        merged = {_OWN_FIELDS.get(name, name): value for name, value in row.items()}
        found = predictions.get(str(row["id"]), {})
        answer = found.get("answer_prediction")
        if answer is not None:
            merged["model_prediction"] = answer
            merged["answer_prediction"] = answer
            merged["thinking_prediction"] = found.get("thinking_prediction") or ""
        yield merged


def unscriptable(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of answered rows on which the official script would end with a KeyError."""
    return [
        str(row["id"])
        for row in rows
        if "answer_prediction" in row
        and (row.get("modality") not in MODALITIES or row.get("category") not in CATEGORIES)
    ]
