"""The tokenizer by itself is the processor's: same ids, same template, wherever that lies."""

import json
import shutil
from pathlib import Path

import pytest

from mmar_jobs.chat import load_tokenizer, render_prompt
from mmar_jobs.encode import load_processor
from mmar_jobs.engine import CANARY_PROMPT
from mmar_jobs.errors import DataError


@pytest.mark.parametrize("form", ["jinja", "json"])
def test_it_is_the_processors(model_folder: Path, tmp_path: Path, form: str) -> None:
    """Text, ids and the audio token agree, with the template in its new file or its old one."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    template = (folder / "chat_template.jinja").read_text()
    if form == "json":
        (folder / "chat_template.jinja").unlink()
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    processor, tokenizer = load_processor(folder), load_tokenizer(folder)
    text = render_prompt(processor, CANARY_PROMPT)
    assert text == render_prompt(tokenizer, CANARY_PROMPT)
    ids = processor.tokenizer(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == tokenizer.decode(ids)
    assert processor.audio_token == tokenizer.audio_token


def test_a_folder_without_one_is_named(tmp_path: Path) -> None:
    """A wrong folder is one line, not a traceback of transformers."""
    with pytest.raises(DataError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
