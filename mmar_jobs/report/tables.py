"""The tables of the report as plain rows: what was dropped, lineage, time per stage, settings.

Not here: the questions' results (findings.py) and HTML (page.html.j2).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmar_jobs.artifact import Artifact
from mmar_jobs.layout import ADAPTER_WEIGHTS, run_key
from mmar_jobs.lineage import shard_sha256
from mmar_jobs.prompt import variant_name
from mmar_jobs.report.findings import DROP_TEXT
from mmar_jobs.report.run_view import Iteration, Run, artifacts_of

SHORT: Final = 10
_HIGHLIGHTS: Final[Mapping[str, Mapping[str, str]]] = {
    "ingest": {"data.seed": "seed"},
    "generate": {
        "sampling.num_candidates": "K",
        "sampling.temperature": "temperature",
        "sampling.top_p": "top-p",
        "prompt.version": "prompt",
        "muted": "muted",
    },
    "filter": {
        "objective": "objective",
        "filter.strategy": "strategy",
        "filter.top_k": "k",
        "filter.min_valid": "min valid",
    },
    "train": {
        "objective": "objective",
        "lora.rank": "rank",
        "lora.alpha": "alpha",
    },
    "evaluate": {"gate.alpha": "alpha", "muted": "muted", "prompt.version": "prompt"},
    "infer": {"infer.votes": "votes", "prompt.version": "prompt"},
}


@dataclass(frozen=True)
class DropRow:
    """One fate of candidates: how many per iteration, and their share of that iteration."""

    reason: str
    text: str
    counts: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class PolicyRow:
    """What a policy gradient met in one iteration; divergence in nats a token, shares of tokens."""

    number: int
    num_groups: int
    num_flat_groups: int
    mean_reward: float
    engine_kl: float
    importance_cut: float
    stop_reason: str


@dataclass(frozen=True)
class ArtifactRow:
    """One artifact: where it came from and what it took; `inputs` are (name, digest, key or "")."""

    key: str
    stage: str
    digest: str
    inputs: Sequence[tuple[str, str, str]]
    highlights: str
    seconds: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class SettingsGroup:
    """The recipe of one stage; a value that changed between iterations is shown once for each."""

    stage: str
    rows: Sequence[tuple[str, str]]


def drop_rows(iterations: Sequence[Iteration]) -> list[DropRow]:
    """Every reason that occurred, in the order in which the filter asks, and what was kept."""
    filtered = [turn.examples.manifest for turn in iterations if turn.examples]
    found = []
    for reason, text in DROP_TEXT.items():
        counts = [manifest.metrics["drops"].get(reason.value, 0) for manifest in filtered]
        if any(counts):
            found.append(DropRow(reason.value.replace("_", " "), text, _shares(counts, filtered)))
    kept = [manifest.counts["num_examples"] for manifest in filtered]
    return [*found, DropRow("kept", "became a training example", _shares(kept, filtered))]


def policy_rows(iterations: Sequence[Iteration]) -> list[PolicyRow]:
    """One row for each iteration that a policy gradient has finished."""
    return [
        PolicyRow(
            number=turn.number,
            num_groups=turn.examples.manifest.counts["num_groups"],
            num_flat_groups=turn.examples.manifest.counts["num_flat_groups"],
            mean_reward=turn.examples.manifest.metrics["mean_reward"],
            engine_kl=turn.adapter.manifest.metrics["candidates"]["engine_kl"],
            importance_cut=turn.adapter.manifest.metrics["candidates"]["importance_cut_fraction"],
            stop_reason=turn.adapter.manifest.metrics["stop_reason"] or "",
        )
        for turn in iterations
        if turn.examples and turn.adapter and turn.step_metrics
    ]


def _shares(counts: Sequence[int], manifests: Sequence[Any]) -> list[tuple[int, float]]:
    totals = [max(1, manifest.counts["num_candidates"]) for manifest in manifests]
    return [(count, count / total) for count, total in zip(counts, totals, strict=True)]


def artifact_rows(run: Run) -> list[ArtifactRow]:
    """All artifacts in the order in which they were made."""
    made = list(made_artifacts(run))
    root = f"{run_key(run.run_id)}/"
    owner = {artifact.digest: artifact.key.removeprefix(root) for artifact in made}
    for turn in run.iterations:
        if turn.adapter is not None:
            owner[shard_sha256(turn.adapter, ADAPTER_WEIGHTS)] = turn.adapter.key.removeprefix(root)
    for artifact in made:
        base = artifact.manifest.recipe.get("base_digest")
        if isinstance(base, str):
            owner.setdefault(base, "the base model")
    return [_artifact_row(artifact, root, owner) for artifact in made]


def made_artifacts(run: Run) -> Iterator[Artifact]:
    """All artifacts in the order in which they were made."""
    if run.questions:
        yield run.questions
    answered = {key: answers.artifact for key, answers in run.answers.items()}
    for turn in run.iterations:
        parts = artifacts_of(turn)
        yield from (part for part in parts if part is not turn.verdict_artifact)
        for model in (turn.parent, turn.child):
            for muted in (False, True):
                # A model's answers are shown where they were first needed.
                answers = answered.pop((model.hash, muted), None) if model else None
                if answers is not None:
                    yield answers
        if turn.verdict_artifact:
            yield turn.verdict_artifact
    yield from (part for part in (run.predictions_artifact, run.submission) if part)


def _artifact_row(artifact: Artifact, root: str, owner: Mapping[str, str]) -> ArtifactRow:
    manifest = artifact.manifest
    return ArtifactRow(
        key=artifact.key.removeprefix(root),
        stage=manifest.stage,
        digest=artifact.digest[:SHORT],
        inputs=[
            (name, digest[:SHORT], owner.get(digest, ""))
            for name, digest in manifest.inputs.items()
        ],
        highlights=", ".join(_highlights(artifact)),
        seconds=manifest.cost.get("seconds"),
        tokens_per_s=manifest.cost.get("tokens_per_s"),
    )


def _highlights(artifact: Artifact) -> Iterator[str]:
    recipe = artifact.manifest.recipe
    values = dict(_leaves(recipe))
    fit = "grpo" if "objective" in recipe else "optim"
    if artifact.manifest.stage == "train" and values.get(f"{fit}.learning_rates"):
        rates = values[f"{fit}.learning_rates"]
        yield f"learning rate {rates[min(recipe['iteration'], len(rates)) - 1]:g}"
        yield f"epochs {values[f'{fit}.num_epochs']}"
    for path, name in _HIGHLIGHTS.get(artifact.manifest.stage, {}).items():
        value = values.get(path)
        if path == "prompt.version" and isinstance(value, str):
            yield f"{name} {variant_name(value)}"
        elif value is True:
            yield name
        elif value is not None and value is not False:
            yield f"{name} {_shown(value)}"


def stage_seconds(run: Run) -> dict[str, dict[str, float]]:
    """Seconds by part of the run and stage; parts that took no measured time are left out."""
    parts: dict[str, dict[str, float]] = {}
    root = f"{run_key(run.run_id)}/"
    part = "before"
    for artifact in made_artifacts(run):
        name = artifact.key.removeprefix(root)
        stage = artifact.manifest.stage
        if stage in ("ingest", "infer", "submit"):
            part = "questions" if stage == "ingest" else "benchmark"
        elif name.startswith("iter-"):
            part = f"iteration {name.partition('/')[0].removeprefix('iter-')}"
        seconds = artifact.manifest.cost.get("seconds")
        if seconds is not None:
            row = parts.setdefault(part, {})
            row[stage] = row.get(stage, 0.0) + seconds
    return parts


def settings_groups(run: Run) -> list[SettingsGroup]:
    """Recipes of all stages, flat, in order of the stages."""
    by_stage: dict[str, list[Artifact]] = {}
    for artifact in made_artifacts(run):
        by_stage.setdefault(artifact.manifest.stage, []).append(artifact)
    groups = []
    for stage, artifacts in by_stage.items():
        values: dict[str, list[str]] = {}
        for artifact in artifacts:
            for path, value in _leaves(artifact.manifest.recipe):
                seen = values.setdefault(path, [])
                if _shown(value) not in seen:
                    seen.append(_shown(value))
        rows = [(path, " · ".join(seen)) for path, seen in values.items()]
        if rows:
            groups.append(SettingsGroup(stage, rows))
    return groups


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)
