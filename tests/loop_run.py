"""A whole run over the synthetic world with a scripted model and the real trainer.

The script: the base is right on draws 1 and 2 of each question, an adapter also on draw 0, which is
the greedy one, and nobody without sound; so every iteration finds examples and only the first child
is promoted.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmar_jobs.engine import Request
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.recipes import (
    EngineSettings,
    FilterRecipe,
    LoraSettings,
    OptimSettings,
    SamplingRecipe,
)
from mmar_jobs.settings import RunCommand
from mmar_jobs.stages import Edges
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import FakeOpener, edges_of, think

RUN_ID = "r"


@dataclass
class Scripted:
    """Knows the world's answers; `deaf_adapters` makes adapters as wrong as the base.

    With `masterly_adapters` an adapter is right on every draw, so nothing is left to learn.
    """

    world: TinyWorld
    deaf_adapters: bool = False
    masterly_adapters: bool = False
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in (self.world.train, self.world.heldout, self.world.benchmark):
            rows = map(json.loads, path.read_text().splitlines())
            self.rows |= {row["id"]: row for row in rows}

    def __call__(self, request: Request, draw: int, identity: ModelIdentity) -> str:
        """One completion."""
        row = self.rows.get(request.question_id)
        if row is None:
            return think("a probe")
        wrong = next(choice for choice in row["choices"] if choice != row["answer"])
        is_adapted = identity.adapter_digest is not None and not self.deaf_adapters
        masters = is_adapted and (draw == 0 or self.masterly_adapters)
        is_right = request.clip.waveform.any() and (draw in (1, 2) or masters)
        return think(row["answer"] if is_right else wrong, f"draw {draw}: I hear it.")


def command_of(world: TinyWorld, model: Path, store: Path, **changes: Any) -> RunCommand:
    """Settings of a run that trains four steps an iteration."""
    known: dict[str, Any] = {
        "store": str(store),
        "run_id": RUN_ID,
        "model": str(model),
        "questions": str(world.train),
        "heldout": str(world.heldout),
        "benchmark": str(world.benchmark),
        "iterations": 1,
        "sampling": SamplingRecipe(num_candidates=4, questions_per_shard=4, max_tokens=64),
        "filter": FilterRecipe(top_k=2),
        "lora": LoraSettings(rank=2, alpha=4.0, quantization="none"),
        "optim": OptimSettings(learning_rates=(1e-3,), token_budget=2048),
        "engine": EngineSettings(threads=1),
    }
    return RunCommand(**known | changes)


def edges_for(command: RunCommand, opener: FakeOpener, **options: Any) -> Edges:
    """Edges over the command's store."""
    return edges_of(Path(command.store), opener, **options)[0]
