"""A server in a process of its own that answers at once and always the same, as long as is asked.

`python -m tests.engine.canned MODEL_FOLDER` prints its address and serves until standard input
ends. Every draw has the tokens that were allowed, with all fields that vLLM 0.32 sends. Not here: a
model.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mmar_jobs.audio import num_audio_tokens
from mmar_jobs.base_model import model_digest
from mmar_jobs.chat import load_tokenizer, render_prompt
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.prompt import Prompt
from tests.engine.faults import FaultyHandler, FaultyServer, listening
from tests.engine.stream import streamed

_WAV_HEADER_BYTES = 80  # of a WAV of floats as libsndfile writes it
_SAMPLE_BYTES = 4


class Canned(FaultyServer):
    """Knows the tokenizer, so that prompts are told as vLLM would."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(_Handler, ("127.0.0.1", port))
        self.name = f"mmar-{ModelIdentity(base_digest=model_digest(folder)).hash[:16]}"
        self._tokenizer = load_tokenizer(folder)
        self._audio_id = self._tokenizer.convert_tokens_to_ids(self._tokenizer.audio_token)
        self._pieces: dict[tuple[int, int, bool], bytes] = {}
        self._num_audio_tokens: dict[str, int] = {}

    def complete(self, body: dict[str, Any]) -> bytes:
        """The answer to one request."""
        system, user = body["messages"]
        sound, question = user["content"]
        if sound["audio_url"] is not None:
            data = sound["audio_url"]["url"].partition(",")[2]
            num_samples = (len(data) * 3 // 4 - _WAV_HEADER_BYTES) // _SAMPLE_BYTES
            self._num_audio_tokens[sound["uuid"]] = num_audio_tokens(num_samples)
        prompt = Prompt(system["content"][0]["text"], question["text"])
        text = render_prompt(self._tokenizer, prompt)
        ids: list[int] = []
        for token in self._tokenizer(text)["input_ids"]:
            times = self._num_audio_tokens[sound["uuid"]] if token == self._audio_id else 1
            ids += [token] * times
        size = (body["n"], body["max_completion_tokens"], body["logprobs"])
        rest = {"model": self.name, "object": "chat.completion.chunk"}
        if size not in self._pieces:
            choices = [self._choice(n, *size[1:]) for n in range(size[0])]
            self._pieces[size] = streamed(rest | {"choices": choices}, body["stream_interval"])
        first = json.dumps(rest | {"prompt_token_ids": ids, "choices": []})
        return f"data: {first}\n\n".encode() + self._pieces[size]

    def _choice(self, index: int, num_tokens: int, logprobs: bool) -> dict[str, Any]:
        """Words of the vocabulary, other ones each draw."""
        tokenizer = self._tokenizer
        ids = [(index * 7 + position * 13) % 200 + 1 for position in range(num_tokens)]
        words = [tokenizer.decode([token]) for token in ids]
        content = [
            {"token": word, "logprob": -0.5 - token / 1e3, "bytes": list(word.encode())}
            | {"top_logprobs": []}
            for word, token in zip(words, ids, strict=True)
        ]
        return {
            "index": index,
            "message": {"role": "assistant", "content": "".join(words), "tool_calls": []},
            "logprobs": {"content": content} if logprobs else None,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": ids,
        }


class _Handler(FaultyHandler):
    server: Canned

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server looks up
        if self.path == "/metrics":
            names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            self.send(200, "".join(f"vllm:{name} 0.0\n" for name in names).encode())
        else:
            listing = {"data": [{"id": self.server.name, "max_model_len": 1 << 20}]}
            self.send(200, json.dumps(listing).encode())

    def do_POST(self) -> None:  # noqa: N802 - the same
        body = json.loads(self.body())
        self.reply(None, lambda: (200, self.server.complete(body)))


def main() -> None:
    """Serve the folder, at a port where one is given, until standard input ends."""
    server = Canned(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    with listening(server):
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
