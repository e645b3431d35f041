"""RMSNorm of each head of q or k and its rotation by position, in one pass.

Not here: cos and sin (the model's rotary embedding), v. Arithmetic as in transformers' Qwen3-Omni
thinker: rotate_half, frequencies repeated in both halves of a head.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _normed(source, mask, eps, HALF: tl.constexpr):
    """Both halves of heads over their root mean square, and its inverse."""
    left = tl.load(source, mask, 0).to(tl.float32)
    right = tl.load(source + HALF, mask, 0).to(tl.float32)
    square = tl.sum(left * left, 1) + tl.sum(right * right, 1)
    inverse = tl.rsqrt(square / (2 * HALF) + eps)[:, None]
    return left * inverse, right * inverse, inverse


@triton.jit
def _forward_kernel(
    x,
    weight,
    cos,
    sin,
    out,
    num_heads,
    x_stride,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, HALF)
    mask = (head < num_heads)[:, None] & (at < HALF)[None, :]
    source = x + token * x_stride + head[:, None] * (2 * HALF) + at[None, :]
    left, right, _ = _normed(source, mask, eps, HALF)
    element = out.dtype.element_ty
    left = (left.to(element) * tl.load(weight + at)[None, :]).to(tl.float32)
    right = (right.to(element) * tl.load(weight + HALF + at)[None, :]).to(tl.float32)
    c = tl.load(cos + token * (2 * HALF) + at).to(tl.float32)[None, :]
    s = tl.load(sin + token * (2 * HALF) + at).to(tl.float32)[None, :]
    target = out + (token * num_heads + head[:, None]) * (2 * HALF) + at[None, :]
    tl.store(target, (left * c - right * s).to(element), mask)
    tl.store(target + HALF, (right * c + left * s).to(element), mask)


@triton.jit
def _backward_kernel(
    x,
    weight,
    cos,
    sin,
    grad_out,
    grad,
    num_heads,
    x_stride,
    grad_out_stride_token,
    grad_out_stride_head,
    grad_stride,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    at = tl.arange(0, HALF)
    mask = (head < num_heads)[:, None] & (at < HALF)[None, :]
    source = x + token * x_stride + head[:, None] * (2 * HALF) + at[None, :]
    left, right, inverse = _normed(source, mask, eps, HALF)
    c = tl.load(cos + token * (2 * HALF) + at).to(tl.float32)[None, :]
    s = tl.load(sin + token * (2 * HALF) + at).to(tl.float32)[None, :]
    grad_at = grad_out + token * grad_out_stride_token + at[None, :]
    grad_at += head.to(tl.int64)[:, None] * grad_out_stride_head
    out_left = tl.load(grad_at, mask, 0).to(tl.float32)
    out_right = tl.load(grad_at + HALF, mask, 0).to(tl.float32)
    weight_left = tl.load(weight + at).to(tl.float32)[None, :]
    weight_right = tl.load(weight + HALF + at).to(tl.float32)[None, :]
    grad_left = (out_left * c + out_right * s) * weight_left
    grad_right = (out_right * c - out_left * s) * weight_right
    mean = (tl.sum(grad_left * left, 1) + tl.sum(grad_right * right, 1)) / (2 * HALF)
    target = grad + token * grad_stride + head[:, None] * (2 * HALF) + at[None, :]
    element = grad.dtype.element_ty
    tl.store(target, ((grad_left - left * mean[:, None]) * inverse).to(element), mask)
    tl.store(target + HALF, ((grad_right - right * mean[:, None]) * inverse).to(element), mask)


def norm_and_rotate(
    x_TN: Tensor, weight_D: Tensor, cos_TD: Tensor, sin_TD: Tensor, *, eps: float
) -> Tensor:
    """Heads side by side in N columns -> (T, heads, D), normed and rotated; rows may lie apart.

    D must be a power of two.
    """
    num_tokens, size = x_TN.shape[0], weight_D.numel()
    num_heads = x_TN.shape[1] // size
    out_THD = x_TN.new_empty(num_tokens, num_heads, size)
    heads = min(8, triton.next_power_of_2(num_heads))
    _forward_kernel[(num_tokens, triton.cdiv(num_heads, heads))](
        x_TN,
        weight_D,
        cos_TD,
        sin_TD,
        out_THD,
        num_heads,
        x_TN.stride(0),
        eps,
        HEADS=heads,
        HALF=size // 2,
        num_warps=2,
    )
    return out_THD


def norm_and_rotate_backward(
    x_TN: Tensor,
    weight_D: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    grad_THD: Tensor,
    *,
    eps: float,
    out_TN: Tensor,
) -> None:
    """Write the gradient for `norm_and_rotate`'s x into `out_TN`, whose rows may lie apart."""
    num_tokens, size = x_TN.shape[0], weight_D.numel()
    num_heads = x_TN.shape[1] // size
    heads = min(8, triton.next_power_of_2(num_heads))
    _backward_kernel[(num_tokens, triton.cdiv(num_heads, heads))](
        x_TN,
        weight_D,
        cos_TD,
        sin_TD,
        grad_THD,
        out_TN,
        num_heads,
        x_TN.stride(0),
        grad_THD.stride(0),
        grad_THD.stride(1),
        out_TN.stride(0),
        eps,
        HEADS=heads,
        HALF=size // 2,
        num_warps=2,
    )
