"""What many runs at once ask of a cluster, computed: `python -m tests.deploy.scale`.

Steps are counted by running argo/rest-workflow.yaml with pods that end at once, GPU hours and S3's
requests by `mmar-jobs plan`, calls of the API server from the client's own pauses. Not here: what
Argo's controller and the kubelets ask on their own.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from hera.workflows.models import Inputs, NodeStatus, Outputs, Parameter, TemplateRef

from mmar_jobs.cluster import api, scale
from mmar_jobs.planning.assumptions import with_changes
from mmar_jobs.planning.command import job_of
from mmar_jobs.planning.estimate import Plan, estimate
from mmar_jobs.planning.prices import read_prices
from mmar_jobs.planning.settings import PlanCommand
from mmar_jobs.planning.shape import REFERENCE
from mmar_jobs.settings import parse
from tests.cluster.real.argo import Workflow
from tests.deploy.manifests import jobs
from tests.deploy.workflows import Key, reached, templates, workflow

RUNS, SERVERS, ITERATIONS = 100, 10, 3
SIZES = (10_000, 1_000_000)  # questions of a run: a million in all, a million each
# A pod of charts/vllm by default: two servers of two GPUs.
POD = ("servers=2", "gpus_per_server=2")
STATUS_LIMIT = 1_000_000  # bytes: above it Argo compresses; etcd takes 1.5 MiB
_OUTCOMES = {"evaluate": {"decision": "PROMOTE"}, "filter": {"learned": "true"}}


@dataclass
class Traced(Workflow):
    """A workflow that notes the nodes which Argo's controller would write into its status."""

    nodes: list[NodeStatus] = field(default_factory=list)
    tries: int = 1  # of each pod

    def _call(self, key: Key, given: dict[str, str]) -> dict[str, str]:
        template = templates()[key]
        outputs = super()._call(key, given)
        kinds = ["Retry", *["Pod"] * self.tries] if template.is_leaf else ["Steps"]
        for kind in (*kinds, *["StepGroup"] * len(template.steps)):
            self.nodes.append(_node(kind, key, given, outputs, len(self.nodes)))
        return outputs


def _node(
    kind: str, key: Key, given: dict[str, str], outputs: dict[str, str], number: int
) -> NodeStatus:
    """One node as the controller writes it; times and names of usual lengths."""
    name = f"mmar-jobs-rest-a-run-of-usual-name-1[{number}].iteration(0)[0].learn(0)[0].{key[1]}"
    is_group = kind == "StepGroup"
    return NodeStatus(
        id=f"mmar-jobs-rest-a-run-of-usual-name-1-{number:010d}",
        name=name,
        display_name=f"[{number}]" if is_group else key[1],
        type=kind,
        template_ref=None if is_group else TemplateRef(name=key[0], template=key[1]),
        template_scope=f"namespaced/{key[0]}",
        boundary_id=f"mmar-jobs-rest-a-run-of-usual-name-1-{number:010d}",
        children=[f"mmar-jobs-rest-a-run-of-usual-name-1-{number + 1:010d}"],
        phase="Succeeded",
        started_at="2026-11-28T12:00:00Z",
        finished_at="2026-11-28T13:00:00Z",
        progress="31250/31250",
        resources_duration={"cpu": 180000, "memory": 1800000},
        host_node_name="gpu-node-0000000000000000" if kind == "Pod" else None,
        inputs=None if is_group else Inputs(parameters=_parameters(given)),
        outputs=Outputs(exit_code="0", parameters=_parameters(outputs)) if kind == "Pod" else None,
    )


def _parameters(values: dict[str, str]) -> list[Parameter]:
    return [Parameter(name=name, value=value) for name, value in values.items()]


def trace(tries: int = 1) -> Traced:
    """The longest run: each child promoted, each pod tried so often."""
    given = {
        "run-id": "a-run-of-usual-name",
        "questions": "s3://bucket/some/folder/train.jsonl",
        "benchmark": "s3://bucket/some/folder/MMAR-meta.jsonl",
        "iterations": str(ITERATIONS),
    }
    found = Traced("rest-workflow", given, lambda command: (0, _outcome(command)), tries=tries)
    found.run()
    return found


def _outcome(command: Sequence[str]) -> dict[str, str]:
    return _OUTCOMES.get(command[3], {})


def status_bytes(traced: Traced) -> int:
    """Nodes, and the copies of templates that Argo keeps beside them."""
    nodes = sum(
        len(node.model_dump_json(by_alias=True, exclude_none=True)) for node in traced.nodes
    )
    spec = workflow("rest-workflow")["spec"]
    used = {
        template.key: template.body
        for entry in (spec["entrypoint"], spec["onExit"])
        for template in reached(("rest-workflow", entry))
    }
    return nodes + sum(len(json.dumps(body)) for body in used.values()) + len(json.dumps(spec))


@cache
def plan(num_questions: int) -> Plan:
    """One run with the defaults, a hundredth of the questions held out but 1,000 at most."""
    heldout = min(1_000, num_questions // 100)
    flags = ["--num-train", str(num_questions - heldout), "--num-heldout", str(heldout)]
    command: PlanCommand = parse(PlanCommand, flags, prog="plan")
    return estimate(job_of(command), REFERENCE, with_changes(POD), read_prices(command.prices))


def calls_per_s() -> tuple[float, float]:
    """Of the API server by one run: while its server starts, and while a stage's Job runs."""
    starting = 3 / scale._LOOK_S  # the StatefulSet, its pods, the warnings
    running = 2 / api._WATCH_S  # a watch of the Job, one of its pods
    return starting, running


def longest_generate_s(num_questions: int) -> float:
    """Of the stage that takes longest, seconds."""
    return max(stage.seconds for stage in plan(num_questions).stages if stage.stage == "generate")


def deadline_s() -> float:
    """After which Kubernetes ends a generate Job."""
    return float(jobs()["generate"]["spec"]["activeDeadlineSeconds"])


def rows(num_questions: int) -> list[tuple[str, str]]:
    """The table for runs of so many questions each."""
    found, worst, made = trace(), trace(tries=6), plan(num_questions)
    starting, running = calls_per_s()
    requests = made.num_writes + made.num_reads
    waves = math.ceil(RUNS / SERVERS)
    return [
        ("nodes of one workflow, all well", f"{len(found.nodes)}"),
        ("its status, all well", f"{status_bytes(found) / 1e3:.0f} kB"),
        ("its status, each pod tried 6 times", f"{status_bytes(worst) / 1e3:.0f} kB"),
        ("generate, one turn", f"{longest_generate_s(num_questions) / 3600:,.1f} h"),
        ("one run", f"{made.wall_s / 3600:,.1f} h, {made.gpu_hours:,.0f} GPU-hours"),
        (f"all {RUNS}, {SERVERS} at a time", f"{waves * made.wall_s / 3600:,.0f} h"),
        ("S3 requests of one run", f"{requests:,}"),
        (f"S3 requests, {SERVERS} runs", f"{SERVERS * requests / made.wall_s:,.0f}/s on average"),
        ("API calls, all servers starting", f"{SERVERS * starting:.0f}/s"),
        ("API calls, all stages running", f"{SERVERS * running:.2f}/s"),
        (f"price of all {RUNS}", f"{RUNS * made.price['total']:,.0f} {made.prices.currency}"),
        ("stored by one run", f"{made.storage_bytes / 1e9:,.0f} GB"),
    ]


def table() -> str:
    """Both sizes beside each other, as Markdown."""
    per_run: dict[str, list[str]] = {}
    for size in SIZES:
        for name, value in rows(size):
            per_run.setdefault(name, []).append(value)
    lines = [["", *(f"{size:,} questions a run" for size in SIZES)], ["---"] * (1 + len(SIZES))]
    lines += [[name, *values] for name, values in per_run.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(table())
