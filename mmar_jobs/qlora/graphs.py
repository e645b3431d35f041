"""CUDA graphs of the fused layers: the kernels of a row are captured once and replayed for others.

A step at 4,096 tokens is 7,000 kernels, and Python queues them more slowly than an H200 runs them.
One graph a layer and direction, so that gradients of upper layers can travel while lower ones are
made. Rows are padded to few sizes, each with graphs of its own.

All graphs share one pool of memory, and sizes take turns in it: what a capture allocated it lets
go, and only its address is remembered. That is safe because graphs are replayed in the order in
which they were captured, forwards up and backwards down: only a later capture got memory again that
an earlier one had let go. So the pool holds one row's tensors at a time, and a row's backward pass
must come before the next row's forward pass.

Not here: what is captured (layer.py), embeddings, the last norm and the loss, which run as usual.

Legend: T tokens of a padded row, S its real ones, H hidden, D head size.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmar_jobs.qlora.attention import RowLayout
from mmar_jobs.qlora.dropout import Dropout
from mmar_jobs.qlora.foreign import Context
from mmar_jobs.qlora.row_size import NUM_SIZES, RowSize, row_tokens

# The array interface has no bfloat16: a type of the same width, viewed back.
_INTERFACE_TYPES: Final = {2: "<i2", 4: "<f4"}

_log = structlog.get_logger()


class _Address:
    """A tensor's address as the CUDA array interface names it; of the tensor it keeps nothing.

    A tensor made from it holds it, and with it the `graph` without which the pool would be freed.
    """

    def __init__(self, tensor: Tensor, graph: torch.cuda.CUDAGraph) -> None:
        self.graph = graph
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": _INTERFACE_TYPES[tensor.element_size()],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def _lent(tensor: Tensor, graph: torch.cuda.CUDAGraph) -> Tensor:
    """The memory of `tensor` as a tensor that does not keep it from being allocated again."""
    assert tensor.is_contiguous(), "an address and a shape must say it all"
    return torch.as_tensor(_Address(tensor, graph), device=tensor.device).view(tensor.dtype)


@dataclass(frozen=True, slots=True)
class _Row:
    """What goes into the layers: hidden states, cos and sin, and the lengths of the sequences."""

    hidden_SH: Tensor
    cos_SD: Tensor
    sin_SD: Tensor
    lengths: list[int]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where a row of one size is written, and `cuts`, int32: where each of its sequences begins."""

    hidden_TH: Tensor
    cos_TD: Tensor
    sin_TD: Tensor
    cuts: Tensor

    @classmethod
    def empty(cls, size: RowSize, like: _Row) -> "_Inputs":
        """Room for a row of that size, with the widths and types of this one."""
        tokens = size.tokens
        return cls(
            like.hidden_SH.new_empty(tokens, like.hidden_SH.shape[1]),
            like.cos_SD.new_empty(tokens, like.cos_SD.shape[1]),
            like.sin_SD.new_empty(tokens, like.sin_SD.shape[1]),
            torch.empty(size.num_sequences + 1, dtype=torch.int32, device=like.hidden_SH.device),
        )

    def fill(self, row: _Row) -> None:
        """Write a row; padding is zero and a sequence of its own, the rest of those are empty."""
        num_real, tokens = row.hidden_SH.shape[0], self.hidden_TH.shape[0]
        for target, source in (
            (self.hidden_TH, row.hidden_SH),
            (self.cos_TD, row.cos_SD),
            (self.sin_TD, row.sin_SD),
        ):
            target[:num_real].copy_(source)
            if num_real < tokens:
                target[num_real:].zero_()
        cuts = torch.full((self.cuts.numel(),), tokens, dtype=torch.int32)
        cuts[0] = 0
        cuts[1 : 1 + len(row.lengths)] = torch.tensor(row.lengths).cumsum(0)
        self.cuts.copy_(cuts, non_blocking=True)

    def layout(self, size: RowSize) -> RowLayout:
        """What attention is told: sequences of any length up to the longest, by their cuts."""
        return RowLayout([size.longest], self.cuts)

    def lent(self, graph: torch.cuda.CUDAGraph) -> "_Inputs":
        """See _lent."""
        tensors = (self.hidden_TH, self.cos_TD, self.sin_TD, self.cuts)
        return _Inputs(*(_lent(tensor, graph) for tensor in tensors))


@dataclass(frozen=True, slots=True)
class _Pass:
    """A captured forward pass of a layer, which autograd can still go back through to `leaves`."""

    layer: nn.Module
    graph: torch.cuda.CUDAGraph
    leaves: Mapping[str, Tensor]
    hidden_TH: Tensor
    out_TH: Tensor


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's graphs, where they find the gradient of its output, and where results lie."""

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    factors: tuple[nn.Parameter, ...]
    out_TH: Tensor
    grad_out_TH: Tensor
    grad_in_TH: Tensor | None
    grads: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Captured:
    """All graphs of one row size."""

    inputs: _Inputs
    layers: tuple[_Layer, ...]


class _Replay(torch.autograd.Function):
    """One layer of the row that was filled in last; its result lies in the pool."""

    @staticmethod
    def forward(
        ctx: Context,
        graphs: "RowGraphs",
        layer: _Layer,
        hidden_TH: Tensor,  # where the layer before left it; here it only says what follows what
        *factors: nn.Parameter,
    ) -> Tensor:
        del hidden_TH, factors
        ctx.graphs, ctx.layer, ctx.turn = graphs, layer, graphs.turn
        layer.forward.replay()
        return layer.out_TH.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        graphs: RowGraphs = ctx.graphs
        layer: _Layer = ctx.layer
        assert ctx.turn == graphs.turn, "another row took the place of this one's activations"
        if grads[0].data_ptr() != layer.grad_out_TH.data_ptr():  # the topmost layer's
            layer.grad_out_TH.copy_(grads[0])
        layer.backward.replay()
        of_factors = graphs.gradients(layer)
        if layer.grad_in_TH is None:  # the bottom layer: nothing of this row is left
            graphs.turn += 1
            return None, None, None, *of_factors
        return None, None, layer.grad_in_TH.detach(), *of_factors


class RowGraphs:
    """Forward and backward passes through `layers`, captured for each size of row when it comes."""

    def __init__(self, layers: Sequence[Any], dropout: Dropout) -> None:
        self.turn = 0  # counts what takes the pool
        self._layers = layers
        self._dropout = dropout
        self._stream: torch.cuda.Stream | None = None
        self._borrowers: list[nn.Parameter] = []
        self._captured: dict[RowSize, _Captured] = {}
        self.prepare(token_budget=4096, lends=False)

    def prepare(self, *, token_budget: int, lends: bool) -> None:
        """Forget all graphs: what the layers do or keep has changed, or rows will have other sizes.

        `lends`: a step has one row, and its gradients stay where its activations were, in the pool.
        Else a layer's are copied, or added to those there are, before the layer below makes its.
        """
        self._token_budget = token_budget
        self._lends = lends
        self._pool: Any = None
        self._warm: set[tuple[int, int]] = set()
        self._captured.clear()

    def forward(
        self, embeds_SH: Tensor, cos_SD: Tensor, sin_SD: Tensor, lengths: list[int]
    ) -> Tensor:
        """(S, H) -> (S, H), differentiable by the factors; no sequence sees another one.

        The row before must have had its backward pass, or need none.
        """
        self._keep_borrowed()
        self.turn += 1
        row = _Row(embeds_SH, cos_SD, sin_SD, lengths)
        size = RowSize.of(
            lengths, token_budget=self._token_budget, threshold=self._dropout.threshold
        )
        if size not in self._captured:
            self._captured[size] = self._make_room_and_capture(size, row)
        graphs = self._captured[size] = self._captured.pop(size)  # the latest is dropped last
        graphs.inputs.fill(row)
        hidden_TH = graphs.inputs.hidden_TH
        for layer in graphs.layers:
            hidden_TH = _Replay.apply(self, layer, hidden_TH, *layer.factors)  # type: ignore[no-untyped-call]
        return hidden_TH[: embeds_SH.shape[0]]

    def gradients(self, layer: _Layer) -> tuple[Tensor, ...]:
        """Of its factors, just replayed, as autograd is to take them.

        A tensor that nobody else holds becomes a factor's gradient without being copied. Autograd
        does that, or adds it, before it goes on to the layer below.
        """
        if self._lends:
            self._borrowers += [factor for factor in layer.factors if factor.grad is None]
            return tuple(grad.detach() for grad in layer.grads)
        return tuple(
            grad.clone() if factor.grad is None else grad.detach()
            for factor, grad in zip(layer.factors, layer.grads, strict=True)
        )

    def _keep_borrowed(self) -> None:
        """Move what is left of the row before out of memory that this one writes to."""
        for factor in self._borrowers:
            if factor.grad is not None:
                factor.grad = factor.grad.clone()
        self._borrowers.clear()

    def _make_room_and_capture(self, size: RowSize, row: _Row) -> _Captured:
        if len(self._captured) >= NUM_SIZES:
            del self._captured[next(iter(self._captured))]
        try:
            return self._capture(size, row)
        except torch.OutOfMemoryError:
            if not self._captured:
                raise
        _log.warning("row_graphs_dropped", num_sizes=len(self._captured))
        self._captured.clear()  # sizes that do not fit into each other's blocks
        self._pool = None
        return self._capture(size, row)

    def _capture(self, size: RowSize, row: _Row) -> _Captured:
        started = time.monotonic()
        # Blocks are handed out again to their own stream only: one stream for all captures.
        self._stream = self._stream or torch.cuda.Stream(row.hidden_SH.device)  # type: ignore[no-untyped-call]
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        # A backward pass in a thread of its own could allocate outside of the capture.
        with torch.cuda.stream(self._stream), torch.autograd.set_multithreading_enabled(False):
            self._warm_up(size, row)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what layers took outside of the pool they take inside now
            captured = self._capture_layers(size, row)
        seconds = round(time.monotonic() - started, 2)
        _log.info("row_captured", tokens=size.tokens, longest=size.longest, seconds=seconds)
        return captured

    def _warm_up(self, size: RowSize, like: _Row) -> None:
        """Compile and load every kernel, which a capture may not: a layer of each kind computes.

        For all numbers of tokens at once, because there is no room for that beside a full pool.
        """
        kinds = {layer.saved: layer for layer in self._layers}
        for tokens in sorted({*row_tokens(self._token_budget), size.tokens}):
            if (tokens, size.threshold) in self._warm:
                continue
            of_tokens = replace(size, tokens=tokens, longest=min(size.longest, tokens))
            inputs = _Inputs.empty(of_tokens, like)
            num_cuts, longest = inputs.cuts.numel(), of_tokens.longest
            for part in (inputs.hidden_TH, inputs.cos_TD, inputs.sin_TD):
                part.zero_()
            torch.arange(0, num_cuts * longest, longest, out=inputs.cuts).clamp_(max=tokens)
            for layer in kinds.values():
                leaves, leaf_TH = _leaves(layer), inputs.hidden_TH.detach().requires_grad_()
                out_TH = _call(layer, leaves, leaf_TH, inputs, inputs.layout(of_tokens))
                torch.autograd.grad(out_TH, (leaf_TH, *leaves.values()), torch.zeros_like(out_TH))
            self._warm.add((tokens, size.threshold))

    def _capture_layers(self, size: RowSize, row: _Row) -> _Captured:
        passes: list[_Pass] = []
        hidden_TH = inputs = None
        for layer in self._layers:
            leaves = _leaves(layer)
            with self._capturing() as graph:
                inputs = inputs or _Inputs.empty(size, row)
                leaf_TH = inputs.hidden_TH if hidden_TH is None else hidden_TH
                out_TH = _call(layer, leaves, leaf_TH, inputs, inputs.layout(size))
            passes.append(_Pass(layer, graph, leaves, leaf_TH, out_TH))
            hidden_TH = out_TH.detach().requires_grad_()
        assert inputs is not None, "a model has layers"
        lent_inputs = inputs.lent(passes[0].graph)
        del leaf_TH, out_TH, hidden_TH
        layers: list[_Layer] = []
        held: list[Tensor] = []
        grad_TH = None
        while passes:
            layer, grad_TH, grads = self._capture_backward(passes.pop(), grad_TH)
            layers.append(layer)
            if self._lends:  # they are read when the last graph has run
                held += grads
            del grads
        return _Captured(lent_inputs, tuple(reversed(layers)))

    def _capture_backward(
        self, passed: _Pass, grad_out_TH: Tensor | None
    ) -> tuple[_Layer, Tensor | None, Sequence[Tensor]]:
        """The layer, the gradient of its input where that has one, and those of its factors.

        Without `grad_out_TH` there is room for one. The layer's activations are let go.
        """
        leaves, has_input = tuple(passed.leaves.values()), passed.hidden_TH.requires_grad
        wanted = (passed.hidden_TH, *leaves) if has_input else leaves
        with self._capturing() as graph:
            if grad_out_TH is None:
                grad_out_TH = torch.empty_like(passed.out_TH)
            grads = torch.autograd.grad(passed.out_TH, wanted, grad_out_TH)
        grad_in_TH, of_factors = (grads[0], grads[1:]) if has_input else (None, grads)
        layer = _Layer(
            forward=passed.graph,
            backward=graph,
            factors=tuple(passed.layer.get_parameter(name) for name in passed.leaves),
            out_TH=_lent(passed.out_TH.detach(), graph),
            grad_out_TH=_lent(grad_out_TH, graph),
            grad_in_TH=None if grad_in_TH is None else _lent(grad_in_TH, graph),
            grads=tuple(_lent(grad, graph) for grad in of_factors),
        )
        return layer, grad_in_TH, of_factors

    @contextmanager
    def _capturing(self) -> Iterator[torch.cuda.CUDAGraph]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate and wait meanwhile: a checkpoint is written, NCCL is watched.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            yield graph
        finally:
            graph.capture_end()


def _leaves(layer: nn.Module) -> dict[str, Tensor]:
    """The layer's factors by name, as leaves of their own.

    While a loss of an earlier row lives, so do autograd's nodes of the factors themselves, and they
    belong to that row's stream, which a capture may not touch.
    """
    return {
        name: factor.detach().requires_grad_()
        for name, factor in layer.named_parameters()
        if factor.requires_grad
    }


def _call(
    layer: nn.Module, leaves: dict[str, Tensor], hidden_TH: Tensor, inputs: _Inputs, row: RowLayout
) -> Tensor:
    out_1TH: Tensor = torch.func.functional_call(
        layer,
        leaves,
        (hidden_TH[None],),
        {
            "position_embeddings": (inputs.cos_TD[None], inputs.sin_TD[None]),
            "row_layout": row,
        },
    )
    return out_1TH[0]
