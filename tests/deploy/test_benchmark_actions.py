"""Tests of .github/workflows/benchmark.yml: its scripts are run here, its rights are few.

actionlint and zizmor read it too (make lint-deploy).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmar_jobs.bench.archive import Archive
from mmar_jobs.bench.cells import parse_cell
from mmar_jobs.bench.command import bench_parser
from mmar_jobs.bench.result import write_measurements
from tests.bench.figures import speed
from tests.cluster.fake_api import FakeApi, serving, write_kubeconfig
from tests.deploy.actions import WORKFLOW, Runner, jobs, run_steps
from tests.deploy.manifests import ROOT, strings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUN = "bench-0123456789ab"
# What does not run here, and why.
ELSEWHERE = {
    ("turns", "set up"): "CI's own first step",
    ("cluster", "set up"): "the same",
    ("baseline", "set up"): "the same",
    ("image", "build"): "test_images builds one; here there is no Docker",
    ("cluster", "connect"): "needs a cluster at AWS",
}
CONTEXTS = {
    "matrix.bench": "filter --candidates 1600 --repeats 1",
    "github.event.pull_request.head.sha": COMMIT,
    "github.sha": "f" * 40,
    "github.event.number": "7",
    "github.token": "token-of-the-test",
    "github.repository": "owner/name",
    "github.server_url": "https://github.example",
    "github.run_id": "1",
    "needs.image.outputs.image": "registry.example/train@sha256:0",
    "vars.BENCHMARK_REPOSITORY": "registry.example/mmar-jobs/train",
}


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A checkout of two commits, set up with the environment that runs this test."""
    workspace, temp = tmp_path / "workspace", tmp_path / "temp"
    temp.mkdir()
    for name in ("mmar_jobs", "argo"):
        shutil.copytree(ROOT / name, workspace / name, ignore=shutil.ignore_patterns("__pycache__"))
    (workspace / ".gitignore").write_text(".venv\nresults\n__pycache__\n")
    git = ["git", "-C", str(workspace), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    for message in ("base", "change"):
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", message], check=True)
    (workspace / ".venv").symlink_to(sys.prefix)
    return Runner(workspace, temp, CONTEXTS)


def stub(runner: Runner, name: str, script: str) -> None:
    """A program of that name that is not here, first on the path."""
    folder = runner.temp / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)
    runner.environment["PATH"] = f"{folder}:{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_change_is_measured_in_turns_with_its_base(runner: Runner) -> None:
    """The whole way of a pull request; a program against itself is not worse by a half."""
    for name in ("check out the base", "measure"):
        done = runner.run("turns", name)
        assert 0 == done.returncode, done.stderr
    assert (runner.temp / "base" / "mmar_jobs" / "__main__.py").exists()
    results = runner.workspace / "results"
    assert {"new.jsonl", "baseline.jsonl"} == {path.name for path in results.iterdir()}
    command = [".venv/bin/mmar-jobs", "gate", "results/new.jsonl"]
    command += ["--baseline", "results/baseline.jsonl", "--min-change", "0.5"]
    assert 0 == subprocess.run(command, cwd=runner.workspace, check=False).returncode


@pytest.mark.parametrize(("value", "code", "word"), [(100.0, 0, "Not worse"), (80.0, 4, "Worse: ")])
def test_the_verdict_is_in_the_summary_and_fails_the_job_last(
    runner: Runner, value: float, code: int, word: str
) -> None:
    """The table is there in both cases, and a pipe does not swallow the exit code."""
    results = runner.workspace / "results"
    results.mkdir()
    for name, number in (("new", value), ("baseline", 100.0)):
        figures = [speed([number, number * 1.01] * 4)]
        write_measurements(results / f"{name}.jsonl", figures)
    done = runner.run("turns", "judge")
    assert code == done.returncode, done.stderr
    assert runner.file("step_summary").read_text().startswith(f"### {word}")
    assert {"gate.xml", "gate.json"} <= {path.name for path in results.iterdir()}


@pytest.fixture
def api(runner: Runner) -> Iterator[FakeApi]:
    """A cluster that the steps are connected to."""
    found = FakeApi()
    with serving(found) as cluster:
        write_kubeconfig(cluster, runner.temp / "kubeconfig")
        runner.environment["KUBECONFIG"] = str(runner.temp / "kubeconfig")
        yield found


def test_the_matrix_is_submitted_waited_for_and_shown(runner: Runner, api: FakeApi) -> None:
    """With the commit of the change and the image that was pushed, whatever the verdict is."""
    done = runner.run("cluster", "submit")
    assert 0 == done.returncode, done.stderr
    [made] = api.objects["workflows"].values()
    values = {each["name"]: each["value"] for each in made["spec"]["arguments"]["parameters"]}
    assert (RUN, COMMIT) == (values["run-id"], values["commit"])
    assert CONTEXTS["needs.image.outputs.image"] == values["image"]
    outputs = {"exitCode": "4", "parameters": [{"name": "table", "value": "### Worse\n"}]}
    node = {"type": "Pod", "phase": "Failed", "message": "exit code 4", "outputs": outputs}
    api.put("workflows", made | {"status": {"phase": "Failed", "nodes": {"n": node}}})
    assert 4 == runner.run("cluster", "wait").returncode
    assert 0 == runner.run("cluster", "summarize").returncode
    assert "### Worse\n" == runner.file("step_summary").read_text()


def test_the_pushed_image_is_named_by_its_digest(runner: Runner) -> None:
    """That, and not a tag, is what the cluster is told."""
    stub(runner, "aws", '[[ "$*" == "ecr get-login-password" ]] && echo password')
    digest = f"registry.example/mmar-jobs/train@sha256:{'1' * 64}"
    log = runner.temp / "docker.log"
    cases = f"inspect) echo {digest} ;; login) [[ $(cat) == password ]] ;; esac"
    stub(runner, "docker", f'echo "$*" >> {log}\ncase $1 in {cases}')
    done = runner.run("image", "push")
    assert 0 == done.returncode, done.stderr
    assert f"image={digest}\n" == runner.file("output").read_text()
    login, push, _ = log.read_text().splitlines()
    assert login.endswith("--password-stdin registry.example")
    assert push == f"push --quiet registry.example/mmar-jobs/train:{COMMIT}"


@pytest.mark.parametrize("table", ["### Worse\n", ""])
def test_the_change_gets_a_comment(runner: Runner, table: str) -> None:
    """The table with a link to the run; where there is none, that."""
    if table:
        (runner.workspace / "table").write_text(table)
    stub(runner, "gh", f'echo "$*" > {runner.temp}/gh.log; cat "${{@: -1}}" > {runner.temp}/body')
    done = runner.run("comment", "comment")
    assert 0 == done.returncode, done.stderr
    assert "pr comment 7 --body-file table\n" == (runner.temp / "gh.log").read_text()
    body = (runner.temp / "body").read_text()
    assert body.startswith(table or "The benchmark ended without a verdict.\n")
    assert body.endswith("[The run](https://github.example/owner/name/actions/runs/1)\n")


@pytest.mark.parametrize(("ref", "code", "number"), [("main", 0, 1), ("change", 2, 0)])
def test_main_moves_the_baseline(runner: Runner, ref: str, code: int, number: int) -> None:
    """And no other ref does."""
    store = str(runner.temp / "store")
    runner.contexts = CONTEXTS | {"vars.BENCHMARK_STORE": store}
    runner.environment |= {"GITHUB_SHA": COMMIT, "GITHUB_REF": f"refs/heads/{ref}"}
    results, log = runner.temp / "results", runner.temp / "log"
    write_measurements(results, [speed([1.0] * 6)])
    log.touch()
    archive = Archive.at(store)
    archive.keep(COMMIT, parse_cell("filter"), log=log, results=results)
    assert code == runner.run("baseline", "move the baseline").returncode
    assert number == archive.baseline().number


def test_every_script_is_run_here_or_cannot_be() -> None:
    """A new step needs a test, or a reason."""
    source = Path(__file__).read_text()
    ran = set(re.findall(r'run\("([\w-]+)", "([\w -]+)"\)', source))
    ran |= {("turns", name) for name in ("check out the base", "measure")}
    assert run_steps() == ran | ELSEWHERE.keys()


@pytest.mark.parametrize("bench", jobs()["turns"]["strategy"]["matrix"]["bench"])
def test_benches_of_pull_requests_exist(bench: str) -> None:
    """With the flags that they are given."""
    assert bench_parser().parse_args(shlex.split(bench)).repeats == 1


@pytest.mark.parametrize("name", jobs())
def test_a_job_has_few_rights_and_an_end(name: str) -> None:
    """Nothing is inherited, a checkout leaves no token behind, and no job waits for ever."""
    job = jobs()[name]
    assert job["timeout-minutes"] <= 330
    writes = {scope for scope, right in job["permissions"].items() if right == "write"}
    assert {"turns": set(), "comment": {"pull-requests"}}.get(name, {"id-token"}) == writes
    for step in job["steps"]:
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_what_may_use_the_cluster_runs_no_unmerged_code() -> None:
    """The change itself is built by a job that may only push, and measured in pods."""
    [checkout, *_] = jobs()["cluster"]["steps"]
    assert "${{ github.event.pull_request.base.sha || github.sha }}" == checkout["with"]["ref"]
    [role] = [
        step["with"]["role-to-assume"]
        for step in jobs()["image"]["steps"]
        if "role-to-assume" in step.get("with", {})
    ]
    assert "${{ vars.BENCHMARK_IMAGE_ROLE }}" == role


def test_forks_reach_no_cloud() -> None:
    """Every job with an identity waits for `image`, which forks do not start."""
    condition = jobs()["image"]["if"]
    same = "github.event.pull_request.head.repo.full_name == github.repository"
    assert same in condition
    assert "github.event.label.name == 'benchmark'" in condition
    assert ("image", "cluster") == (jobs()["cluster"]["needs"], jobs()["baseline"]["needs"])
    assert "github.event_name != 'pull_request'" == jobs()["baseline"]["if"]


def test_actions_are_pinned_and_scripts_hold_no_expressions() -> None:
    """By a commit with its version beside it; text of an event cannot become a command."""
    text = WORKFLOW.read_text()
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each) for each in used)
    scripts = [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]
    assert not any("${{" in script for script in strings(scripts))
