"""Frozen weights in NF4: blocks of 64, their scales quantised again, all by bitsandbytes.

Not here: reading weights from files (load.py), GEMMs that decode the codes themselves.

Legend: T tokens, E experts, O out-features, I in-features.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from mmar_jobs.errors import SettingsError

BLOCK: Final = 64
# Scales are quantised in blocks of this many; bitsandbytes fixes it.
SCALE_BLOCK: Final = 256
_KIND: Final = "nf4"
_MAX_NUMEL: Final = 1 << 31  # bitsandbytes' CUDA kernels count in 32 bits


def _bitsandbytes() -> Any:
    """Its functions, imported when first used: an installation without training lacks them."""
    # Importing warns of an optional kernel for inference on CPU, which is never called here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional  # noqa: PLC0415 - as said above
    except ImportError as error:
        raise SettingsError(
            "quantization nf4 needs bitsandbytes, which is not installed: install mmar-jobs[train] "
            "or choose none"
        ) from error
    return bitsandbytes.functional


class Nf4Weight(nn.Module):
    """One frozen weight of shape (E, O, I) or (O, I), quantised as one flat row of blocks.

    Block b of the flattened weight holds numbers 64 b to 64 b + 63, two in a byte, the first in the
    high half. Its scale is absmax_code[absmax[b]] · absmax_scale[b // 256] + offset; where I is no
    multiple of 64 a block crosses rows. `dtype` is what dequantising gives by default.
    """

    packed: Tensor  # uint8 (numel / 2,)
    absmax: Tensor  # uint8 (numel / 64,)
    absmax_scale: Tensor  # fp32 (numel / 64 / 256,)
    absmax_code: Tensor  # fp32 (256,)
    offset: Tensor  # fp32 ()

    def __init__(self, shape: torch.Size, dtype: torch.dtype, buffers: dict[str, Tensor]) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype
        for name in ("packed", "absmax", "absmax_scale", "absmax_code", "offset"):
            self.register_buffer(name, buffers[name])

    @classmethod
    @torch.no_grad()
    def quantize(cls, weight: Tensor) -> "Nf4Weight":
        """Quantise a bf16, fp16 or fp32 weight where it lies; it may be freed afterwards."""
        if weight.numel() >= _MAX_NUMEL:
            raise ValueError(
                f"a weight of {weight.numel()} numbers is too large for one NF4 weight"
            )
        packed, state = _bitsandbytes().quantize_4bit(
            weight, blocksize=BLOCK, quant_type=_KIND, compress_statistics=True
        )
        scales = state.state2
        buffers = {
            "packed": packed.view(-1),
            "absmax": state.absmax,
            "absmax_scale": scales.absmax,
            "absmax_code": scales.code,
            "offset": state.offset,
        }
        return cls(weight.shape, weight.dtype, buffers)

    @classmethod
    def empty(cls, shape: torch.Size, dtype: torch.dtype) -> "Nf4Weight":
        """A weight without contents, on the meta device, to count and to be replaced."""
        num_blocks = -(-shape.numel() // BLOCK)
        sizes = {
            "packed": ((-(-shape.numel() // 2),), torch.uint8),
            "absmax": ((num_blocks,), torch.uint8),
            "absmax_scale": ((-(-num_blocks // SCALE_BLOCK),), torch.float32),
            "absmax_code": ((256,), torch.float32),
            "offset": ((), torch.float32),
        }
        buffers = {
            name: torch.empty(size, dtype=kind, device="meta")
            for name, (size, kind) in sizes.items()
        }
        return cls(shape, dtype, buffers)

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...],
        *,
        device: torch.device,
        generator: torch.Generator,
        dtype: torch.dtype = torch.bfloat16,
    ) -> "Nf4Weight":
        """Random codes and scales that give a standard deviation of 0.02, for benchmarks.

        The weight itself is never formed. `generator` must be one of `device`.
        """
        numel = math.prod(shape)
        num_blocks = -(-numel // BLOCK)
        levels = _bitsandbytes().get_4bit_type(_KIND, device=str(device))
        scale = 0.02 / float(levels.square().mean().sqrt())

        def random_bytes(count: int) -> Tensor:
            return torch.randint(
                256, (count,), dtype=torch.uint8, device=device, generator=generator
            )

        buffers = {
            "packed": random_bytes(-(-numel // 2)),
            "absmax": random_bytes(num_blocks),
            # Scales within a quarter of their mean, about what trained weights show.
            "absmax_scale": torch.full((-(-num_blocks // SCALE_BLOCK),), scale / 4, device=device),
            "absmax_code": _bitsandbytes().create_dynamic_map().to(device),
            "offset": torch.tensor(scale, device=device),
        }
        return cls(torch.Size(shape), dtype, buffers)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as bitsandbytes gives it back, in `dtype` or its own."""
        bnb = _bitsandbytes()
        scales = bnb.QuantState(
            absmax=self.absmax_scale,
            code=self.absmax_code,
            blocksize=SCALE_BLOCK,
            dtype=torch.float32,
        )
        state = bnb.QuantState(
            absmax=self.absmax,
            shape=self.shape,
            blocksize=BLOCK,
            quant_type=_KIND,
            dtype=dtype or self.dtype,
            offset=self.offset,
            state2=scales,
        )
        weight: Tensor = bnb.dequantize_4bit(self.packed[:, None], state, quant_type=_KIND)
        return weight

    @property
    def device(self) -> torch.device:
        """Where the codes lie."""
        return self.packed.device

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def numel(self) -> int:
        """Numbers of the weight, not of its bytes."""
        return self.shape.numel()

    def extra_repr(self) -> str:
        """Shape and dtype, for print(model)."""
        return f"{tuple(self.shape)}, {self.dtype}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Nf4Weight":  # noqa: ARG002, FBT001, FBT002 - torch's own signature
        """Follow the model to a device; model.to(bfloat16) must not round the fp32 scales."""
        for name, buffer in self.named_buffers(recurse=False):
            moved = fn(buffer)
            kept = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
            setattr(self, name, kept)
        return self


class Nf4Linear(nn.Module):
    """A frozen linear layer whose weight is in NF4; the bias, if any, is not."""

    def __init__(self, weight: Nf4Weight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape

    @classmethod
    def quantize(cls, linear: nn.Linear) -> "Nf4Linear":
        """Quantise a linear layer; its bias is taken over."""
        return cls(Nf4Weight.quantize(linear.weight), linear.bias)

    def forward(self, x_TI: Tensor) -> Tensor:
        """(…, I) -> (…, O), in the dtype of x."""
        return nn.functional.linear(x_TI, self.weight.dequantize(x_TI.dtype), self.bias)
