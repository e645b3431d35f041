"""What vLLM is asked and what it answers: one question with all its draws.

In the words of its OpenAI-compatible server; what answers in this process is read as the same Reply
(offline.py). Pure: no connection, no clock. Not here: sending it (link.py), to whom (server.py).
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Struct

from mmar_jobs.engine import Completion, Request, Sampling
from mmar_jobs.engine.sampling import draw_seed
from mmar_jobs.errors import GateError, SettingsError
from mmar_jobs.prompt import Prompt
from mmar_jobs.records import Finish

# What repeats itself was cut, as what grew too long: neither is an answer.
_FINISH: Final = {"stop": Finish.STOP, "length": Finish.LENGTH, "repetition": Finish.LENGTH}


@dataclass(frozen=True, slots=True)
class Choice:
    """One draw: its tokens, the one that ended it included, and a logprob each before warping.

    No logprobs where none were asked for.
    """

    finish_reason: str | None
    token_ids: Sequence[int]
    logprobs: Sequence[float]


@dataclass(frozen=True, slots=True)
class Reply:
    """All draws of a question, in order; the prompt is what the model really saw."""

    prompt_token_ids: Sequence[int]
    choices: Sequence[Choice]


class Token(Struct, gc=False):
    """What is read of a token; nats."""

    logprob: float


class Logprobs(Struct, gc=False):
    """One a token."""

    content: list[Token]


class Part(Struct, gc=False):
    """The next tokens of one draw; the first event of a draw has none, the last a reason."""

    index: int
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None


class Usage(Struct):
    """Tokens of all draws together, as the server counted them."""

    completion_tokens: int


class Event(Struct):
    """What is read of one event of a stream; the prompt comes with the first, usage at the end."""

    choices: list[Part]
    prompt_token_ids: list[int] | None = None
    usage: Usage | None = None


class Problem(Struct):
    """What the server says of an error, and the status that it would have had."""

    message: str = ""
    code: int = 500


class Failure(Struct):
    """The event that ends a stream early."""

    error: Problem


# A reply is 100 bytes a token, most of them fields that nobody reads: msgspec skips those, and
# takes a third of the time of pydantic.
_EVENTS: Final = msgspec.json.Decoder(Event)
_FAILURES: Final = msgspec.json.Decoder(Failure)
# Replies are streamed, and read when they are whole: the server writes a stream bit by bit while
# it decodes. Else it would write all draws when the last one ends, for seconds during which it
# neither reads nor passes on another question. Token by token would cost it half as much again.
_TOKENS_A_PIECE: Final = 64
_DATA: Final = b"data: "
_FAILED: Final = b'data: {"error"'
_DONE: Final = b"data: [DONE]"


class MalformedReply(Exception):
    """A reply of status 200 that is no chat completion, or lacks what was asked for."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is needed of the model's tokenizer: ids by meaning, and `decode` of ids to text."""

    audio_id: int
    stop_ids: frozenset[int]
    decode: Any


@dataclass(frozen=True, slots=True)
class Sound:
    """A clip as a server takes it: an address, or None to name one that it has seen, and a name."""

    url: str | None
    uuid: str


def request_body(model: str, request: Request, sampling: Sampling, sound: Sound) -> dict[str, Any]:
    """The JSON of one chat completion request.

    Every option is a top-level field: vLLM ignores what it does not know, such as a field called
    "extra_body". Each is sent even at its default, or the server would take the one of the model's
    generation_config.json. The seeds of the draws are consecutive, from that of the first.
    """
    detection = sampling.repetition_detection
    return {
        "model": model,
        "messages": _messages(request.prompt, sound),
        "n": len(request.draws),
        "seed": first_seed(sampling, request),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_completion_tokens": sampling.max_tokens,
        "thinking_token_budget": sampling.thinking_token_budget,
        "repetition_detection": None if detection is None else asdict(detection),
        "logprobs": sampling.logprobs,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stream_interval": _TOKENS_A_PIECE,
    }


def first_seed(sampling: Sampling, request: Request) -> int:
    """Seed of the first draw; the server adds the index of a draw within its request.

    62 bits, so that the sum stays an int64.
    """
    return draw_seed(sampling.seed, request.question_id, request.draws[0]) >> 1


def _messages(prompt: Prompt, sound: Sound) -> list[dict[str, Any]]:
    """The prompt's messages in OpenAI's form, the clip in the place that it has in ours."""
    audio = {
        "type": "audio_url",
        "audio_url": None if sound.url is None else {"url": sound.url},
        "uuid": sound.uuid,
    }
    messages = prompt.messages()
    for message in messages:
        message["content"] = [
            audio if part["type"] == "audio" else part for part in message["content"]
        ]
    return messages


def streamed_failure(data: bytes) -> Problem | None:
    """The error that ended a stream, whose status was sent before; None where none did.

    Quotes of what a model says are escaped, so that it cannot look like one.
    """
    start = data.rfind(_FAILED)
    if start < 0:
        return None
    try:
        return _FAILURES.decode(data[start + len(_DATA) :].partition(b"\n")[0]).error
    except msgspec.DecodeError:
        return Problem("an error without words")


def parse_reply(data: bytes, num_draws: int, *, logprobs: bool) -> Reply:
    """The reply to a request for `num_draws` draws; MalformedReply where it is anything else.

    So it is where the pieces hold fewer tokens than the server says, or `logprobs` are missing.
    """
    lines = [line for line in data.splitlines() if line.startswith(_DATA)]
    if not lines or lines[-1] != _DONE:
        raise MalformedReply("a stream without its end")
    try:
        events = [_EVENTS.decode(line[len(_DATA) :]) for line in lines[:-1]]
    except msgspec.DecodeError as error:
        raise MalformedReply(str(error)) from None
    prompt_ids = next((one.prompt_token_ids for one in events if one.prompt_token_ids), None)
    if prompt_ids is None:
        raise MalformedReply("no prompt_token_ids")
    parts: list[list[Part]] = [[] for _ in range(num_draws)]
    for part in (part for event in events for part in event.choices):
        if not 0 <= part.index < num_draws:
            raise MalformedReply(f"choice {part.index} of {num_draws} draws")
        parts[part.index].append(part)
    choices = [_choice(index, one, logprobs=logprobs) for index, one in enumerate(parts)]
    num_tokens = sum(len(choice.token_ids) for choice in choices)
    usage = next((one.usage for one in reversed(events) if one.usage), None)
    if usage is None:
        raise MalformedReply("no count of tokens, which stream_options asks for")
    if num_tokens != usage.completion_tokens:
        raise MalformedReply(f"{num_tokens} tokens, the server counted {usage.completion_tokens}")
    return Reply(prompt_ids, choices)


def _choice(index: int, parts: Sequence[Part], *, logprobs: bool) -> Choice:
    """A draw from its pieces, which come in order."""
    ids: list[int] = []
    values: list[float] = []
    for part in parts:
        ids += part.token_ids or ()
        values += [token.logprob for token in part.logprobs.content] if part.logprobs else ()
    if not parts or not ids or parts[-1].finish_reason is None:
        raise MalformedReply(f"choice {index}: no tokens, or no end")
    if len(values) != (len(ids) if logprobs else 0):
        raise MalformedReply(f"choice {index}: {len(values)} logprobs for {len(ids)} tokens")
    return Choice(parts[-1].finish_reason, ids, values)


def completions(
    reply: Reply, request: Request, prompt_ids: Sequence[int], vocabulary: Vocabulary
) -> list[Completion]:
    """The draws of a request as records.

    `prompt_ids` is the prompt by our own tokenizer and template, with one audio token. GateError
    where the server's prompt says anything else; how much of the sound it holds is checked by who
    asked (audio.check_audio_tokens), as for every engine.
    """
    heard = [token for token in reply.prompt_token_ids if token == vocabulary.audio_id]
    text = [token for token in reply.prompt_token_ids if token != vocabulary.audio_id]
    if text != [token for token in prompt_ids if token != vocabulary.audio_id]:
        raise GateError(
            f"question {request.question_id}: the server's prompt is not ours ({len(text)} tokens "
            f"of text, ours has {len(prompt_ids) - 1}): it uses another chat template or "
            "tokenizer; serve the folder of the model without --chat-template"
        )
    return [_completion(choice, len(heard), vocabulary, request) for choice in reply.choices]


def _completion(
    choice: Choice, audio_tokens: int, vocabulary: Vocabulary, request: Request
) -> Completion:
    finish = _FINISH.get(choice.finish_reason or "")
    if finish is None:
        raise GateError(
            f"question {request.question_id}: a draw ended with {choice.finish_reason!r}, which is "
            "none of stop, length and repetition: start the server without options that end answers"
        )
    ids = choice.token_ids
    ended = finish is Finish.STOP and ids[-1] in vocabulary.stop_ids
    return Completion(
        # Of a list transformers looks at every token to see what it is.
        text=vocabulary.decode(np.asarray(ids[:-1] if ended else ids), skip_special_tokens=False),
        finish=finish,
        # Hundreds of answers wait for their turn: as objects they would take a tenth of the time.
        token_ids=array("i", ids),
        logprobs=array("d", choice.logprobs),
        audio_tokens=audio_tokens,
    )


def check_room(who: str, max_model_len: int, num_tokens: int, sampling: Sampling) -> None:
    """Raise SettingsError unless prompt and longest completion fit; vLLM would cut the latter."""
    if num_tokens + sampling.max_tokens > max_model_len:
        raise SettingsError(
            f"{who} takes {max_model_len} tokens a sequence, a prompt of {num_tokens} and "
            f"--sampling.max-tokens {sampling.max_tokens} are more: start it with a larger "
            "--max-model-len (in this process: --engine.vllm-args), or lower --sampling.max-tokens"
        )


def served_models(listing: Mapping[str, Any]) -> dict[str, int]:
    """Id and longest sequence, tokens, of each model in the answer to GET /v1/models.

    An adapter that is served unmerged names its base as parent, and has no length of its own.
    """
    try:
        by_id = {str(one["id"]): one for one in listing["data"]}
        return {
            name: int(one["max_model_len"] or by_id[one["parent"]]["max_model_len"])
            for name, one in by_id.items()
        }
    except (KeyError, TypeError, ValueError):
        raise MalformedReply("the list of models has no id or max_model_len") from None
