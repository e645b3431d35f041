"""Attaching LoRA to a thinker: q, k, v, o of every text layer and every expert's gate, up and down.

Not here: training, files. Router, embeddings, lm_head, norms, audio and vision tower stay as they
are.

Legend: T tokens, I in-features, O out-features, R rank.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from mmar_jobs.errors import DataError
from mmar_jobs.qlora.dropout import DropKey, Dropout
from mmar_jobs.qlora.experts import BACKEND, ExpertLora, dense, fill_uniform
from mmar_jobs.qlora.foreign import Thinker
from mmar_jobs.qlora.graphs import RowGraphs
from mmar_jobs.qlora.grouped import LoraFactors, grouped_lora_linear
from mmar_jobs.qlora.memory import MemoryPlan
from mmar_jobs.qlora.nf4 import Nf4Linear
from mmar_jobs.qlora.recipes import LoraRecipe

ATTENTION_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
# What reads one input shares its mask. Experts take two: gate and up, then down.
_SITES: Final = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "experts": 2}
_SITES_PER_LAYER: Final = 4


class LoraLinear(nn.Module):
    """A frozen linear layer plus scaling · B(A(dropout(x))); A is (R, I), B is (O, R), fp32."""

    def __init__(
        self, base: nn.Linear | Nf4Linear, rank: int, *, scaling: float, dropout: Dropout
    ) -> None:
        super().__init__()
        self.base = base
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.scaling = scaling
        self.dropout = dropout
        self.site = 0

    def init_factors(self, generator: torch.Generator) -> None:
        """A: uniform in ±1/sqrt(fan-in); B: zero."""
        fill_uniform(self.lora_A, generator)

    def scaling_and_key(self) -> tuple[float, DropKey]:
        """Factor on what is kept of the LoRA input, and the name of its mask."""
        key = self.dropout.key(self.site, self.lora_A.device)
        return self.scaling / self.dropout.kept_share, key

    def forward(self, x_TI: Tensor) -> Tensor:
        """(…, I) -> (…, O)."""
        flat_TI = x_TI.reshape(-1, x_TI.shape[-1])
        factors = LoraFactors(
            self.lora_A[None],
            (self.lora_B[None],),
            self.scaling / self.dropout.kept_share,
            self.dropout.mask(flat_TI.shape, self.site, device=flat_TI.device),
        )
        weight_1OI = dense(self.base.weight, x_TI.dtype)[None]
        out_TO = grouped_lora_linear(flat_TI, weight_1OI, [flat_TI.shape[0]], factors)
        if self.base.bias is not None:
            out_TO = out_TO + self.base.bias
        return out_TO.view(*x_TI.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class LoraModel:
    """A thinker that carries LoRA.

    `sites` maps a module's path, "model.layers.0.self_attn.q_proj" or "model.layers.0.mlp.experts",
    to what holds its factors; `experts_before` is the experts backend that `detach` restores, and
    `layers_before` the decoder layers, where fused ones took their place. On a GPU `graphs` replays
    those for rows that are trained on.
    """

    model: Thinker
    recipe: LoraRecipe
    dropout: Dropout
    sites: dict[str, LoraLinear | ExpertLora]
    experts_before: str | None
    layers_before: tuple[nn.Module, ...] = ()
    graphs: RowGraphs | None = None

    @property
    def is_fused(self) -> bool:
        """Whether fused layers compute, which keep only what `keep` says."""
        return bool(self.layers_before)

    def keep(self, plan: MemoryPlan) -> None:
        """Let each fused layer keep for its backward pass what is planned; any other keeps all."""
        for layer, saved in zip(self.model.model.layers, plan.saved, strict=True):
            layer.saved = saved
        if self.graphs:
            self.graphs.prepare(token_budget=plan.token_budget, lends=not plan.accumulates)

    def factors(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name, in model order."""
        return {
            f"{path}.{name}": factor
            for path, site in self.sites.items()
            for name, factor in site.named_parameters(recurse=False)
        }

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Inside the block the model is its base: what the adapter adds is multiplied by zero.

        Without gradients: CUDA graphs hold the factors that they were captured with.
        """
        scalings = {path: site.scaling for path, site in self.sites.items()}
        for site in self.sites.values():
            site.scaling = 0.0
        try:
            with torch.no_grad():
                yield
        finally:
            for path, site in self.sites.items():
                site.scaling = scalings[path]

    def detach(self) -> None:
        """Take LoRA off again and leave the base model as it was before `attach_lora`."""
        for path, site in self.sites.items():
            parent = self.model.get_submodule(path.rpartition(".")[0])
            if isinstance(site, LoraLinear):
                setattr(parent, path.rpartition(".")[2], site.base)
            else:
                del self.model.get_submodule(path).lora
        self.sites.clear()
        for index, layer in enumerate(self.layers_before):
            self.model.model.layers[index] = layer
        self.model.set_experts_implementation(self.experts_before)


def _attach_layer(layer: nn.Module, path: str, holder: LoraModel) -> Iterator[tuple[str, Any]]:
    recipe, dropout = holder.recipe, holder.dropout
    attention = layer.get_submodule("self_attn")
    for name in ATTENTION_PROJECTIONS:
        base = attention.get_submodule(name)
        if not isinstance(base, nn.Linear | Nf4Linear):
            raise DataError(f"{path}.self_attn.{name} already carries LoRA: detach it first")
        site = LoraLinear(base, recipe.rank, scaling=recipe.scaling, dropout=dropout)
        setattr(attention, name, site)
        yield f"{path}.self_attn.{name}", site
    experts = getattr(layer.get_submodule("mlp"), "experts", None)
    if experts is None:
        raise DataError(
            f"{path}.mlp has no experts: only models whose layers all have can be trained"
        )
    experts.lora = ExpertLora(experts, recipe.rank, scaling=recipe.scaling, dropout=dropout)
    yield f"{path}.mlp.experts", experts.lora


def attach_lora(model: Thinker, recipe: LoraRecipe, *, seed: int) -> LoraModel:
    """Wrap the thinker's text layers in place; A is drawn from `seed`, B is zero.

    Everything else is frozen. Raises DataError for a model that already carries LoRA or has a text
    layer without experts.
    """
    model.requires_grad_(requires_grad=False)
    experts_before = model.model.config._experts_implementation  # noqa: SLF001 - no public reader
    num_sites = _SITES_PER_LAYER * len(model.model.layers)
    dropout = Dropout(recipe.dropout, seed=seed, num_sites=num_sites)
    holder = LoraModel(model, recipe, dropout, {}, experts_before)
    generator = torch.Generator().manual_seed(seed)
    for index, layer in enumerate(model.model.layers):
        sites = _attach_layer(layer, f"model.layers.{index}", holder)
        for path, site in sites:
            site.site = index * _SITES_PER_LAYER + _SITES[path.rpartition(".")[2]]
            site.init_factors(generator)
            holder.sites[path] = site
    model.set_experts_implementation(BACKEND)
    has_kernels = fits_kernels(model.model.config)
    return fuse(holder) if has_kernels and _is_on_gpu(model) else holder


def _is_on_gpu(model: Thinker) -> bool:
    """In 16 bits, which is all that kernels are for there."""
    weight = model.model.embed_tokens.weight
    return bool(weight.is_cuda and weight.dtype.itemsize == 2)


def fits_kernels(config: Any) -> bool:
    """Whether the fused layers compute what this text config says; if not the reference does."""
    size = config.head_dim
    return config.hidden_act == "silu" and not config.attention_bias and size & (size - 1) == 0


def fuse(holder: LoraModel) -> LoraModel:
    """Let fused layers take the place of transformers' own."""
    from mmar_jobs.qlora.layer import FusedLayer  # noqa: PLC0415 - triton, which CPUs lack

    layers = holder.model.model.layers
    before = tuple(layers)
    for index, layer in enumerate(before):
        layers[index] = FusedLayer(layer)
    graphs = RowGraphs(tuple(layers), holder.dropout) if _is_on_gpu(holder.model) else None
    return dataclasses.replace(holder, layers_before=before, graphs=graphs)
