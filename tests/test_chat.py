"""The tokenizer by itself is the processor's: same ids, same template, wherever that lies."""

import json
import shutil
from pathlib import Path

import pytest

from mmar_jobs.chat import load_tokenizer, render_prompt
from mmar_jobs.encode import load_processor
from mmar_jobs.engine import CANARY_PROMPT
from mmar_jobs.errors import DataError


def write_as_published(folder: Path) -> None:
    """The tokenizer in the files that Qwen publishes: vocabulary and merges, no tokenizer.json."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    (folder / "merges.txt").write_text("".join(f"{line}\n" for line in ["#version: 0.2", *merges]))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        str(token.pop("id")): token for token in whole["added_tokens"]
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("form", ["jinja", "json", "published"])
def test_it_is_the_processors(model_folder: Path, tmp_path: Path, form: str) -> None:
    """Text, ids and the audio token agree, whichever files hold template and vocabulary."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    expected = load_tokenizer(folder)(render_prompt(load_tokenizer(folder), CANARY_PROMPT))
    if form == "published":
        write_as_published(folder)
    template = (folder / "chat_template.jinja").read_text()
    if form == "json":
        (folder / "chat_template.jinja").unlink()
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    processor, tokenizer = load_processor(folder), load_tokenizer(folder)
    text = render_prompt(processor, CANARY_PROMPT)
    assert text == render_prompt(tokenizer, CANARY_PROMPT)
    ids = processor.tokenizer(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"] == expected["input_ids"]
    assert processor.tokenizer.decode(ids) == tokenizer.decode(ids)
    assert processor.audio_token == tokenizer.audio_token


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["tokenizer.json"], "holds no tokenizer: neither"),
        (["chat_template.jinja"], "holds no chat template: neither"),
    ],
)
def test_a_folder_without_one_is_named(
    model_folder: Path, tmp_path: Path, lost: list[str], message: str
) -> None:
    """A folder that lacks a file is one line, and never a tokenizer without words."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    for name in lost:
        (folder / name).unlink()
    with pytest.raises(DataError, match=message):
        load_tokenizer(folder)
