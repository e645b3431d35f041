"""Settings of `plan`: those of a run, and what a plan needs beside them.

Not here: where values come from (mmar_jobs/settings.py).
"""

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field

from mmar_jobs.recipes import knob
from mmar_jobs.settings import RunCommand

MAX_QUESTIONS = 100_000_000
Number = Annotated[int, Field(ge=1, le=MAX_QUESTIONS)]


class PlanCommand(RunCommand):
    """Say what a run will take, from the settings that it will have; nothing is started."""

    store: Annotated[str, knob("the run's store; needed with --keep")] = ""
    run_id: Annotated[str, knob("the run's name; needed with --keep")] = ""
    model: Annotated[str, knob("model folder, for its shape; empty: Qwen3-Omni-30B-A3B")] = ""
    num_train: Annotated[
        Number | None, Field(description="training questions, instead of --questions")
    ] = None
    num_heldout: Annotated[
        Number | None, Field(description="held-out questions, instead of --heldout or a split")
    ] = None
    num_benchmark: Annotated[
        Number | None, Field(description="benchmark questions, instead of --benchmark; MMAR: 1000")
    ] = None
    assume: Annotated[tuple[str, ...], knob("replace assumptions: name=value,name=value")] = ()
    prices: Annotated[Path | None, knob("price list, TOML; none: example prices")] = None
    keep: Annotated[
        bool, knob("keep the plan with the run, so that its report compares: before it begins")
    ] = False
    as_json: Annotated[
        bool,
        Field(validation_alias=AliasChoices("json"), description="print one JSON object"),
    ] = False
