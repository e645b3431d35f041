"""Tests of the workflows: references, order, retries, and what Argo itself would only find late."""

import ast
import inspect
import re

import pytest
import yaml
from hera.workflows import models

from mmar_jobs import loop
from mmar_jobs.errors import ExitCode
from mmar_jobs.verdict import Decision
from tests.deploy.manifests import ARGO, jobs
from tests.deploy.workflows import (
    WORKFLOWS,
    Key,
    Template,
    arguments,
    declared,
    library,
    output_references,
    reached,
    references,
    stage_order,
    templates,
    workflow,
)
from tests.goldens import FLAGS

ALL = sorted(templates().values(), key=lambda template: template.key)
LEAVES = [template for template in ALL if template.is_leaf]
FILES = sorted([*ARGO.glob("*.yaml"), *(ARGO / "templates").glob("*.yaml")])


def _name(template: Template) -> str:
    return "/".join(template.key)


def _entries(name: str) -> list[Key]:
    spec = workflow(name)["spec"]
    return [(name, spec["entrypoint"]), (name, spec["onExit"])]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_is_lost_in_argos_own_model(path) -> None:
    """Hera's models, made from Argo's API, keep every key: a misspelt one would vanish."""
    source = yaml.safe_load(path.read_text())
    kind = getattr(models, source["kind"])
    loaded = kind.model_validate(source)
    assert source == loaded.model_dump(mode="json", by_alias=True, exclude_none=True)


@pytest.mark.parametrize("template", ALL, ids=_name)
def test_every_step_finds_its_template_and_passes_what_it_takes(template: Template) -> None:
    """No argument is missing, none is unknown."""
    for step in (step for group in template.steps for step in group):
        target = templates()[template.target(step)]
        needed = {name for name, item in target.inputs.items() if "value" not in item}
        passed = arguments(step).keys()
        assert needed <= passed <= target.inputs.keys(), step["name"]


@pytest.mark.parametrize("template", ALL, ids=_name)
def test_every_input_is_declared_and_used(template: Template) -> None:
    """What a template refers to it declares, and the other way round."""
    assert template.inputs.keys() == references(template.body, "inputs")


@pytest.mark.parametrize("template", ALL, ids=_name)
def test_outputs_come_from_earlier_unconditional_steps(template: Template) -> None:
    """An output of a skipped or later step would stay text with braces."""
    earlier: dict[str, Template] = {}
    for group in template.steps:
        for step in group:
            for name, output in output_references(step):
                assert output in earlier[name].outputs
        for step in group:
            if "when" not in step:
                earlier[step["name"]] = templates()[template.target(step)]
    for name, output in output_references(template.body.get("outputs", {})):
        assert output in earlier[name].outputs


@pytest.mark.parametrize("leaf", LEAVES, ids=_name)
def test_outputs_of_leaves_have_defaults(leaf: Template) -> None:
    """A stage that says nothing of a thing must not fail the workflow."""
    assert all("default" in output["valueFrom"] for output in leaf.outputs.values())


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_declares_every_parameter_that_is_reached(name: str) -> None:
    """Templates elsewhere see the submitted workflow's parameters, not those of their own file."""
    found = {template.key: template for start in _entries(name) for template in reached(start)}
    used = set().union(*(references(item.body, "workflow") for item in found.values()))
    assert declared(workflow(name)).keys() == used | references(
        workflow(name)["spec"]["synchronization"], "workflow"
    )


@pytest.mark.parametrize("name", sorted(library()))
def test_a_template_declares_the_parameters_it_needs(name: str) -> None:
    """So that it can also be submitted alone."""
    spec = library()[name]["spec"]
    starts = [(name, body["name"]) for body in spec["templates"]]
    found = {template.key: template for start in starts for template in reached(start)}
    used = set().union(*(references(template.body, "workflow") for template in found.values()))
    known = set(declared(library()[name]))
    entry = next(body for body in spec["templates"] if body["name"] == spec["entrypoint"])
    inputs = {item["name"] for item in entry.get("inputs", {}).get("parameters", [])}
    assert used <= known <= used | inputs


def test_the_only_cycle_is_the_bounded_loop() -> None:
    """One step goes back, and it stops at a number of turns whatever the verdicts say."""
    back = [
        (template.key, step)
        for template in ALL
        for group in template.steps
        for step in group
        if template.key in {found.key for found in reached(template.target(step))}
    ]
    keys = {key for key, _ in back}
    assert {("mmar-jobs-iteration", "iteration"), ("mmar-jobs-iteration", "learn")} == keys
    [closing] = [step for key, step in back if key[1] == "learn"]
    turns = re.search(r"\{\{inputs\.parameters\.iteration\}\} < (\d+)", closing["when"])
    assert turns is not None
    assert 100 > 4 * int(turns[1])  # Argo's limit on depth; a turn is four levels at most
    assert "{{inputs.parameters.iteration}} < {{workflow.parameters.iterations}}" in closing["when"]
    assert {"iteration": "{{=asInt(inputs.parameters.iteration) + 1}}"} == arguments(closing)


def test_the_order_is_the_local_loops() -> None:
    """The cluster runs the same stages in the same order as `mmar-jobs run`."""
    tree = ast.parse(inspect.getsource(loop.run))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    runs = [
        call
        for call in calls
        if isinstance(call, ast.Attribute)
        and call.attr == "run"
        and isinstance(call.value, ast.Name)
    ]
    runs.sort(key=lambda call: (call.lineno, call.col_offset))
    local = [call.value.id.rstrip("_") for call in runs if isinstance(call.value, ast.Name)]
    assert local == stage_order(_entries("rest-workflow")[0])


def test_the_loop_ends_where_the_verdict_or_the_filter_says() -> None:
    """The words that are compared are those that the stages write."""
    learn = templates()["mmar-jobs-iteration", "learn"]
    [last] = learn.steps[-1]
    assert f'outputs.parameters.decision}}}}" != "{Decision.STOP.name}"' in last["when"]
    iteration = templates()["mmar-jobs-iteration", "iteration"]
    [last] = iteration.steps[-1]
    assert '"{{steps.filter.outputs.parameters.learned}}" != "false"' == last["when"]


@pytest.mark.parametrize("template", ALL, ids=_name)
def test_retries_and_deadlines_are_on_leaves_and_on_all_of_them(template: Template) -> None:
    """Above leaves a retry repeats finished children and cannot see exit codes."""
    for key in ("retryStrategy", "activeDeadlineSeconds"):
        assert template.is_leaf == (key in template.body)
    assert "synchronization" not in template.body


@pytest.mark.parametrize("leaf", LEAVES, ids=_name)
def test_only_try_again_and_lost_pods_are_retried(leaf: Template) -> None:
    """The number is the contract's; the number of tries is bounded."""
    strategy = leaf.body["retryStrategy"]
    expected = f'lastRetry.status == "Error" || asInt(lastRetry.exitCode) == {ExitCode.TRY_AGAIN:d}'
    assert expected == strategy["expression"]
    assert 10 >= int(strategy["limit"])
    # maxDuration counts from the first try: it would forbid a retry after a day of work.
    assert {"duration", "factor", "cap"} == strategy["backoff"].keys()


def _calls() -> list[tuple[Template, str]]:
    """Every leaf that runs a stage, with each stage that it is called for."""
    found = []
    for template in ALL:
        for step in (step for group in template.steps for step in group):
            passed = arguments(step).get("stage")
            if passed and "{{" not in passed:
                leaves = (item for item in reached(template.target(step)) if item.is_leaf)
                found += [(leaf, passed) for leaf in leaves if "stage" in leaf.inputs]
    return [*found, (templates()["mmar-jobs-stage", "ingest"], "ingest")]


@pytest.mark.parametrize(("leaf", "stage"), _calls(), ids=lambda item: getattr(item, "home", item))
def test_flags_of_stages_exist(leaf: Template, stage: str) -> None:
    """What a workflow gives a stage is a flag of that stage's command."""
    args = leaf.body["container"]["args"]
    given = args[args.index("--") + 1 :] if "--" in args else []
    known = {line.split()[1] for line in FLAGS.read_text().splitlines() if f"{stage} --" in line}
    assert {flag.partition("=")[0] for flag in given} <= known
    assert stage in jobs()


def test_leases_and_deadlines_cover_the_jobs() -> None:
    """No server is taken from a stage that may still run, and no pod is ended before its Job."""
    limits = {stage: job["spec"]["activeDeadlineSeconds"] for stage, job in jobs().items()}
    leaf = templates()["mmar-jobs-stage", "asking"]
    assert max(limits.values()) < leaf.body["activeDeadlineSeconds"]
    served = [
        arguments(step)
        for template in ALL
        for group in template.steps
        for step in group
        if template.target(step)[1] == "serving"
    ]
    assert {"generate", "evaluate", "infer"} == {given["stage"] for given in served}
    for given in served:
        assert limits[given["stage"]] <= int(given["lease-s"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_cleans_up_whatever_happens(name: str) -> None:
    """The exit handler takes the server down, and a failing report does not stop that."""
    exit_handler = templates()[_entries(name)[1]]
    [group] = exit_handler.steps
    assert {"down", "report"} == {step["name"] for step in group}
    assert all({"failed": True, "error": True} == step["continueOn"] for step in group)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_runs_queue_for_their_server(name: str) -> None:
    """Two workflows on one server or one run never overlap."""
    locks = workflow(name)["spec"]["synchronization"]["mutexes"]
    assert [
        "mmar-jobs-server-{{workflow.parameters.server}}",
        "mmar-jobs-run-{{workflow.parameters.run-id}}",
    ] == [lock["name"] for lock in locks]
