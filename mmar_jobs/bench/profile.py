"""Where one step's time goes, by class of kernel.

Not here: the step. On CUDA these are kernels by name, on a CPU operators.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# First match wins, by name in lower case.
_CLASSES: Final = (
    ("communication", r"^nccl"),
    ("optimizer", r"adam|optimizer|multi_tensor|foreach|kquantizeblockwise"),
    ("attention", r"flash|fmha|attention"),
    # Our own Triton kernels come by the names of their functions (qlora/kernels).
    ("lora", r"^_(inner|outer|drop)_kernel"),
    ("grouped_gemm", r"grouped|group_gemm|groupproblem|^_matmul_kernel"),
    ("dequantize", r"dequant|nf4|^_widen_kernel"),
    ("loss", r"softmax|cross_entropy|nll|loss"),
    ("copies", r"memcpy|memset|copy|catarray|_cat|::cat|fill|zero_|::_to_copy"),
    ("gemm", r"gemm|nvjet|cublas|cutlass|xmma|::mm|::addmm|::bmm|::linear|cijk"),
    (
        "index",
        r"index|gather|scatter|sort|topk|radix|scan|cumsum|histogram|bincount|permut|search"
        r"|^_(combine|tiles)_kernel",
    ),
    ("elementwise", r""),
)
_NUM_TOP: Final = 8
_NAME_CHARACTERS: Final = 160


@dataclass(frozen=True, slots=True)
class Shares:
    """`shares` of a step by class, "gaps" where the device was idle; they add up to 1.

    `busy_s` is the time in kernels, `top` maps a class to its longest ones: name, seconds, calls.
    """

    busy_s: float
    shares: dict[str, float]
    top: dict[str, list[tuple[str, float, int]]]


@dataclass(frozen=True, slots=True)
class Busy:
    """One kernel or operator and the time that it has to itself."""

    name: str
    own_us: float


def classify(name: str) -> str:
    """Class of a kernel or operator by its name."""
    lowered = name.lower()
    return next(kind for kind, pattern in _CLASSES if re.search(pattern, lowered))


def profile_step(take: Callable[[], object], device: torch.device, *, step_s: float) -> Shares:
    """Run one step under torch's profiler; shares are of `step_s`, a step without it.

    The profiler slows the host down, and the device waits for it: on an H200 a step of 0.68 s took
    0.81 s, so gaps seen by the profiler would be twice the real ones. Kernels take what they take.
    """
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True) as profiler:
        take()
        if on_cuda:
            torch.cuda.synchronize(device)
    events: Any = profiler.events()
    return share_out(_kernels(events) if on_cuda else _operators(events), step_s)


def _kernels(events: Iterable[Any]) -> list[Busy]:
    """Kernels with the time that each has to itself; of two at once the first keeps the time."""
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in events
        # Ranges such as "Optimizer.step" lie over kernels and are none.
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )
    found, now = [], 0.0
    for start_us, end_us, name in spans:
        found.append(Busy(name, max(0.0, end_us - max(now, start_us))))
        now = max(now, end_us)
    return found


def _operators(events: Iterable[Any]) -> list[Busy]:
    """Operators with their time less that of the operators they call."""
    return [Busy(event.name, event.self_cpu_time_total) for event in events]


def share_out(busy: Sequence[Busy], step_s: float) -> Shares:
    """Divide a step among classes and gaps; a step is at least as long as its kernels."""
    own_us: defaultdict[str, float] = defaultdict(float)
    for one in busy:
        own_us[one.name] += one.own_us
    busy_us = sum(own_us.values())
    step_us = max(step_s * 1e6, busy_us)
    shares = dict.fromkeys((kind for kind, _ in _CLASSES), 0.0)
    for name, time_us in own_us.items():
        shares[classify(name)] += time_us / step_us
    shares["gaps"] = 1 - busy_us / step_us
    return Shares(busy_us / 1e6, shares, _top(own_us, Counter(one.name for one in busy)))


def _top(
    own_us: Mapping[str, float], calls: Mapping[str, int]
) -> dict[str, list[tuple[str, float, int]]]:
    top: dict[str, list[tuple[str, float, int]]] = {kind: [] for kind, _ in _CLASSES}
    for name in sorted(own_us, key=lambda name: -own_us[name]):
        longest = top[classify(name)]
        if len(longest) < _NUM_TOP:
            longest.append((name[:_NAME_CHARACTERS], own_us[name] / 1e6, calls[name]))
    return top
