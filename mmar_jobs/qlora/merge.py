"""Merging an adapter into weights: W + scaling · B·A, in fp32, rounded once.

Not here: the adapter's files (adapter_file.py), folders, resuming (merge_folder.py), the command.

Legend: E experts, R rank, O out-features, I in-features (of one projection), H hidden.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mmar_jobs.errors import DataError
from mmar_jobs.qlora.adapter_file import (
    INNER,
    PREFIX,
    AdapterFile,
    from_expert_fastest,
    open_adapter,
)
from mmar_jobs.qlora.foreign import Thinker

_LINEAR: Final = re.compile(r".*\.self_attn\.\w+")
_EXPERTS: Final = re.compile(r".*\.mlp\.experts")
_EXPERT: Final = re.compile(r"(?P<path>.*\.mlp\.experts)\.(?P<expert>\d+)\.(?P<which>\w+)")
# What would change the arithmetic, or the model beyond it; None, False and these are harmless.
_UNKNOWN: Final = (
    *("use_rslora", "use_dora", "lora_bias", "modules_to_save", "fan_in_fan_out"),
    *("layer_replication", "use_qalora", "use_bdlora", "trainable_token_indices"),
)
_NUM_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Pair:
    """One projection's factors: `a` (R, I), `b` (O, R)."""

    a: Tensor
    b: Tensor
    scaling: float

    def add_to(self, weight_OI: Tensor) -> Tensor:
        """The merged weight in the dtype and on the device it came in, computed in fp32."""
        a, b = (factor.to(weight_OI.device, torch.float32) for factor in (self.a, self.b))
        merged_OI = weight_OI.to(torch.float32, copy=True).addmm_(b, a, alpha=self.scaling)
        return merged_OI.to(weight_OI.dtype)


@dataclass(frozen=True, slots=True)
class _ExpertFactors:
    """All factors of one layer's experts: A (E, R, in), B (E, out, R).

    `split` where gate uses the first half of its shared rank and up the second, as we export them.
    """

    gate_up_A: Tensor
    gate_up_B: Tensor
    down_A: Tensor
    down_B: Tensor
    split: bool


@dataclass(frozen=True, slots=True)
class _Site:
    """One LoRA pair of the file; `num_experts` is None for a plain projection."""

    rank: int
    scaling: float
    shape: tuple[int, int]
    num_experts: int | None = None


class AdapterPairs:
    """The factors of every projection by its original name without `thinker.` and `.weight`.

    Reads one layer's experts at a time and keeps `num_layers_kept` of them (160 MB each in bf16 at
    the shape of the 30B model) on `device`. Raises DataError where the adapter is none that can be
    merged; all but its numbers is checked before the first is read.
    """

    def __init__(
        self, folder: Path, *, device: torch.device | None = None, num_layers_kept: int = 1
    ) -> None:
        self._file = open_adapter(folder)
        self._device = device or torch.device("cpu")
        _check_known(self._file)
        self._sites = _read_sites(self._file)
        self.shapes = _projection_shapes(self._sites, folder)
        self._experts = functools.lru_cache(num_layers_kept)(self._read_experts)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What export_adapter was told: run, iteration, digests; empty for a foreign adapter."""
        return self._file.metadata

    def pair(self, projection: str) -> Pair:
        """Factors of one projection of `shapes`; DataError when they hold NaN."""
        match = _EXPERT.fullmatch(projection)
        if match is None:
            site = self._sites[projection]
            return Pair(
                self._read(f"{projection}.lora_A"), self._read(f"{projection}.lora_B"), site.scaling
            )
        path, expert = match["path"], int(match["expert"])
        factors = self._experts(path)
        if match["which"] == "down_proj":
            scaling = self._sites[path].scaling
            return Pair(factors.down_A[expert], factors.down_B[expert], scaling)
        scaling = self._sites[path + INNER].scaling
        a, b = factors.gate_up_A[expert], factors.gate_up_B[expert]
        half = 0 if match["which"] == "gate_proj" else 1
        b = b.chunk(2)[half]
        if factors.split:  # a third of all multiplications would be with zeros
            a, b = a.chunk(2)[half], b.chunk(2, dim=1)[half]
        return Pair(a, b, scaling)

    def _read(self, name: str) -> Tensor:
        return self._file.tensor(f"{PREFIX}{name}.weight", self._device)

    def _read_experts(self, path: str) -> _ExpertFactors:
        num_experts = self._sites[path].num_experts
        assert num_experts is not None

        def read_a(name: str) -> Tensor:
            a = self._read(f"{name}.lora_A")
            return a.view(num_experts, -1, a.shape[-1])

        def read_b(name: str) -> Tensor:
            return from_expert_fastest(self._read(f"{name}.lora_B"), num_experts)

        inner = path + INNER
        b = read_b(inner)
        width, rank = b.shape[1] // 2, b.shape[2] // 2
        split = b.shape[2] == 2 * rank and not (
            b[:, :width, rank:].any() or b[:, width:, :rank].any()
        )
        return _ExpertFactors(read_a(inner), b, read_a(path), read_b(path), split=split)


def _check_known(file: AdapterFile) -> None:
    changed = [name for name in _UNKNOWN if file.config.get(name)]
    if file.config.get("bias", "none") != "none":
        changed.append("bias")
    if changed:
        raise DataError(
            f"{file.folder}: the adapter sets {', '.join(changed)}, which no merge knows: train a "
            "plain LoRA adapter"
        )


def _read_sites(file: AdapterFile) -> dict[str, _Site]:
    """Every pair of the file by path; down of experts under `…experts`, gate_up below it."""
    stems = {name.removeprefix(PREFIX).removesuffix(".weight") for name in file.slots}
    sites: dict[str, _Site] = {}
    for path in sorted({stem.rpartition(".lora_")[0] or stem for stem in stems}):
        is_expert = _EXPERTS.fullmatch(path.removesuffix(INNER)) is not None
        if not is_expert and not _LINEAR.fullmatch(path):
            raise DataError(
                f"{file.folder}: the adapter holds {PREFIX}{path}, which no merge knows: train it "
                "again"
            )
        sites[path] = _read_site(file, path, is_expert=is_expert)
    if not sites:
        raise DataError(f"{file.folder}: the adapter holds no projection that can be merged")
    return sites


def _read_site(file: AdapterFile, path: str, *, is_expert: bool) -> _Site:
    shapes = []
    for factor in ("lora_A", "lora_B"):
        name = f"{PREFIX}{path}.{factor}.weight"
        if name not in file.slots:
            raise DataError(f"{file.folder}: the adapter lacks tensor {name}: copy it again")
        shapes.append(file.slots[name].shape)
    rank, scaling = _rank_and_scaling(file.config, path)
    a, b = shapes
    num_experts, rest = divmod(a[0], rank)
    fits = len(a) == 2 == len(b) and a[0] == b[1] and not rest and (is_expert or num_experts == 1)
    if not fits:
        raise DataError(
            f"{file.folder}: {path} has factors {list(a)} and {list(b)}, which rank {rank} of its "
            "config contradicts: take both files from one export"
        )
    return _Site(rank, scaling, (b[0], a[1]), num_experts if is_expert else None)


def _rank_and_scaling(config: Mapping[str, Any], path: str) -> tuple[int, float]:
    """As PEFT (get_pattern_key, 0.21): a pattern fits a name's end, the first one counts."""
    name = path
    if _EXPERTS.fullmatch(path.removesuffix(INNER)):
        name = (
            f"{path.removesuffix(INNER)}.{'gate_up_proj' if path.endswith(INNER) else 'down_proj'}"
        )

    def pick(patterns: Mapping[str, Any] | None, default: Any) -> Any:
        found = (v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", name))
        return next(found, default)

    rank = int(pick(config.get("rank_pattern"), config["r"]))
    return rank, float(pick(config.get("alpha_pattern"), config["lora_alpha"])) / rank


def _projection_shapes(sites: Mapping[str, _Site], folder: Path) -> dict[str, tuple[int, int]]:
    """Shape (O, I) of every projection that the adapter changes."""
    shapes: dict[str, tuple[int, int]] = {}
    for path, site in sites.items():
        if site.num_experts is None:
            shapes[path] = site.shape
            continue
        outer, inner = path.removesuffix(INNER), path.removesuffix(INNER) + INNER
        if {outer, inner} - sites.keys() or sites[outer].num_experts != sites[inner].num_experts:
            raise DataError(
                f"{folder}: the adapter lacks a pair of {outer}, or its pairs are for different "
                "numbers of experts: train it again"
            )
        out, into = site.shape
        names = (("gate_proj", "up_proj"), out // 2) if path == inner else (("down_proj",), out)
        for expert in range(site.num_experts):
            shapes |= {f"{outer}.{expert}.{name}": (names[1], into) for name in names[0]}
    return shapes


@torch.no_grad()
def merge_adapter(model: Thinker, adapter_folder: Path) -> None:
    """Add an exported adapter to a thinker's weights in place; the model must not carry LoRA."""
    pairs = AdapterPairs(adapter_folder)
    weights = dict(_weights(model))
    check_fit(pairs.shapes, {name: tuple(weight.shape) for name, weight in weights.items()})
    for projection, weight in weights.items():
        weight.copy_(pairs.pair(projection).add_to(weight))


def _weights(model: Thinker) -> Any:
    """Every projection that an adapter changes, by its original name, as views of the weights."""
    for index, layer in enumerate(model.model.layers):
        path, experts = f"model.layers.{index}", layer.mlp.experts
        if hasattr(experts, "lora"):
            raise DataError("the model already carries LoRA: detach it before merging")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{path}.self_attn.{name}", layer.self_attn.get_submodule(name).weight
        for expert in range(experts.gate_up_proj.shape[0]):
            gate, up = experts.gate_up_proj[expert].chunk(2, dim=0)
            yield f"{path}.mlp.experts.{expert}.gate_proj", gate
            yield f"{path}.mlp.experts.{expert}.up_proj", up
            yield f"{path}.mlp.experts.{expert}.down_proj", experts.down_proj[expert]


def check_fit(adapter: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]) -> None:
    """Raise DataError unless both hold the same projections in the same shapes."""
    over, lacking = sorted(adapter.keys() - base.keys()), sorted(base.keys() - adapter.keys())
    if over:
        raise DataError(
            f"the base lacks {len(over)} projections of the adapter ({_shown(over)}): the adapter "
            "is of another model"
        )
    if lacking:
        raise DataError(
            f"the adapter has nothing for {len(lacking)} projections of the base "
            f"({_shown(lacking)}): it is of another model"
        )
    odd = next((name for name in sorted(adapter) if adapter[name] != base[name]), None)
    if odd is not None:
        raise DataError(
            f"{odd} is {list(base[odd])} in the base and {list(adapter[odd])} in the adapter: it "
            "is of another model"
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_NUM_SHOWN]) + (", ..." if len(names) > _NUM_SHOWN else "")
