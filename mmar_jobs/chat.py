"""A model's tokenizer and chat template by themselves: all of a model that asking a server needs.

Not here: sound (encode.py), the prompt's text (prompt.py). The processor brings torchvision and the
model's own code along: 320 MB, and most of the seconds in which a client starts.
"""

import json
from pathlib import Path
from typing import Any, Final

from transformers import Qwen2Tokenizer

from mmar_jobs.errors import DataError
from mmar_jobs.prompt import Prompt

_TEMPLATE: Final = "chat_template.jinja"
_OLD_TEMPLATE: Final = "chat_template.json"
_VOCABULARIES: Final = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer with the template that the processor of `folder` would use.

    Its class is named, as the processor names it: the published folders have no tokenizer.json, and
    finding the class by the model's configuration (AutoTokenizer) takes 290 MB.
    """
    # Without its files the class makes an empty tokenizer and says nothing.
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        raise DataError(f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json")
    try:
        tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
        if not (folder / _TEMPLATE).is_file() and (folder / _OLD_TEMPLATE).is_file():
            text = (folder / _OLD_TEMPLATE).read_text(encoding="utf-8")
            tokenizer.chat_template = json.loads(text)["chat_template"]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{folder} holds no tokenizer with a chat template: {reason}") from error
    if not tokenizer.chat_template:
        raise DataError(f"{folder} holds no chat template: neither {_TEMPLATE} nor {_OLD_TEMPLATE}")
    return tokenizer


def render_prompt(renderer: Any, prompt: Prompt) -> str:
    """The prompt's text by the chat template of a processor or tokenizer, up to the answer."""
    text: str = renderer.apply_chat_template(
        prompt.messages(), add_generation_prompt=True, tokenize=False
    )
    return text
