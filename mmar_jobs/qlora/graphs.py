"""CUDA graphs of the fused layers: the kernels of a row are captured once and replayed for others.

A step at 4,096 tokens is 7,000 kernels, and Python queues them more slowly than an H200 runs them.
One graph a layer and direction, so that gradients of upper layers can travel while lower ones are
made. Rows are padded to few sizes, each with graphs of its own.

All graphs share one pool of memory, and sizes take turns in it: what a capture allocated it lets
go, and only its address is remembered. So a pool is as large as one row needs, and holds one row's
tensors at a time: a row's backward pass must come before the next row's forward pass.

Not here: what is captured (layer.py), embeddings, the last norm and the loss, which run as usual.

Legend: T tokens of a padded row, S its real ones, H hidden, D head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmar_jobs.qlora.attention import RowLayout
from mmar_jobs.qlora.dropout import Dropout
from mmar_jobs.qlora.foreign import Context

_TOKENS_APART: Final = 256
_FEWEST_SEQUENCES: Final = 8
_SHORTEST: Final = 512  # flash attention's grid grows with the longest sequence
# A set is some 7,000 nodes of graphs in the driver's memory.
_MAX_SETS: Final = 16
_INTERFACE_TYPES: Final = {2: "<i2", 4: "<f4"}


@dataclass(frozen=True, slots=True)
class RowSize:
    """All that a captured row is fixed to.

    Tokens with padding, room for sequences and for the longest of them, and dropout's threshold.
    """

    tokens: int
    num_sequences: int
    longest: int
    threshold: int

    @classmethod
    def of(cls, lengths: Sequence[int], threshold: int) -> "RowSize":
        """The smallest size that takes sequences of these lengths; padding is one more."""
        tokens = padded_tokens(sum(lengths))
        return cls(
            tokens,
            max(_FEWEST_SEQUENCES, _power_of_two(len(lengths) + 1)),
            min(tokens, max(_SHORTEST, _power_of_two(max(lengths)))),
            threshold,
        )


def padded_tokens(tokens: int) -> int:
    """T of a row of so many real tokens."""
    return -(-tokens // _TOKENS_APART) * _TOKENS_APART


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class _Memory:
    """An address as the CUDA array interface names it, which holds nothing alive."""

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": _INTERFACE_TYPES[tensor.element_size()],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def _lent(tensor: Tensor) -> Tensor:
    """The memory of `tensor` as a tensor that does not keep it from being allocated again."""
    assert tensor.is_contiguous(), "an address and a shape must say it all"
    return torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype)


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
    def empty(cls, size: RowSize, row: _Row) -> "_Inputs":
        """Room for a row of that size, with the widths and types of this one."""
        tokens = size.tokens
        return cls(
            row.hidden_SH.new_empty(tokens, row.hidden_SH.shape[1]),
            row.cos_SD.new_empty(tokens, row.cos_SD.shape[1]),
            row.sin_SD.new_empty(tokens, row.sin_SD.shape[1]),
            torch.empty(size.num_sequences + 1, dtype=torch.int32, device=row.hidden_SH.device),
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

    def lent(self) -> "_Inputs":
        """See _lent."""
        return _Inputs(
            *(_lent(part) for part in (self.hidden_TH, self.cos_TD, self.sin_TD, self.cuts))
        )


@dataclass(frozen=True, slots=True)
class _Pass:
    """A captured forward pass of a layer, which autograd can still go back through."""

    layer: nn.Module
    graph: torch.cuda.CUDAGraph
    hidden_TH: Tensor
    out_TH: Tensor


@dataclass(frozen=True, slots=True)
class _Set:
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
        ctx.graphs, ctx.layer, ctx.row = graphs, layer, graphs.row
        layer.forward.replay()
        return layer.out_TH.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer: _Layer = ctx.layer
        assert ctx.row == ctx.graphs.row, "another row took the place of this one's activations"
        if grads[0].data_ptr() != layer.grad_out_TH.data_ptr():  # the topmost layer's
            layer.grad_out_TH.copy_(grads[0])
        layer.backward.replay()
        ctx.graphs.lend(layer)
        grad_in_TH = None if layer.grad_in_TH is None else layer.grad_in_TH.detach()
        # A tensor that nobody else holds becomes the factor's gradient without being copied.
        return None, None, grad_in_TH, *(grad.detach() for grad in layer.grads)


class RowGraphs:
    """Forward and backward passes through `layers`, captured for each size of row when it comes."""

    def __init__(self, layers: Sequence[Any], dropout: Dropout) -> None:
        self.row = 0
        self._layers = layers
        self._dropout = dropout
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._sets: dict[RowSize, _Set] = {}
        self._borrowers: list[nn.Parameter] = []

    def clear(self) -> None:
        """Forget all graphs: what the layers do, or keep, has changed."""
        self._keep_gradients()
        self._sets.clear()
        self._pool = None

    def forward(
        self, embeds_SH: Tensor, cos_SD: Tensor, sin_SD: Tensor, lengths: list[int]
    ) -> Tensor:
        """(S, H) -> (S, H), differentiable by the factors; no sequence sees another one.

        The row before must have had its backward pass, or need none.
        """
        self._keep_gradients()
        self.row += 1
        row = _Row(embeds_SH, cos_SD, sin_SD, lengths)
        size = RowSize.of(lengths, self._dropout.threshold)
        if size not in self._sets:
            self._sets[size] = self._make_room_and_capture(size, row)
        graphs = self._sets[size] = self._sets.pop(size)  # the latest is the last to be dropped
        graphs.inputs.fill(row)
        hidden_TH = graphs.inputs.hidden_TH
        for layer in graphs.layers:
            hidden_TH = _Replay.apply(self, layer, hidden_TH, *layer.factors)  # type: ignore[no-untyped-call]
        return hidden_TH[: embeds_SH.shape[0]]

    def lend(self, layer: _Layer) -> None:
        """Note whose gradients are about to be the graphs' own memory."""
        self._borrowers += [factor for factor in layer.factors if factor.grad is None]

    def _keep_gradients(self) -> None:
        """Move gradients of a step's first row out of memory that its next row writes to."""
        for factor in self._borrowers:
            if factor.grad is not None:
                factor.grad = factor.grad.clone()
        self._borrowers.clear()

    def _make_room_and_capture(self, size: RowSize, row: _Row) -> _Set:
        if len(self._sets) >= _MAX_SETS:
            del self._sets[next(iter(self._sets))]
        try:
            return self._capture(size, row)
        except torch.OutOfMemoryError:
            if not self._sets:
                raise
        self.clear()  # sizes that do not fit into each other's blocks
        return self._capture(size, row)

    def _capture(self, size: RowSize, row: _Row) -> _Set:
        # Blocks are handed out again to their own stream only: one stream for all captures.
        self._stream = self._stream or torch.cuda.Stream(row.hidden_SH.device)  # type: ignore[no-untyped-call]
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        # A backward pass in a thread of its own could allocate outside of the capture.
        with torch.cuda.stream(self._stream), torch.autograd.set_multithreading_enabled(False):
            self._warm_up(size, row)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what layers took outside of the pool they take inside now
            return self._capture_layers(size, row)

    def _warm_up(self, size: RowSize, row: _Row) -> None:
        """Compile and load every kernel, which a capture may not: a layer of each kind computes."""
        inputs = _Inputs.empty(size, row)
        inputs.fill(row)
        kinds = {layer.saved: layer for layer in self._layers}
        for layer in kinds.values():
            leaf_TH = inputs.hidden_TH.detach().requires_grad_()
            out_TH = _call(layer, leaf_TH, inputs, size)
            grad_TH = torch.zeros_like(out_TH)
            torch.autograd.grad(out_TH, (leaf_TH, *_factors(layer)), grad_TH)

    def _capture_layers(self, size: RowSize, row: _Row) -> _Set:
        passes: list[_Pass] = []
        hidden_TH = inputs = None
        for layer in self._layers:
            with self._captured() as graph:
                inputs = inputs or _Inputs.empty(size, row)
                leaf_TH = inputs.hidden_TH if hidden_TH is None else hidden_TH
                out_TH = _call(layer, leaf_TH, inputs, size)
            passes.append(_Pass(layer, graph, leaf_TH, out_TH))
            hidden_TH = out_TH.detach().requires_grad_()
        assert inputs is not None, "a model has layers"
        lent_inputs = inputs.lent()
        del leaf_TH, out_TH, hidden_TH
        layers: list[_Layer] = []
        held: list[Tensor] = []  # factors' gradients are read when the last graph has run
        grad_TH = None
        while passes:
            layer, grad_TH, grads = self._capture_backward(passes.pop(), grad_TH)
            layers.append(layer)
            held += grads
        return _Set(lent_inputs, tuple(reversed(layers)))

    def _capture_backward(
        self, passed: "_Pass", grad_out_TH: Tensor | None
    ) -> tuple[_Layer, Tensor | None, Sequence[Tensor]]:
        """The layer, the gradient of its input where that has one, and those of its factors.

        Without `grad_out_TH` there is room for one. The layer's activations are let go.
        """
        factors, has_input = _factors(passed.layer), passed.hidden_TH.requires_grad
        wanted = (passed.hidden_TH, *factors) if has_input else factors
        with self._captured() as graph:
            if grad_out_TH is None:
                grad_out_TH = torch.empty_like(passed.out_TH)
            grads = torch.autograd.grad(passed.out_TH, wanted, grad_out_TH)
        grad_in_TH, of_factors = (grads[0], grads[1:]) if has_input else (None, grads)
        layer = _Layer(
            passed.graph,
            graph,
            factors,
            _lent(passed.out_TH.detach()),
            _lent(grad_out_TH),
            None if grad_in_TH is None else _lent(grad_in_TH),
            tuple(_lent(grad) for grad in of_factors),
        )
        return layer, grad_in_TH, of_factors

    @contextmanager
    def _captured(self) -> Iterator[torch.cuda.CUDAGraph]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate and wait meanwhile: a checkpoint is written, NCCL is watched.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            yield graph
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()


def _factors(layer: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(factor for factor in layer.parameters() if factor.requires_grad)


def _call(layer: Any, hidden_TH: Tensor, inputs: _Inputs, size: RowSize) -> Tensor:
    out_1TH: Tensor = layer(
        hidden_TH[None],
        position_embeddings=(inputs.cos_TD[None], inputs.sin_TD[None]),
        row_layout=RowLayout([size.longest], inputs.cuts),
    )
    return out_1TH[0]
