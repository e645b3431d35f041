"""The local driver: the stages in order, in one process; evaluate's record decides, not this.

Not here: what a stage does.
"""

from typing import Any, TypeVar, cast

from mmar_jobs.artifact import Artifact
from mmar_jobs.errors import NothingToLearn, PromotionRefused, SettingsError
from mmar_jobs.lineage import BASE, best_model, read_verdict
from mmar_jobs.settings import (
    Command,
    EvaluateCommand,
    FilterCommand,
    GenerateCommand,
    InferCommand,
    IngestCommand,
    RunCommand,
    SubmitCommand,
    TrainCommand,
)
from mmar_jobs.stages import Edges, evaluate, generate, infer, ingest, submit, train
from mmar_jobs.stages import filter as filter_
from mmar_jobs.verdict import Decision

C = TypeVar("C", bound=Command)


def run(command: RunCommand, edges: Edges) -> Artifact:
    """All stages of a run; returns the submission.

    A later iteration with nothing left to learn ends the loop; the first one is an error.
    """
    if command.objective != "rest" and command.reward.rubric:
        raise SettingsError(
            "--reward.rubric needs a judge's scores of candidates that are not drawn yet: start "
            "the stages one by one, with `candidates` and `score --rubrics` before filter"
        )
    ingest.run(_stage(IngestCommand, command), edges)
    for iteration in range(1, command.iterations + 1):
        generate.run(_stage(GenerateCommand, command, iteration=iteration), edges)
        try:
            filter_.run(_stage(FilterCommand, command, iteration=iteration), edges)
        except NothingToLearn as error:
            if iteration == 1:
                raise
            edges.log.warning("loop_ended_early", reason=str(error))
            break
        train.run(_stage(TrainCommand, command, iteration=iteration), edges)
        settings = _stage(EvaluateCommand, command, iteration=iteration, fail_on_refusal=False)
        verdict = read_verdict(evaluate.run(settings, edges))
        if verdict.decision is Decision.STOP:
            break
    if command.fail_on_refusal and best_model(edges.store, command.run_id)[0].iteration == BASE:
        raise PromotionRefused(
            "no iteration was promoted (--fail-on-refusal): nothing was submitted; see the report"
        )
    infer.run(_stage(InferCommand, command), edges)
    return submit.run(_stage(SubmitCommand, command, output=None), edges)


def _stage(kind: type[C], command: RunCommand, **values: Any) -> C:
    """One stage's settings out of the run's, already validated there."""
    shared = {
        name: getattr(command, name)
        for name in kind.model_fields
        if name in RunCommand.model_fields and name not in values
    }
    return cast("C", kind.model_construct(**shared, **values))
