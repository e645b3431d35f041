"""A small run in a store of its own, asked of servers stage by stage, as commands or in process.

Not here: the servers.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmar_jobs.artifact import Artifact
from mmar_jobs.base_model import model_digest
from mmar_jobs.chat import load_tokenizer
from mmar_jobs.cli import run_command
from mmar_jobs.engine.link import Patience
from mmar_jobs.engine.server import ServerEngine, Site
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.progress import no_bar
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Candidate
from mmar_jobs.settings import GenerateCommand, InferCommand, parse
from mmar_jobs.stages import generate, infer
from mmar_jobs.tiny import tiny_model_folder
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import edges_of

NUM_CANDIDATES = 8
# As for a server at hand, so that a test need not wait as long as a user would.
QUICK = Patience(outage_s=400, stall_s=3, poll_s=0.2, first_pause_s=0.1, longest_pause_s=2)

_SETTINGS = """
run_id = "r"
store = {store}
model = {model}
questions = {train}
heldout = {heldout}
benchmark = {benchmark}

[prompt]
version = "baseline"

[sampling]
num_candidates = 8
max_tokens = 96
questions_per_shard = 4

[filter.weights]
mastered = 1

[lora]
quantization = "none"

[optim]
learning_rates = [2e-3]
num_epochs = 2
examples_per_step = 16
token_budget = 2048

[engine]
threads = 1
"""


class _Stage(Protocol):
    def run(self, command: Any, edges: Any) -> Artifact: ...


@dataclass(frozen=True)
class Job:
    """One run in the folder `place`."""

    place: Path
    world: TinyWorld

    @property
    def store(self) -> Path:
        """Where its artifacts are."""
        return self.place / "store"

    def flags(self, servers: str = "") -> list[str]:
        """Flags that every command takes, and the servers for those that ask."""
        path = self.place / "job.toml"
        paths = {
            "store": self.store,
            "model": tiny_model_folder(),
            "train": self.world.train,
            "heldout": self.world.heldout,
            "benchmark": self.world.benchmark,
        }
        quoted = {name: json.dumps(str(value)) for name, value in paths.items()}
        path.write_text(_SETTINGS.format(**quoted))
        return ["--config", str(path), *(["--engine.servers", servers] if servers else [])]

    def do(self, name: str, *more: str, servers: str = "") -> None:
        """Run a command that must succeed."""
        assert 0 == run_command(name, [*self.flags(servers), *more])

    def draw(self, url: str, *more: str, track: Any = no_bar) -> list[Candidate]:
        """Generate: every training question, NUM_CANDIDATES times."""
        flags = [*self.flags(url), *more]
        return self._answers(generate, parse(GenerateCommand, flags, prog="x"), track)

    def greedy(self, url: str, track: Any = no_bar) -> list[Candidate]:
        """Infer: every benchmark question once, by the likeliest tokens."""
        return self._answers(infer, parse(InferCommand, self.flags(url), prog="x"), track)

    def _answers(self, stage: _Stage, command: Any, track: Any) -> list[Candidate]:
        edges, _ = edges_of(self.store, open_quick, track=track)
        artifact = stage.run(command, edges)
        names = [s.name for s in artifact.manifest.shards if s.name.startswith("part-")]
        return [one for name in names for one in artifact.read_records(name, Candidate)]

    def copy(self, place: Path) -> "Job":
        """The same run in another place, as far as it got."""
        shutil.copytree(self.store, place / "store")
        return Job(place, self.world)


def open_quick(base: Path, adapter: Path | None, chosen: EngineSettings) -> ServerEngine:
    """An engine over servers that serve the base, which has little patience; see OpenEngine."""
    assert adapter is None
    site = Site(chosen.server_urls, None, None, QUICK)
    identity = ModelIdentity(base_digest=model_digest(base))
    tolerance_nats = chosen.canary_tolerance_nats
    return ServerEngine(identity, load_tokenizer(base), site, tolerance_nats=tolerance_nats)


def check_complete(
    candidates: list[Candidate], world: TinyWorld, num_draws: int = NUM_CANDIDATES
) -> None:
    """Every training question has each of its draws exactly once."""
    ids = [json.loads(line)["id"] for line in world.train.read_text().splitlines()]
    expected: Mapping[tuple[str, int], int] = Counter(
        (question_id, draw) for question_id in ids for draw in range(num_draws)
    )
    assert expected == Counter((one.question_id, one.draw) for one in candidates)
