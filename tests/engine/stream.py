"""A whole answer to a chat completion as the events in which vLLM streams it."""

import json
from itertools import pairwise
from typing import Any


def streamed(told: dict[str, Any], tokens_a_piece: int = 5) -> bytes:
    """A whole answer as vLLM streams it: one event a draw without tokens, then piece by piece.

    A first piece has one token, and the pieces of the draws take turns. The last event counts.
    """
    rest = {key: value for key, value in told.items() if key != "choices"}
    bare = {key: value for key, value in rest.items() if key != "prompt_token_ids"}
    events = [
        rest | {"choices": [{"index": one["index"], "logprobs": None, "finish_reason": None}]}
        for one in told["choices"]
    ]
    longest = max(len(one["token_ids"]) for one in told["choices"])
    ends = [1, *range(1 + tokens_a_piece, longest, tokens_a_piece), longest]
    for start, end in pairwise([0, *ends]):
        for one in told["choices"]:
            ids, logprobs = one["token_ids"], one["logprobs"]
            if start >= len(ids):
                continue
            piece = {
                "index": one["index"],
                "delta": {},
                "token_ids": ids[start:end],
                "logprobs": logprobs and {"content": logprobs["content"][start:end]},
                "finish_reason": one["finish_reason"] if end >= len(ids) else None,
            }
            events.append(bare | {"choices": [piece]})
    num_tokens = sum(len(one["token_ids"]) for one in told["choices"])
    events.append(bare | {"choices": [], "usage": {"completion_tokens": num_tokens}})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()
