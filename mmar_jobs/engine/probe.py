"""Proof that an engine honours the sampling options that it is given.

Not here: which options a run uses. Servers ignore what they do not know: the earlier attempt sent
top_k and repetition_penalty in a field that its server never read, and every request succeeded.
"""

from dataclasses import replace
from typing import Final

from mmar_jobs.audio import canary_clip
from mmar_jobs.engine import Engine, Request, Sampling
from mmar_jobs.errors import GateError
from mmar_jobs.prompt import THINK_CLOSE, THINK_OPEN, Prompt

QUESTION_ID: Final = "sampling-probe"
_PROMPT: Final = Prompt(
    "Listen to the audio.", "Describe all that you hear, one sound after another."
)
_GREEDY: Final = Sampling(
    temperature=0, top_p=1, top_k=0, repetition_penalty=1, max_tokens=48, seed=0
)
# As hot as vLLM takes; draws from more than one token cannot agree on 48 of them.
_HOT: Final = replace(_GREEDY, temperature=2.0, top_k=1)
_STRONG_PENALTY: Final = 8.0
_SHORT_BUDGET: Final = 4


def check_sampling(engine: Engine, sampling: Sampling) -> None:
    """Raise GateError when `engine` ignores an option that `sampling` uses; else asks nothing."""
    if sampling.temperature and sampling.top_k:
        _check_top_k(engine)
    if sampling.repetition_penalty != 1:
        _check_repetition_penalty(engine)
    if sampling.thinking_token_budget is not None:
        _check_thinking_budget(engine)


def _check_top_k(engine: Engine) -> None:
    """With top_k 1 every draw is the likeliest completion, however hot."""
    texts = _ask(engine, _HOT, num_draws=4)
    if len(set(texts)) > 1:
        raise _ignored("top_k", "draws with top_k 1 differ")


def _check_repetition_penalty(engine: Engine) -> None:
    """No 48 tokens of any model are new to prompt and completion, so the penalty must show."""
    plain = _ask(engine, _GREEDY, num_draws=1)
    penalised = replace(_GREEDY, repetition_penalty=_STRONG_PENALTY)
    if plain == _ask(engine, penalised, num_draws=1):
        raise _ignored("repetition_penalty", f"a penalty of {_STRONG_PENALTY:g} changes nothing")


def _check_thinking_budget(engine: Engine) -> None:
    """Thinking that would go on must end after 4 tokens; a model that does not think proves none.

    vLLM refuses a budget where it was started without --reasoning-config, but versions that do not
    know the field ignore it.
    """
    [plain] = _ask(engine, _GREEDY, num_draws=1)
    thinks = engine.prompt_opens_thinking or plain.startswith(THINK_OPEN)
    if not thinks or len(plain.partition(THINK_CLOSE)[0].split()) <= 2 * _SHORT_BUDGET:
        return
    [short] = _ask(engine, replace(_GREEDY, thinking_token_budget=_SHORT_BUDGET), num_draws=1)
    if short == plain:
        raise _ignored("thinking_token_budget", f"one of {_SHORT_BUDGET} tokens changes nothing")


def _ask(engine: Engine, sampling: Sampling, *, num_draws: int) -> list[str]:
    request = Request(QUESTION_ID, _PROMPT, canary_clip(), tuple(range(num_draws)))
    [completions] = engine.answer([request], sampling, lambda _: None)
    return [completion.text for completion in completions]


def _ignored(option: str, evidence: str) -> GateError:
    return GateError(
        f"the engine ignores {option} ({evidence}): send it where the server reads it (vLLM: a "
        "top-level field of the request), or do not set it"
    )
