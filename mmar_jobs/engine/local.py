"""The in-process engine: batched, KV-cached sampling with transformers on one device.

Candidates of one question share its prefill. Not here: servers and vLLM.

Legend: B requests, R rows (one per draw), S prompt tokens, L cached tokens, V vocabulary, H hidden.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache

from mmar_jobs.artifact import file_sha256
from mmar_jobs.base_model import model_digest
from mmar_jobs.chat import render_prompt
from mmar_jobs.encode import EncodedPrompt, encode_prompt, load_processor
from mmar_jobs.engine import (
    CANARY_PROMPT,
    CANARY_REQUEST,
    CANARY_SAMPLING,
    STOP_TOKENS,
    Completion,
    Request,
    Sampling,
    attention,
)
from mmar_jobs.engine.sampling import TokenChooser, draw_seed
from mmar_jobs.errors import SettingsError
from mmar_jobs.identity import Canary, ModelIdentity
from mmar_jobs.layout import ADAPTER_WEIGHTS
from mmar_jobs.prompt import THINK_OPEN
from mmar_jobs.qlora.audio_embeds import MelFeatures, embed_clips
from mmar_jobs.qlora.load import load_thinker
from mmar_jobs.qlora.merge import merge_adapter
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Finish

# Dropping finished rows copies the cache, so it waits until a quarter of the rows are done.
_COMPACT_BELOW: Final = 0.75


@dataclass
class _Row:
    """One completion being drawn."""

    request: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Finish = Finish.LENGTH


class LocalEngine:
    """Answers with a Thinker in this process; the adapter, if any, is merged into its weights."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        identity: ModelIdentity,
        *,
        rows_per_batch: int,
    ) -> None:
        self.identity = identity
        self._model = model.eval()
        self._model.set_attn_implementation({"text_config": attention.NAME})
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._rows_per_batch = rows_per_batch
        rendered = render_prompt(processor, CANARY_PROMPT)
        self.prompt_opens_thinking = rendered.rstrip().endswith(THINK_OPEN)
        self._stop_ids = torch.tensor(self._tokenizer.convert_tokens_to_ids(list(STOP_TOKENS)))
        self._audio_id = self._tokenizer.convert_tokens_to_ids(processor.audio_token)

    def canary(self) -> Canary:
        """Greedy tokens and their logprobs for the canary prompt and sound."""
        encoded = self._encode(CANARY_REQUEST)
        row = self._draw([CANARY_REQUEST], [encoded], CANARY_SAMPLING)[0]
        return Canary(token_ids=tuple(row.token_ids), logprobs=tuple(row.logprobs))

    def answer(
        self, requests: Sequence[Request], sampling: Sampling, on_answer: Callable[[int], None]
    ) -> list[list[Completion]]:
        """See Engine.answer; requests are batched in their own order, up to rows_per_batch rows."""
        answers: list[list[Completion]] = []
        for batch in _batches(requests, self._rows_per_batch):
            encoded = [self._encode(request) for request in batch]
            found: list[list[Completion]] = [[] for _ in batch]
            rows = self._draw(batch, encoded, sampling)
            for row in rows:
                audio_tokens = encoded[row.request].num_audio_tokens
                completion = self._completion(row, audio_tokens, sampling)
                found[row.request].append(completion)
            answers += found
            on_answer(len(rows))
        return answers

    def _encode(self, request: Request) -> EncodedPrompt:
        return encode_prompt(
            self._processor, request.prompt, request.clip, question_id=request.question_id
        )

    def _completion(self, row: _Row, audio_tokens: int, sampling: Sampling) -> Completion:
        text_ids = row.token_ids[:-1] if row.finish is Finish.STOP else row.token_ids
        return Completion(
            text=self._tokenizer.decode(text_ids, skip_special_tokens=False),
            finish=row.finish,
            token_ids=array("i", row.token_ids),
            logprobs=array("d", row.logprobs if sampling.logprobs else ()),
            audio_tokens=audio_tokens,
        )

    @torch.inference_mode()
    def _draw(
        self, batch: Sequence[Request], encoded: Sequence[EncodedPrompt], sampling: Sampling
    ) -> list[_Row]:
        _check_supported(sampling)
        rows = [_Row(index) for index, request in enumerate(batch) for _ in request.draws]
        seeds = [
            draw_seed(sampling.seed, request.question_id, draw)
            for request in batch
            for draw in request.draws
        ]
        chooser = TokenChooser(sampling, seeds)
        input_ids_BS, mask_BS = self._pad(encoded)
        cache, logits_BV = self._prefill(encoded, input_ids_BS, mask_BS)
        request_R = torch.tensor([row.request for row in rows], device=logits_BV.device)
        cache.batch_select_indices(request_R)
        alive_R = torch.arange(len(rows))
        logits_RV, mask_RL = logits_BV[request_R], mask_BS[request_R]
        # A repetition penalty sees no padding: its token also ends an answer, and a row's pads
        # depend on its neighbours.
        history_RL = torch.where(mask_BS, input_ids_BS, input_ids_BS[:, -1:])[request_R]
        for position in range(sampling.max_tokens):
            token_R, logprob_R = chooser.choose(logits_RV, history_RL, alive_R, position)
            stopped_R = torch.isin(token_R, self._stop_ids.to(token_R.device))
            _note(rows, alive_R, token_R, logprob_R, stopped_R)
            history_RL = torch.cat([history_RL, token_R[:, None]], dim=1)
            mask_RL = torch.cat([mask_RL, ~stopped_R[:, None]], dim=1)
            keep_R = torch.tensor([rows[i].finish is not Finish.STOP for i in alive_R.tolist()])
            if not keep_R.any() or position + 1 == sampling.max_tokens:
                break
            if keep_R.float().mean() < _COMPACT_BELOW:
                kept = keep_R.nonzero()[:, 0]
                cache.batch_select_indices(kept.to(token_R.device))
                alive_R, token_R = alive_R[kept], token_R[kept]
                mask_RL, history_RL = mask_RL[kept], history_RL[kept]
            logits_RV = self._decode(token_R, mask_RL, cache)
        return rows

    def _pad(self, encoded: Sequence[EncodedPrompt]) -> tuple[Tensor, Tensor]:
        """Left-padded prompt tokens and their mask, both (B, S)."""
        width = max(len(prompt.input_ids_S) for prompt in encoded)
        input_ids_BS = torch.full((len(encoded), width), self._tokenizer.pad_token_id)
        mask_BS = torch.zeros((len(encoded), width), dtype=torch.bool)
        for index, prompt in enumerate(encoded):
            input_ids_BS[index, width - len(prompt.input_ids_S) :] = prompt.input_ids_S
            mask_BS[index, width - len(prompt.input_ids_S) :] = True
        device = self._model.device
        return input_ids_BS.to(device), mask_BS.to(device)

    def _prefill(
        self, encoded: Sequence[EncodedPrompt], input_ids_BS: Tensor, mask_BS: Tensor
    ) -> tuple[DynamicCache, Tensor]:
        """Fill a cache with the prompts; returns it and the logits (B, V) of the first token."""
        clips = [
            MelFeatures(str(index), prompt.features_MF) for index, prompt in enumerate(encoded)
        ]
        audio_NH = torch.cat(
            embed_clips(self._model, clips, [prompt.num_audio_tokens for prompt in encoded])
        )
        embeds_BSH = self._model.get_input_embeddings()(input_ids_BS)
        is_audio_BS1 = (input_ids_BS == self._audio_id)[..., None]
        embeds_BSH = embeds_BSH.masked_scatter(is_audio_BS1, audio_NH.to(embeds_BSH.dtype))
        cache = DynamicCache(config=self._model.config.text_config)
        hidden_BSH = self._model.model(
            inputs_embeds=embeds_BSH,
            attention_mask=mask_BS,
            position_ids=_positions(mask_BS),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return cache, self._model.lm_head(hidden_BSH[:, -1])

    def _decode(self, token_R: Tensor, mask_RL: Tensor, cache: DynamicCache) -> Tensor:
        """Append one token per row to the cache; returns the next logits (R, V)."""
        hidden_R1H = self._model.model(
            input_ids=token_R[:, None],
            attention_mask=mask_RL,
            position_ids=_positions(mask_RL)[..., -1:],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits: Tensor = self._model.lm_head(hidden_R1H[:, 0])
        return logits


def _check_supported(sampling: Sampling) -> None:
    set_here = {
        "thinking-token-budget": sampling.thinking_token_budget is not None,
        "repetition-detection": sampling.repetition_detection is not None,
    }
    for name, is_set in set_here.items():
        if is_set:
            raise SettingsError(
                f"--sampling.{name} is done by servers only: give --engine.servers, or leave it out"
            )


def _positions(mask_BS: Tensor) -> Tensor:
    """Position ids (4, B, S): with sound and text alone all four rows count the tokens."""
    positions_BS = (mask_BS.long().cumsum(dim=-1) - 1).clamp(min=0)
    return positions_BS[None].expand(4, -1, -1)


def _note(
    rows: Sequence[_Row], alive_R: Tensor, token_R: Tensor, logprob_R: Tensor, stopped_R: Tensor
) -> None:
    """Append one token to each row that has not stopped yet."""
    columns = (alive_R.tolist(), token_R.tolist(), logprob_R.tolist(), stopped_R.tolist())
    for index, token, logprob, stopped in zip(*columns, strict=True):
        row = rows[index]
        if row.finish is Finish.STOP:
            continue
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        row.finish = Finish.STOP if stopped else Finish.LENGTH


def _batches(requests: Sequence[Request], rows_per_batch: int) -> Iterator[list[Request]]:
    """Neighbouring requests whose draws fit into one batch; one request is never split."""
    batch: list[Request] = []
    num_rows = 0
    for request in requests:
        if batch and num_rows + len(request.draws) > rows_per_batch:
            yield batch
            batch, num_rows = [], 0
        batch.append(request)
        num_rows += len(request.draws)
    if batch:
        yield batch


def open_local_engine(base: Path, adapter: Path | None, settings: EngineSettings) -> LocalEngine:
    """Load a base folder, merge an adapter folder into it, name what was loaded by digests."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = load_thinker(base, dtype=getattr(torch, settings.dtype), device=torch.device("cpu"))
    adapter_digest = None
    if adapter is not None:
        merge_adapter(model, adapter)
        adapter_digest = file_sha256(adapter / ADAPTER_WEIGHTS)
    identity = ModelIdentity(base_digest=model_digest(base), adapter_digest=adapter_digest)
    return LocalEngine(
        model, load_processor(base), identity, rows_per_batch=settings.rows_per_batch
    )
