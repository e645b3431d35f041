"""Attention over packed rows: every sequence sees itself alone, without a mask of S·S.

In 16 bits on a GPU by variable-length flash attention, elsewhere by padding to the longest
sequence. Not here: position ids of a row (packing.py).

Legend: S tokens of a row, N sequences in it, L the longest of them, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmar_jobs.qlora.foreign import Thinker

BACKEND: Final = "mmar_packed"


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The sequences of a packed row: their lengths, and where each begins: `cuts`, int32."""

    lengths: list[int]
    cuts: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)


def row_layout(lengths: list[int], device: torch.device) -> RowLayout:
    """Lay sequences end to end."""
    cuts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return RowLayout(lengths, cuts.to(device, non_blocking=True))


def attend_rows(
    query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, row: RowLayout, *, scale: float
) -> Tensor:
    """Causal attention within each sequence, (S, heads, D).

    torch's varlen_attn is FlashAttention 2, compiled in: from A100 on no GPU needs a package.
    """
    if not (query_SHD.is_cuda and query_SHD.dtype.itemsize == 2):
        return _attend_padded(query_SHD, key_SGD, value_SGD, row.lengths, scale=scale)
    out: Any = varlen_attn(
        query_SHD,
        key_SGD,
        value_SGD,
        row.cuts,
        row.cuts,
        row.longest,
        row.longest,
        scale=scale,
        window_size=(-1, 0),
    )
    out_SHD: Tensor = out
    return out_SHD


def _attend_padded(
    query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, lengths: list[int], *, scale: float
) -> Tensor:
    index_NL = padded_index(lengths, device=query_SHD.device)
    query, key, value = (x[index_NL].transpose(1, 2) for x in (query_SHD, key_SGD, value_SGD))
    out_NHLD = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    real_NL = (
        torch.arange(index_NL.shape[1], device=index_NL.device)
        < torch.tensor(lengths, device=index_NL.device)[:, None]
    )
    return out_NHLD.transpose(1, 2)[real_NL]


def padded_index(lengths: list[int], *, device: torch.device) -> Tensor:
    """(N, L) positions of each sequence's tokens in the row; padding repeats the last token.

    Padding stands to the right, where causal attention never lets a real token look.
    """
    lengths_N = torch.tensor(lengths, device=device)
    starts_N = lengths_N.cumsum(0) - lengths_N
    offset_NL = torch.arange(max(lengths), device=device).expand(len(lengths), -1)
    return starts_N[:, None] + torch.minimum(offset_NL, lengths_N[:, None] - 1)


def packed_attention(
    _module: nn.Module,
    query_1HSD: Tensor,
    key_1GSD: Tensor,
    value_1GSD: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a packed row; returns (1, S, heads, D).

    Needs the keyword `row_layout`; there must be no attention_mask. Signature as in transformers'
    ALL_ATTENTION_FUNCTIONS.
    """
    assert attention_mask is None, "a packed row has no mask: its lengths say it all"
    row: RowLayout = kwargs["row_layout"]
    query, key, value = (x[0].transpose(0, 1) for x in (query_1HSD, key_1GSD, value_1GSD))
    return attend_rows(query, key, value, row, scale=kwargs["scaling"])[None], None


ALL_ATTENTION_FUNCTIONS.register(BACKEND, packed_attention)


@contextmanager
def packed_rows(model: Thinker) -> Iterator[None]:
    """Let the thinker's text part attend by rows inside the block; generation is left as it was."""
    config = model.model.config
    before = config._attn_implementation  # noqa: SLF001 - transformers dispatches on this field
    config._attn_implementation = BACKEND  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = before  # noqa: SLF001
