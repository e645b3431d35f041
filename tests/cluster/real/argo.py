"""Runs the workflows of argo/ step by step, as Argo's controller would, with pods of the test.

It knows what these workflows use: groups of steps, references to templates, parameters, `when`,
outputs, retries by exit code, an exit handler. Not here: fan-out, artifacts, mutexes.
"""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.deploy.workflows import Key, Template, arguments, declared, templates, workflow

# Arguments of a pod's container to its exit code and its files under /tmp/outputs.
RunPod = Callable[[Sequence[str]], tuple[int, dict[str, str]]]

_REFERENCE = re.compile(r"\{\{=?(.+?)\}\}")
_NEXT = re.compile(r"asInt\((.+)\) \+ 1")
_COMPARISON = re.compile(r"(\S+) (!=|<) (\S+)")
_OPERATORS: Final = {"!=": operator.ne, "<": operator.lt}
_TRY_AGAIN: Final = 75


class StepFailed(Exception):
    """A pod ended with a code that its retry strategy does not repeat."""


@dataclass
class Workflow:
    """One submitted workflow."""

    name: str
    given: dict[str, str]
    run_pod: RunPod
    ran: list[list[str]] = field(default_factory=list)  # arguments of every pod, in order

    def __post_init__(self) -> None:
        self._spec: dict[str, Any] = workflow(self.name)["spec"]
        defaults = {k: v.get("value") for k, v in declared(workflow(self.name)).items()}
        self._parameters = defaults | self.given

    def run(self) -> None:
        """Its entry point and then, whatever happened, its exit handler."""
        try:
            self.run_without_exit()
        finally:
            self._call((self.name, self._spec["onExit"]), {})

    def run_without_exit(self) -> None:
        """Its entry point alone: all there is of a workflow that is terminated or deleted."""
        self._call((self.name, self._spec["entrypoint"]), {})

    def _call(self, key: Key, given: dict[str, str]) -> dict[str, str]:
        """Run a template; its output parameters."""
        template = templates()[key]
        inputs = {name: item.get("value") for name, item in template.inputs.items()} | given
        names = {f"inputs.parameters.{name}": value for name, value in inputs.items()}
        names |= {f"workflow.parameters.{k}": v for k, v in self._parameters.items()}
        if template.is_leaf:
            return self._run_leaf(template, names)
        for step in (step for group in template.steps for step in group):
            if "when" in step and not _holds(_filled(step["when"], names)):
                continue
            passed = {name: _filled(value, names) for name, value in arguments(step).items()}
            try:
                outputs = self._call(template.target(step), passed)
            except StepFailed:
                if not step.get("continueOn", {}).get("failed"):
                    raise
                continue
            prefix = f"steps.{step['name']}.outputs.parameters"
            names |= {f"{prefix}.{name}": value for name, value in outputs.items()}
        return {
            name: _filled(item["valueFrom"]["parameter"], names)
            for name, item in template.outputs.items()
            if item["valueFrom"]["parameter"][2:-2] in names
        }

    def _run_leaf(self, template: Template, names: dict[str, str]) -> dict[str, str]:
        container = template.body["container"]
        command = [_filled(word, names) for word in (*container["command"], *container["args"])]
        self.ran.append(command)
        for _ in range(1 + int(template.body["retryStrategy"]["limit"])):
            code, files = self.run_pod(command)
            if code != _TRY_AGAIN:
                break
        if code:
            raise StepFailed(f"exit code {code}: {' '.join(command)}")
        return {
            name: files.get(
                item["valueFrom"]["path"].rpartition("/")[2], item["valueFrom"]["default"]
            )
            for name, item in template.outputs.items()
        }


def _filled(text: str, names: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        successor = _NEXT.fullmatch(match[1])
        return str(int(names[successor[1]]) + 1) if successor else names[match[1]]

    return _REFERENCE.sub(value, text)


def _holds(condition: str) -> bool:
    """Comparisons of literals, all of which must hold."""
    found = [_COMPARISON.fullmatch(each.strip()) for each in condition.split("&&")]
    assert all(found), condition
    return all(
        _OPERATORS[each[2]](ast.literal_eval(each[1]), ast.literal_eval(each[3]))
        for each in found
        if each is not None
    )
