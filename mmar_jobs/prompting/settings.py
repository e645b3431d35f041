"""Settings of `prompts compare` and `search`; those of a run mean here what they mean there.

Not here: where values come from (mmar_jobs/settings.py).
"""

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field

from mmar_jobs.recipes import EngineSettings, Fraction, PromptRecipe, SamplingRecipe, knob
from mmar_jobs.settings import Command


class PromptsCommand(Command):
    """What both commands know: the model, the questions, the prompt to beat."""

    run_id: Annotated[str, knob("run whose held-out questions and best model are taken")] = ""
    model: Annotated[str, knob("folder of the base model")]
    adapter: Annotated[str, knob("adapter folder, instead of the run's best model")] = ""
    iteration: Annotated[
        int | None, knob("ask the model that this iteration trained, 0 the base; none: the best")
    ] = None
    questions: Annotated[str, knob("held-out questions, path or URI, instead of the run's")] = ""
    benchmark: Annotated[
        str, knob("benchmark questions, needed with --questions, so that none of them is asked")
    ] = ""
    audio_root: Annotated[str, knob("where clips lie, if not beside the questions")] = ""
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    engine: EngineSettings = EngineSettings()
    as_json: Annotated[
        bool,
        Field(validation_alias=AliasChoices("json"), description="print one JSON object"),
    ] = False


class CompareCommand(PromptsCommand):
    """Compare prompt variants on held-out questions, each with --prompt.version."""

    variants: Annotated[
        tuple[str, ...], knob("variants to compare: names, or @FILE; empty: all known ones")
    ] = ()


class SearchCommand(PromptsCommand):
    """Search for a prompt better than --prompt.version by successive halving."""

    num_proposals: Annotated[
        int, Field(ge=0, le=325, description="recombinations of the known instructions to try")
    ] = 11
    proposals: Annotated[
        Path | None, knob("file of texts to try as well, parted by lines of ---")
    ] = None
    confirm_share: Annotated[
        Fraction, knob("share of the questions that only the winner is asked")
    ] = 0.5
    alpha: Annotated[
        Fraction, knob("the winner's p-value on those (exact McNemar) must be below this")
    ] = 0.05
    seed: Annotated[int, knob("seed of the proposals and of the split")] = 0
    output: Annotated[
        Path | None,
        knob("file for the winner's text where it is better, for --prompt.version @FILE"),
    ] = None
