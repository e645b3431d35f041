"""The run that faults are planted into is healthy: what stops the others is their fault alone."""

from mmar_jobs.errors import ExitCode
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import STAGES, Run


def test_healthy_run_reaches_its_submission(run_after: HealthyRun) -> None:
    """All stages pass, the child is promoted, and what is finished is skipped on a second call."""
    run = run_after("submit")
    assert run.path("submission", "iter-1", "submission.zip").is_file()
    assert "promote" == run.artifact("iter-1/verdict").manifest.metrics["decision"]
    opener = run.opener()
    for stage in STAGES:
        run.stage(stage, opener=opener)
    assert [] == opener.engines


def test_healthy_stages_pass_on_the_command_line(run_after: HealthyRun) -> None:
    """The real engine, the real trainer and the real store accept the same run."""
    run: Run = run_after("generate")
    for stage in ("generate", "filter"):
        assert ExitCode.DONE == run.cli(stage).code
