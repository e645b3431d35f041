"""A small healthy run to plant faults into, and what it means that one was stopped.

Not here: the faults themselves; each stands in the test that plants it.
"""

import gzip
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs import settings
from mmar_jobs.artifact import MANIFEST, Artifact
from mmar_jobs.cli import run_command
from mmar_jobs.engine import Request
from mmar_jobs.errors import ExitCode, MmarError
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.manifest import Manifest, sha256
from mmar_jobs.progress import Tracker, no_bar
from mmar_jobs.stages import OpenEngine
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import FakeOpener, Script, edges_of

RUN_ID = "gauntlet"
STAGES = ("ingest", "generate", "filter", "train", "evaluate", "infer", "submit")
NUM_CANDIDATES = 6

Row = dict[str, Any]


@dataclass(frozen=True)
class Stop:
    """How a command ended that was not allowed to go on."""

    code: int
    line: str
    out: str = ""

    def says(self, code: ExitCode, *words: str) -> None:
        """Assert the exit code, and that the one line names every one of `words`."""
        assert code == self.code, self.line
        assert "\n" not in self.line
        missing = [word for word in words if word not in self.line]
        assert [] == missing, self.line


def stopped(action: Callable[[], object]) -> Stop:
    """Do what must fail with an expected error, as the command line would report it."""
    with pytest.raises(MmarError) as caught:
        action()
    return Stop(caught.value.exit_code, str(caught.value))


def read_rows(path: Path) -> list[Row]:
    """The rows of a question file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write a question file."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@dataclass(frozen=True)
class Exam:
    """The key to a world: what a healthy model says, and how to say the opposite."""

    rows: Mapping[str, Row]

    def gold(self, question_id: str) -> str:
        """The right choice."""
        return str(self.rows[question_id]["answer"])

    def wrong(self, question_id: str) -> str:
        """A choice that is not right."""
        row = self.rows[question_id]
        return next(str(choice) for choice in row["choices"] if choice != row["answer"])

    def healthy(self, request: Request, draw: int, identity: ModelIdentity) -> str:
        """Right on every odd draw as the base, right always once trained, and wrong when deaf."""
        knows = identity.adapter_digest is not None or draw % 2 == 1
        is_right = knows and bool(request.clip.waveform.any())
        answer = self.gold if is_right else self.wrong
        thinking = "I hear it again and again." + " And again." * draw
        return f"<think>{thinking}</think>{answer(request.question_id)}"


@dataclass
class Run:
    """One run in a store of its own, with a tiny model and a small synthetic world."""

    store: Path
    model: Path
    world: TinyWorld
    exam: Exam
    capsys: pytest.CaptureFixture[str] | None = None

    def cli(self, stage: str, *flags: str) -> Stop:
        """Run one stage by the command line, with the engine that users get."""
        return self.command(stage, *self.flags(stage, *flags))

    def command(self, name: str, *arguments: str) -> Stop:
        """Run one command as a user does; its code, last line of errors, and output."""
        assert self.capsys is not None
        self.capsys.readouterr()
        code = run_command(name, arguments)
        said = self.capsys.readouterr()
        return Stop(code, said.err.rstrip("\n").rpartition("\n")[2], said.out)

    def stage(
        self,
        stage: str,
        *flags: str,
        opener: OpenEngine | None = None,
        track: Tracker = no_bar,
    ) -> Artifact:
        """Run one stage in process with a fake engine; healthy unless told otherwise."""
        kind: type[Any] = getattr(settings, f"{stage.capitalize()}Command")
        command = settings.parse(kind, self.flags(stage, *flags), prog=f"mmar-jobs {stage}")
        edges, _ = edges_of(self.store, opener or self.opener(), track=track)
        artifact: Artifact = import_module(f"mmar_jobs.stages.{stage}").run(command, edges)
        return artifact

    def stop(self, stage: str, *flags: str, opener: OpenEngine | None = None) -> Stop:
        """Run one stage that must be stopped."""
        return stopped(lambda: self.stage(stage, *flags, opener=opener))

    def opener(self, script: Script | None = None, **options: Any) -> FakeOpener:
        """Opens engines that speak by `script` and have the faults in `options`."""
        return FakeOpener(script or self.exam.healthy, options)

    def flags(self, stage: str, *others: str) -> list[str]:
        """The healthy settings of a stage as flags, but for those that `others` set otherwise."""
        known = {"store": self.store, "run-id": RUN_ID} | self._settings().get(stage, {})
        kept = {
            f"--{name}": str(value) for name, value in known.items() if f"--{name}" not in others
        }
        return [part for pair in kept.items() for part in pair] + list(others)

    def _settings(self) -> dict[str, dict[str, object]]:
        model: dict[str, object] = {"model": self.model}
        tokens = {"sampling.max-tokens": 64}
        return {
            "ingest": {
                "questions": self.world.train,
                "heldout": self.world.heldout,
                "benchmark": self.world.benchmark,
            },
            "generate": model
            | tokens
            | {"sampling.num-candidates": NUM_CANDIDATES, "sampling.questions-per-shard": 4},
            "filter": {"filter.top-k": 2, "filter.min-valid": 2},
            "train": model
            | {"lora.rank": 2, "lora.dropout": 0, "lora.quantization": "none"}
            | {"engine.threads": 1}
            | {"optim.learning-rates": 1e-2, "checkpoint-every-steps": 1},
            "evaluate": model | tokens,
            "infer": model | tokens,
        }

    def path(self, *parts: str) -> Path:
        """A path below the run in its store."""
        return self.store.joinpath("runs", RUN_ID, *parts)

    def artifact(self, key: str) -> Artifact:
        """A finished artifact by its key below the run."""
        store = open_store(str(self.store))
        data = (self.path(key) / MANIFEST).read_bytes()
        return Artifact(store, f"runs/{RUN_ID}/{key}", Manifest.model_validate_json(data))

    def replant(self, key: str, change: Callable[[list[Row]], list[Row]]) -> None:
        """Change an artifact's records as a faulty stage would have written them: digests fit."""
        folder = self.path(key)
        manifest = json.loads((folder / MANIFEST).read_text())
        for shard in manifest["shards"]:
            if shard["num_records"] is None:
                continue
            lines = gzip.decompress((folder / shard["name"]).read_bytes()).splitlines()
            rows = change([json.loads(line) for line in lines])
            data = gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode())
            (folder / shard["name"]).write_bytes(data)
            shard |= {"sha256": sha256(data), "size_bytes": len(data), "num_records": len(rows)}
        (folder / MANIFEST).write_text(json.dumps(manifest))


class Snapshots:
    """The store of a healthy run after each of its stages; made once, copied for every test."""

    def __init__(self, folder: Path, run: Run) -> None:
        self._folder = folder
        self._run = run
        self._done: list[str] = []

    def copy_after(self, stage: str, target: Path) -> None:
        """Put the store as it was after `stage` at `target`."""
        while stage not in self._done:
            following = STAGES[len(self._done)]
            self._run.stage(following)
            shutil.copytree(self._run.store, self._folder / following)
            self._done.append(following)
        shutil.copytree(self._folder / stage, target)
