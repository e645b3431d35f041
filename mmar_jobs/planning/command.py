"""The command `mmar-jobs plan`: what a run will take, before it is started.

Not here: the arithmetic (estimate.py), what it rests on (assumptions.py), the words (text.py).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmar_jobs.errors import DataError, ExitCode, SettingsError

if TYPE_CHECKING:
    from mmar_jobs.planning.estimate import Job, Plan
    from mmar_jobs.planning.settings import PlanCommand

_MMAR: Final = 1000


def plan(arguments: Sequence[str]) -> int:
    """Print a plan as tables or JSON; with --keep also store it beside the run to come."""
    from mmar_jobs import settings  # noqa: PLC0415 - pydantic
    from mmar_jobs.planning.assumptions import with_changes  # noqa: PLC0415
    from mmar_jobs.planning.estimate import estimate  # noqa: PLC0415
    from mmar_jobs.planning.prices import read_prices  # noqa: PLC0415
    from mmar_jobs.planning.settings import PlanCommand  # noqa: PLC0415
    from mmar_jobs.planning.shape import REFERENCE, read_shape  # noqa: PLC0415
    from mmar_jobs.planning.text import plan_text  # noqa: PLC0415

    command = settings.parse(PlanCommand, arguments, prog="mmar-jobs plan")
    made = estimate(
        job_of(command),
        read_shape(Path(command.model)) if command.model else REFERENCE,
        with_changes(command.assume),
        read_prices(command.prices),
    )
    if command.keep:
        _keep(made, command)
    text = made.model_dump_json(indent=1) if command.as_json else plan_text(made)
    sys.stdout.write(f"{text}\n")
    return ExitCode.DONE


def job_of(command: "PlanCommand") -> "Job":
    """What the run will do, files of questions counted."""
    from mmar_jobs.planning.estimate import Job  # noqa: PLC0415

    train = _count("train", command.num_train, command.questions, command)
    heldout = _count("heldout", command.num_heldout, command.heldout, command)
    benchmark = _count("benchmark", command.num_benchmark, command.benchmark, command)
    if train is None:
        raise SettingsError(
            "--questions or --num-train is needed: how many questions to learn from"
        )
    if heldout is None:
        heldout = round(train * command.data.heldout_fraction)
        train -= heldout
    if min(train, heldout) < 1:
        raise SettingsError(
            f"{train} training and {heldout} held-out questions: a run needs both; give more, or "
            "another --data.heldout-fraction"
        )
    sampling, filtering = command.sampling, command.filter
    return Job(
        num_train=train,
        num_heldout=heldout,
        num_benchmark=_MMAR if benchmark is None else benchmark,
        iterations=command.iterations,
        questions_per_iteration=sampling.questions_per_iteration,
        num_candidates=sampling.num_candidates,
        max_tokens=sampling.max_tokens,
        questions_per_shard=sampling.questions_per_shard,
        adaptive=sampling.adaptive,
        audio_dependence=filtering.audio_dependence or command.rewards_hearing,
        muted_control=command.gate.muted_control,
        top_k=filtering.top_k if filtering.strategy == "top_k" else None,
        **_fitting(command),
        rank=command.lora.rank,
        optimizer=command.optim.optimizer,
        checkpoint_every_steps=command.checkpoint_every_steps,
        votes=command.infer.votes,
    )


def _fitting(command: "PlanCommand") -> dict[str, Any]:
    """What the objective says of passes and steps."""
    grpo, optim, objective = command.grpo, command.optim, command.objective
    if objective == "rest":
        num_epochs, examples_per_step, num_scorings = optim.num_epochs, optim.examples_per_step, 0
    else:
        num_epochs, examples_per_step = grpo.num_epochs, grpo.candidates_per_step
        num_scorings = 2 if grpo.kl_weight else 1  # by the parent, and by the base
    return {
        "objective": objective,
        "num_scorings": num_scorings,
        "num_epochs": num_epochs,
        "examples_per_step": examples_per_step,
    }


def _count(split: str, given: int | None, uri: str, command: "PlanCommand") -> int | None:
    """How many questions a split has: the number given, or the file's rows that can be read."""
    from mmar_jobs.datasets.mmar import parse_questions  # noqa: PLC0415 - pydantic
    from mmar_jobs.records import Question  # noqa: PLC0415
    from mmar_jobs.store import read_uri  # noqa: PLC0415

    if given is not None or not uri:
        return given
    rows = parse_questions(
        read_uri(uri, endpoint_url=command.endpoint_url).splitlines(), Path(uri).name
    )
    count = sum(isinstance(row, Question) for row in rows)
    if not count:
        raise DataError(f"{uri} holds no {split} question: give a JSONL file of questions")
    return count


def _keep(made: "Plan", command: "PlanCommand") -> None:
    """Store the plan; SettingsError once the run has begun, for then it would be no plan."""
    from mmar_jobs.layout import estimate_key, run_key  # noqa: PLC0415
    from mmar_jobs.store import open_store  # noqa: PLC0415

    if not command.store or not command.run_id:
        raise SettingsError("--keep needs --store and --run-id: the run that the plan is for")
    store = open_store(command.store, endpoint_url=command.endpoint_url)
    key = estimate_key(command.run_id)
    if any(found != key for found in store.list(f"{run_key(command.run_id)}/")):
        raise SettingsError(
            f"run {command.run_id} in {store.uri} has begun: a plan is kept before that; leave "
            "--keep out, or choose another --run-id"
        )
    store.write(key, made.model_dump_json(indent=1).encode())
