"""How a model is served on a node: how many servers, on how many GPUs each, with which options.

Pure: numbers in, command lines out, for `mmar-jobs serve-args` and for the chart. Not here: reading
a model's folder (serving_command.py), talking to servers (server.py).

A sequence costs KV cache for as long as it lasts, and a batch that is too small leaves the GPU
waiting for its own weights. So a server spans the fewest GPUs (each hop between them costs) whose
memory, less the weights, holds enough sequences at a time.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmar_jobs.errors import SettingsError
from mmar_jobs.prompt import THINK_CLOSE, THINK_OPEN

GIB: Final = 1 << 30
# Of a GPU's memory, what vLLM may take; the rest is the driver's, and fragments.
MEMORY_SHARE: Final = 0.92
# Activations of a prefill, CUDA graphs, NCCL buffers, encoder outputs: what vLLM takes on top.
OVERHEAD_BYTES: Final = 5 * GIB
# Sequences below which decoding is bound by reading the weights.
ENOUGH_SEQUENCES: Final = 128
MAX_SEQUENCES: Final = 1024
# A prompt is a clip of 30 s (390 tokens), its question, and the instructions.
MAX_PROMPT_TOKENS: Final = 2048
MEAN_PROMPT_TOKENS: Final = 500
BATCHED_TOKENS: Final = 8192
# Processes that turn tokens into JSON: one is slower than the GPU where tokens have logprobs.
API_SERVERS: Final = 4
_BLOCK_TOKENS: Final = 64
# Sequences up to which vLLM captures CUDA graphs by itself, but on Blackwell; each step of a larger
# batch waits for Python to queue its kernels. Sizes this large are captured 16 apart.
_CAPTURED_SEQUENCES: Final = 512
_CAPTURE_STEP: Final = 16
_KV_BYTES: Final = 2
# Those that vLLM takes (vllm.config.lora.MaxLoRARanks).
_LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_REASONING: Final = json.dumps(
    {"reasoning_start_str": THINK_OPEN, "reasoning_end_str": THINK_CLOSE}, separators=(",", ":")
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model fills memory: bytes of all weights, and the geometry of its attention."""

    weight_bytes: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache a token, over all GPUs of a server."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * _KV_BYTES

    @property
    def splits(self) -> tuple[int, ...]:
        """Tensor parallel sizes that split heads evenly and keep one copy of the KV cache."""
        sizes = (1, 2, 4, 8, 16)
        return tuple(n for n in sizes if self.num_heads % n == 0 and self.num_kv_heads % n == 0)

    def widest_split(self, num_gpus: int) -> int:
        """The most of so many GPUs that one server can span."""
        return max(size for size in self.splits if size <= num_gpus)

    @classmethod
    def parse(cls, config: Mapping[str, Any], weight_bytes: int) -> "Shape":
        """The shape in a config.json of Qwen3-Omni."""
        text = config["thinker_config"]["text_config"]
        return cls(
            weight_bytes=weight_bytes,
            num_layers=int(text["num_hidden_layers"]),
            num_heads=int(text["num_attention_heads"]),
            num_kv_heads=int(text["num_key_value_heads"]),
            head_dim=int(text["head_dim"]),
        )


@dataclass(frozen=True, slots=True)
class Node:
    """GPUs of one kind; memory of one in GiB."""

    num_gpus: int
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Workload:
    """Tokens of the longest and of a mean completion, and how many of them a question has.

    Those share the KV cache of their prompt.
    """

    max_tokens: int
    mean_tokens: int
    num_draws: int = 16

    @property
    def tokens_per_sequence(self) -> int:
        """KV cache of a sequence, tokens, when it ends."""
        return self.mean_tokens + math.ceil(MEAN_PROMPT_TOKENS / self.num_draws)


USUAL_WORKLOAD: Final = Workload(max_tokens=6000, mean_tokens=1500)


@dataclass(frozen=True, slots=True)
class Layout:
    """`num_servers` servers over `tensor_parallel` GPUs each."""

    num_servers: int
    tensor_parallel: int
    max_num_seqs: int
    max_model_len: int
    kv_tokens: int


def lay_out(shape: Shape, node: Node, workload: Workload) -> Layout:
    """The layout for a node; SettingsError where the model does not fit it at all."""
    longest = _longest(workload)
    fitting = [
        (size, kv_tokens)
        for size in shape.splits
        if size <= node.num_gpus and (kv_tokens := _kv_tokens(shape, node, size)) >= longest
    ]
    if not fitting:
        raise SettingsError(
            f"{shape.weight_bytes / GIB:.0f} GiB of weights and one sequence of {longest} tokens "
            f"do not fit {node.num_gpus} x {node.memory_gib:g} GiB: use more or larger GPUs, or "
            "lower --max-tokens"
        )
    wide_enough = [
        (size, kv_tokens)
        for size, kv_tokens in fitting
        if kv_tokens >= ENOUGH_SEQUENCES * workload.tokens_per_sequence
    ]
    size, _ = wide_enough[0] if wide_enough else fitting[-1]
    return spread(shape, node, workload, size)


def one_server(shape: Shape, node: Node, workload: Workload) -> Layout:
    """One server over as many GPUs of the node as the model's heads split over."""
    size = shape.widest_split(node.num_gpus)
    lay_out(shape, node, workload)  # raises where the model does not fit
    return spread(shape, Node(size, node.memory_gib), workload, size)


def spread(shape: Shape, node: Node, workload: Workload, size: int) -> Layout:
    """Servers over `size` GPUs each, whether or not that is best; see lay_out."""
    kv_tokens = _kv_tokens(shape, node, size)
    return Layout(
        num_servers=node.num_gpus // size,
        tensor_parallel=size,
        max_num_seqs=max(1, min(MAX_SEQUENCES, kv_tokens // workload.tokens_per_sequence)),
        max_model_len=_longest(workload),
        kv_tokens=kv_tokens,
    )


def _longest(workload: Workload) -> int:
    """Tokens of the longest sequence, in whole blocks."""
    return _rounded_up(MAX_PROMPT_TOKENS + workload.max_tokens, _BLOCK_TOKENS)


def _kv_tokens(shape: Shape, node: Node, size: int) -> int:
    """Tokens that the KV cache of a server over `size` GPUs holds; below 0 weights do not fit."""
    free = node.memory_gib * GIB * MEMORY_SHARE - OVERHEAD_BYTES - shape.weight_bytes / size
    return math.floor(free * size / shape.kv_bytes_per_token)


def _rounded_up(value: int, step: int) -> int:
    return -(-value // step) * step


def engine_args(
    layout: Layout, model: str, name: str, *, dtype: str, thinking_budget: bool
) -> list[str]:
    """Arguments of vLLM's engine, in a server or in this process; see serve_args."""
    args = [
        *(model, "--served-model-name", name),
        *("--dtype", dtype),
        *("--tensor-parallel-size", str(layout.tensor_parallel)),
        *("--max-model-len", str(layout.max_model_len)),
        *("--max-num-seqs", str(layout.max_num_seqs)),
        *("--max-num-batched-tokens", str(BATCHED_TOKENS)),
        *("--gpu-memory-utilization", str(MEMORY_SHARE)),
        # One clip a prompt, and no room for what the project never sends.
        *("--limit-mm-per-prompt", '{"audio":1,"image":0,"video":0}'),
    ]
    if layout.max_num_seqs > _CAPTURED_SEQUENCES:
        size = _rounded_up(layout.max_num_seqs, _CAPTURE_STEP)
        args += ["--max-cudagraph-capture-size", str(size)]
    return args + (["--reasoning-config", _REASONING] if thinking_budget else [])


def serve_args(
    layout: Layout,
    model: str,
    name: str,
    *,
    dtype: str,
    media_dir: str,
    thinking_budget: bool = False,
) -> list[str]:
    """Arguments of `vllm serve` for one server of the layout, but for address and GPUs.

    With `thinking_budget` it knows where thinking begins and ends, so that it can end it.
    """
    args = engine_args(layout, model, name, dtype=dtype, thinking_budget=thinking_budget)
    args += ["--api-server-count", str(API_SERVERS)]
    return args + (["--allowed-local-media-path", media_dir] if media_dir else [])


def lora_args(name: str, adapter: str, rank: int) -> list[str]:
    """Further arguments that serve an adapter as `name` beside its base; vLLM >= 0.29 reads ours.

    No merge, no second copy of the base on the node; each token costs the LoRA's multiplications.
    """
    ranks = [known for known in _LORA_RANKS if known >= rank]
    if not ranks:
        raise SettingsError(f"vLLM serves LoRA ranks up to {_LORA_RANKS[-1]}, not {rank}: merge it")
    return [
        *("--enable-lora", "--max-loras", "1", "--max-lora-rank", str(ranks[0])),
        *("--lora-modules", f"{name}={adapter}"),
    ]


@dataclass(frozen=True, slots=True)
class Server:
    """One server of a node: its GPUs by index, and all arguments of `vllm serve`."""

    gpus: tuple[int, ...]
    args: tuple[str, ...]


def servers(layout: Layout, args: Sequence[str], first_port: int) -> list[Server]:
    """The servers of a layout, on neighbouring GPUs and consecutive ports."""
    size = layout.tensor_parallel
    return [
        Server(
            gpus=tuple(range(index * size, (index + 1) * size)),
            args=(*args, "--port", str(first_port + index)),
        )
        for index in range(layout.num_servers)
    ]
