"""Which model an iteration starts from, read off the verdict before it.

Not here: deciding on promotion (verdict.py); this only follows what evaluate recorded.
"""

from dataclasses import dataclass
from typing import Any

from mmar_jobs.artifact import Artifact, find_artifact, require_artifact
from mmar_jobs.errors import GateError, SettingsError
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.layout import ADAPTER_WEIGHTS, VERDICT, adapter_key, run_key, verdict_key
from mmar_jobs.prompt import template_hash, variant_name
from mmar_jobs.store import Store
from mmar_jobs.verdict import Verdict

BASE = 0


@dataclass(frozen=True)
class Model:
    """A model of the run: the base (iteration 0) or the adapter that an iteration trained."""

    iteration: int
    adapter: Artifact | None

    @property
    def adapter_digest(self) -> str | None:
        """SHA-256 of the adapter's weights file, None for the base."""
        return shard_sha256(self.adapter, ADAPTER_WEIGHTS) if self.adapter else None

    def identity(self, base_digest: str) -> ModelIdentity:
        """What an engine that serves this model must say of itself."""
        return ModelIdentity(base_digest=base_digest, adapter_digest=self.adapter_digest)

    def name(self, run_id: str) -> str:
        """A name never used twice: `<run>-i<k>-<sha8>`, or `base`."""
        digest = self.adapter_digest
        return "base" if digest is None else f"{run_id}-i{self.iteration}-{digest[:8]}"


def parent_of(store: Store, run_id: str, iteration: int) -> Model:
    """The model that `iteration` generates with and trains on: the last promoted one."""
    if iteration == 1:
        return Model(BASE, None)
    verdict = require_artifact(store, verdict_key(run_id, iteration - 1), stage="evaluate")
    return _model(store, run_id, verdict.read_json(VERDICT)["next_iteration"])


def child_of(store: Store, run_id: str, iteration: int) -> Model:
    """The model that `iteration` trained."""
    return _model(store, run_id, iteration)


def best_model(store: Store, run_id: str) -> tuple[Model, Artifact | None]:
    """The last promoted model and the last verdict; the base and None before any verdict."""
    return _model(store, run_id, best_iteration(store, run_id)), last_verdict(store, run_id)


def best_iteration(store: Store, run_id: str) -> int:
    """The iteration that trained the last promoted model; 0 means the base."""
    verdict = last_verdict(store, run_id)
    return BASE if verdict is None else int(verdict.read_json(VERDICT)["next_iteration"])


def last_verdict(store: Store, run_id: str) -> Artifact | None:
    """The verdict of the latest evaluated iteration."""
    verdicts = all_verdicts(store, run_id)
    return verdicts[-1] if verdicts else None


def all_verdicts(store: Store, run_id: str) -> list[Artifact]:
    """Every verdict of the run, in order of iterations, without gaps."""
    found: list[Artifact] = []
    while (artifact := find_artifact(store, verdict_key(run_id, len(found) + 1))) is not None:
        found.append(artifact)
    return found


def read_verdict(artifact: Artifact) -> Verdict:
    """The verdict inside a verdict artifact."""
    return Verdict.model_validate(artifact.read_json(VERDICT)["verdict"])


def check_base(artifact: Artifact, base_digest: str) -> None:
    """Raise GateError when `artifact` was made with another base model than the one at hand."""
    other = artifact.manifest.recipe["base_digest"]
    if other != base_digest:
        raise GateError(
            f"{artifact.key} was made with base model {other[:12]}, --model is {base_digest[:12]}: "
            f"give the folder that {run_key('…')} began with, or start another --run-id"
        )


def check_prompt(artifact: Artifact, version: str) -> None:
    """Raise SettingsError when `artifact` was made with another prompt than `version` renders."""
    made = artifact.manifest.recipe
    if made["template_hash"] != template_hash(version):
        raise SettingsError(
            f"{artifact.key} was made with prompt {variant_name(made['prompt']['version'])}, "
            f"--prompt.version is {variant_name(version)}: ask a model as it was trained: use the "
            "same prompt or another --run-id"
        )


def shard_sha256(artifact: Artifact, name: str) -> str:
    """Digest of one shard as the manifest has it."""
    return next(shard.sha256 for shard in artifact.manifest.shards if shard.name == name)


def _model(store: Store, run_id: str, iteration: int) -> Model:
    if iteration == BASE:
        return Model(BASE, None)
    return Model(iteration, require_artifact(store, adapter_key(run_id, iteration), stage="train"))


def as_record(model: Model, run_id: str, base_digest: str) -> dict[str, Any]:
    """The model as manifests name it."""
    return {
        "name": model.name(run_id),
        "iteration": model.iteration,
        "hash": model.identity(base_digest).hash,
    }
