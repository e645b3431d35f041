"""What a plan takes for granted where no setting says it: each with its value, unit and source.

Not here: the settings of a run, and prices (prices.py).
"""

import difflib
import math
from collections.abc import Sequence
from typing import Final

from mmar_jobs.errors import SettingsError
from mmar_jobs.records import Record

_HUGE: Final = 1e12  # no limit that matters, and unlike infinity it survives JSON


class Assumption(Record):
    """One number that a plan rests on; `--assume name=value` replaces it."""

    name: str
    value: float
    unit: str
    source: str
    low: float = 0.0
    high: float = _HUGE


_DRAWN = "a guess: run 100 questions and read it off the report"
_MEASURED = "measured on one H200 with the 30B-A3B shape"

ASSUMPTIONS: Final = (
    Assumption(
        name="generate_tokens_per_s",
        value=18_633,
        unit="output tokens/s a server",
        source=f"{_MEASURED}: vLLM 0.26 and our client, 16 draws of 512 tokens each; 18,070 with "
        "the log-probabilities that objectives but rest ask for",
        low=1e-3,
    ),
    Assumption(
        name="greedy_speed_share",
        value=0.7,
        unit="of that speed",
        source="a guess: one draw a question shares no prefill among siblings",
        low=1e-3,
        high=1,
    ),
    Assumption(
        name="servers", value=1, unit="servers", source="one; more divide the wall time", low=1
    ),
    Assumption(name="gpus_per_server", value=1, unit="GPUs", source="bf16 needs 61 GB", low=1),
    Assumption(
        name="train_tokens_per_s",
        value=16_466,
        unit="tokens/s a GPU",
        source=f"{_MEASURED}: NF4, rank 64, dropout, 8-bit AdamW, 8,192 packed, 80 GB; a policy "
        "gradient's step made as many there (16,268 against 15,977 before CUDA graphs)",
        low=1e-3,
    ),
    Assumption(
        name="scoring_speed",
        value=3,
        unit="times that speed",
        source="a guess: candidates are scored by a forward pass, a third of a step's work; only "
        "for the objectives grpo and rest+grpo",
        low=1e-3,
    ),
    Assumption(name="train_gpus", value=1, unit="GPUs", source="one trains it in NF4", low=1),
    Assumption(
        name="server_start_s",
        value=600,
        unit="s",
        source="a guess: 61 GB of weights to load, kernels to compile",
    ),
    Assumption(
        name="trainer_start_s", value=120, unit="s", source="what the trainer is required to keep"
    ),
    Assumption(name="clip_s", value=15, unit="s a clip", source="a guess; MMAR's are up to 30 s"),
    Assumption(
        name="prompt_text_tokens", value=250, unit="tokens", source="a guess; v9 and a question"
    ),
    Assumption(name="completion_tokens", value=800, unit="tokens an answer", source=_DRAWN, low=1),
    Assumption(
        name="learning_share", value=0.4, unit="of questions give examples", source=_DRAWN, high=1
    ),
    Assumption(
        name="correct_share", value=0.5, unit="of K right there", source=_DRAWN, low=0.01, high=1
    ),
    Assumption(
        name="adaptive_share",
        value=0.6,
        unit="of K drawn",
        source="a guess; only with --sampling.adaptive",
        low=0.25,
        high=1,
    ),
    Assumption(
        name="decode_s",
        value=0.03,
        unit="CPU s a clip",
        source="measured: ingest of 200 short clips in 3 s on 2 shared cores, four threads",
    ),
    Assumption(
        name="candidate_bytes",
        value=2.0,
        unit="bytes a token",
        source="a guess: about 4 characters a token, gzip keeps half",
    ),
    Assumption(
        name="drawn_token_bytes",
        value=5,
        unit="bytes a token more",
        source="a guess: id and log-probability of a candidate's token, of which gzip keeps all; "
        "only for the objectives grpo and rest+grpo",
    ),
    Assumption(name="storage_months", value=1, unit="months", source="how long artifacts are kept"),
)


def with_changes(changes: Sequence[str]) -> dict[str, Assumption]:
    """All assumptions by name after `name=value` texts; SettingsError in one line."""
    known = {assumption.name: assumption for assumption in ASSUMPTIONS}
    for change in changes:
        name, equals, text = change.partition("=")
        name = name.strip()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
            raise SettingsError(f"--assume {change}: there is no assumption {name!r}{hint}")
        try:
            value = float(text) if equals else math.nan
        except ValueError:
            value = math.nan
        old = known[name]
        if not (old.low <= value <= old.high and math.isfinite(value)):
            limit = f"{old.low:g} or more" if old.high == _HUGE else f"{old.low:g} to {old.high:g}"
            raise SettingsError(f"--assume {change}: give {name}=NUMBER, {limit} {old.unit}")
        known[name] = old.model_copy(update={"value": value, "source": "your own (--assume)"})
    return known
