"""Losses of the completion tokens, through the lm_head chunk by chunk: no logits outlive a chunk.

Not here: which tokens are completion tokens (encode.py), the backward pass through the model
(step.py), what a policy's loss is (policy.py).

Legend: C completion tokens of a row, H hidden, V vocabulary, N examples of a step.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmar_jobs.qlora.foreign import Context
from mmar_jobs.qlora.memory import LOSS_CHUNK
from mmar_jobs.qlora.recipes import Weighting


def token_coefficients(
    weights: Sequence[float], num_tokens: Sequence[int], weighting: Weighting
) -> list[float]:
    """What a completion token of each of a step's N examples counts in the loss, a plain sum.

    "example": w_i / (n_i · sum w), the batch-1 x accumulation-N mean of per-example means. "token":
    w_i / sum_j w_j n_j, the weighted mean over all tokens.
    """
    if weighting == "token":
        total = sum(weight * count for weight, count in zip(weights, num_tokens, strict=True))
        return [weight / total for weight in weights]
    total = sum(weights)
    return [weight / (total * count) for weight, count in zip(weights, num_tokens, strict=True)]


def _reference(logits_CV: Tensor, target_C: Tensor, coefficient_C: Tensor) -> Tensor:
    """Each row's loss; the logits become coefficient · d loss / d logits, as in the kernel."""
    log_probs_CV = torch.log_softmax(logits_CV.to(coefficient_C.dtype), dim=-1)
    target_C1 = target_C[:, None]
    nll_C = -log_probs_CV.gather(1, target_C1)[:, 0]
    grad_CV = log_probs_CV.exp_()
    grad_CV.scatter_add_(1, target_C1, -torch.ones_like(target_C1, dtype=grad_CV.dtype))
    logits_CV.copy_(grad_CV.mul_(coefficient_C[:, None]))
    return nll_C


def _kernel() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from mmar_jobs.qlora.kernels.cross_entropy import cross_entropy_  # noqa: PLC0415 - triton

    return cross_entropy_


def _through_head(
    hidden_CH: Tensor,
    head_VH: Tensor,
    target_C: Tensor,
    coefficient_C: Tensor,
    *,
    grad_CH: Tensor | None = None,
) -> Tensor:
    """Each token's loss, (C,); coefficient · its gradient for the hidden states into `grad_CH`."""
    nll_C = torch.empty_like(coefficient_C)
    in_place = _kernel() if hidden_CH.is_cuda else _reference
    for start in range(0, hidden_CH.shape[0], LOSS_CHUNK):
        chunk = slice(start, start + LOSS_CHUNK)
        logits_CV = hidden_CH[chunk] @ head_VH.T
        nll_C[chunk] = in_place(logits_CV, target_C[chunk], coefficient_C[chunk])
        if grad_CH is not None:
            torch.mm(logits_CV, head_VH, out=grad_CH[chunk])
    return nll_C


class _GradientMadeInForward(torch.autograd.Function):
    """A scalar loss whose forward pass saves the gradient for the hidden states, its first input.

    So no chunk's logits outlive the chunk. The lm_head is frozen and gets none.
    """

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_CH,) = ctx.saved_tensors
        return grad_CH * grads[0].to(grad_CH.dtype), None, None, None


class _LinearCrossEntropy(_GradientMadeInForward):
    """sum_c coefficient_c · nll_c."""

    @staticmethod
    def forward(
        ctx: Context,
        hidden_CH: Tensor,
        head_VH: Tensor,
        target_C: Tensor,
        coefficient_C: Tensor,
    ) -> tuple[Tensor, Tensor]:
        grad_CH = torch.empty_like(hidden_CH)
        nll_C = _through_head(hidden_CH, head_VH, target_C, coefficient_C, grad_CH=grad_CH)
        ctx.save_for_backward(grad_CH)
        ctx.mark_non_differentiable(nll_C)
        return (nll_C * coefficient_C).sum(), nll_C


def linear_cross_entropy(
    hidden_CH: Tensor, head_VH: Tensor, target_C: Tensor, coefficient_C: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss (scalar, nats) and each token's loss (C, no gradient).

    `hidden_CH[c]` is the final hidden state that predicts `target_C[c]`. Coefficients are fp32 (or
    fp64).
    """
    loss, nll_C = _LinearCrossEntropy.apply(hidden_CH, head_VH, target_C, coefficient_C)  # type: ignore[no-untyped-call]
    return loss, nll_C


class _LinearTokenLoss(_GradientMadeInForward):
    """Any loss of the tokens' log-probabilities.

    A chunk gives a token's gradient before its coefficient is known, which depends on the token's
    log-probability: the coefficients multiply in the end, over (C, H).
    """

    @staticmethod
    def forward(
        ctx: Context,
        hidden_CH: Tensor,
        head_VH: Tensor,
        target_C: Tensor,
        loss_of: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_CH.dtype, torch.float32)
        one_C = torch.ones(len(target_C), dtype=dtype, device=hidden_CH.device)
        grad_CH = torch.empty_like(hidden_CH)
        nll_C = _through_head(hidden_CH, head_VH, target_C, one_C, grad_CH=grad_CH)
        logprob_C = nll_C.neg().requires_grad_()
        with torch.enable_grad():
            loss = loss_of(logprob_C)
            (slope_C,) = torch.autograd.grad(loss, logprob_C)
        grad_CH.mul_(slope_C.neg()[:, None])
        ctx.save_for_backward(grad_CH)
        logprob_C = logprob_C.detach()
        ctx.mark_non_differentiable(logprob_C)
        return loss.detach(), logprob_C


def linear_token_loss(
    hidden_CH: Tensor,
    head_VH: Tensor,
    target_C: Tensor,
    loss_of: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return `loss_of` the (C,) log-probabilities, a differentiable sum, and these (no gradient).

    `loss_of` is called once, with all tokens of the row.
    """
    loss, logprob_C = _LinearTokenLoss.apply(hidden_CH, head_VH, target_C, loss_of)  # type: ignore[no-untyped-call]
    return loss, logprob_C


@torch.no_grad()
def token_logprobs(hidden_CH: Tensor, head_VH: Tensor, target_C: Tensor) -> Tensor:
    """Log-probability of each token, nats, (C,); no gradient."""
    dtype = torch.promote_types(hidden_CH.dtype, torch.float32)
    unused_C = torch.zeros(len(target_C), dtype=dtype, device=hidden_CH.device)
    return _through_head(hidden_CH, head_VH, target_C, unused_C).neg_()
