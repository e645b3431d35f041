"""A model's tokenizer as the engines over vLLM need it: the ids of prompts, and what ids mean.

Shared by servers (server.py) and vLLM in this process (offline.py), so that both ask and read
alike. Not here: what travels (wire.py).
"""

from typing import Any

from mmar_jobs.chat import render_prompt
from mmar_jobs.engine import CANARY_PROMPT, STOP_TOKENS
from mmar_jobs.engine.wire import Vocabulary
from mmar_jobs.prompt import THINK_OPEN, Prompt


class PromptTokenizer:
    """Prompts as ids, and what is needed to read completions."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.opens_thinking = render_prompt(tokenizer, CANARY_PROMPT).rstrip().endswith(THINK_OPEN)
        self.vocabulary = Vocabulary(
            audio_id=tokenizer.convert_tokens_to_ids(tokenizer.audio_token),
            stop_ids=frozenset(tokenizer.convert_tokens_to_ids(list(STOP_TOKENS))),
            decode=tokenizer.decode,
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The prompt by the model's template, with one audio token in the place of the sound."""
        ids: list[int] = self._tokenizer(render_prompt(self._tokenizer, prompt))["input_ids"]
        return ids
