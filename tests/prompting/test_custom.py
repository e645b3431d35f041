"""A run with a prompt text of the user's own: every artifact holds it, and nothing mixes it up."""

from pathlib import Path

import pytest

from mmar_jobs import loop
from mmar_jobs.artifact import require_artifact
from mmar_jobs.errors import SettingsError
from mmar_jobs.layout import candidates_key, questions_key
from mmar_jobs.lineage import check_prompt, child_of
from mmar_jobs.prompt import render, template_hash, variant_name
from mmar_jobs.questions import read_split
from mmar_jobs.recipes import PromptRecipe
from mmar_jobs.records import Candidate
from mmar_jobs.report import write_report
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import FakeOpener
from tests.loop_run import RUN_ID, Scripted, command_of, edges_for

TEXT = "Hear the clip.\nThen choose one."


def test_run_with_a_text_of_ones_own(world: TinyWorld, model_folder: Path, tmp_path: Path) -> None:
    """The text is in the recipe, its hash beside it, in every prompt, and short in the report."""
    path = tmp_path / "best.txt"
    path.write_text(f"{TEXT}\n")
    prompt = PromptRecipe(version=f"@{path}")
    command = command_of(world, model_folder, tmp_path / "store", prompt=prompt)
    loop.run(command, edges_for(command, FakeOpener(Scripted(world))))
    path.unlink()
    store = open_store(str(tmp_path / "store"))
    made = require_artifact(store, candidates_key(RUN_ID, 1), stage="generate")
    assert {"version": TEXT} == made.manifest.recipe["prompt"]
    assert template_hash(TEXT) == made.manifest.recipe["template_hash"]
    questions = require_artifact(store, questions_key(RUN_ID), stage="ingest")
    hashes = {q.id: render(q, TEXT).hash for q in read_split(questions, "train")}
    assert all(hashes[c.question_id] == c.prompt_hash for c in made.records(Candidate))
    adapter = child_of(store, RUN_ID, 1).adapter
    assert adapter is not None
    check_prompt(adapter, TEXT)
    with pytest.raises(SettingsError, match=f"prompt {variant_name(TEXT)}, --prompt.version is v9"):
        check_prompt(adapter, "v9")
    assert f"prompt {variant_name(TEXT)}" in write_report(store, RUN_ID).decode()
