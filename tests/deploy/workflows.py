"""A reading of the Argo workflows: templates by reference, what calls what, and in which order.

Not here: what must hold for them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.deploy.manifests import ARGO, Object, read_one, strings

Key = tuple[str, str]
WORKFLOWS = ("rest-workflow", "infer-workflow")
_REFERENCE = re.compile(r"\b(inputs|workflow)\.parameters(?:\.([\w-]+)|\['([\w-]+)'\])")
_OUTPUT = re.compile(r"\bsteps\.([\w-]+)\.outputs\.parameters\.([\w-]+)")


@dataclass(frozen=True)
class Template:
    """One template; `home` is the object that defines it."""

    home: str
    body: Object

    @property
    def key(self) -> Key:
        """Its name and its home's."""
        return self.home, self.body["name"]

    @property
    def is_leaf(self) -> bool:
        """Whether it is a pod."""
        return "container" in self.body

    @property
    def steps(self) -> list[list[Object]]:
        """Groups of steps, each after the one before."""
        return self.body.get("steps", [])

    @property
    def inputs(self) -> dict[str, Object]:
        """Declared input parameters."""
        return {item["name"]: item for item in self.body.get("inputs", {}).get("parameters", [])}

    @property
    def outputs(self) -> dict[str, Object]:
        """Declared output parameters."""
        return {item["name"]: item for item in self.body.get("outputs", {}).get("parameters", [])}

    def target(self, step: Object) -> Key:
        """What a step of this template calls."""
        if "templateRef" in step:
            return step["templateRef"]["name"], step["templateRef"]["template"]
        return self.home, step["template"]


def workflow(name: str) -> Object:
    """A workflow that a user submits."""
    return read_one(ARGO / f"{name}.yaml")


@cache
def library() -> dict[str, Object]:
    """WorkflowTemplates by name."""
    found = [read_one(path) for path in sorted((ARGO / "templates").glob("*.yaml"))]
    return {item["metadata"]["name"]: item for item in found}


@cache
def templates() -> dict[Key, Template]:
    """Every template of workflows and WorkflowTemplates."""
    homes = library() | {name: workflow(name) for name in WORKFLOWS}
    found = [Template(home, body) for home, item in homes.items() for body in _bodies(item)]
    return {template.key: template for template in found}


def _bodies(item: Object) -> list[Object]:
    bodies: list[Object] = item["spec"]["templates"]
    return bodies


def declared(item: Object) -> dict[str, Object]:
    """A workflow's own parameters."""
    return {found["name"]: found for found in item["spec"]["arguments"]["parameters"]}


def arguments(step: Object) -> dict[str, Any]:
    """What a step passes."""
    return {item["name"]: item["value"] for item in step.get("arguments", {}).get("parameters", [])}


def references(value: Any, kind: str) -> set[str]:
    """Parameters of one kind (inputs, workflow) that any string in `value` refers to."""
    found = (match for text in strings(value) for match in _REFERENCE.finditer(text))
    return {match[2] or match[3] for match in found if match[1] == kind}


def output_references(value: Any) -> set[tuple[str, str]]:
    """Outputs of steps (step, parameter) that any string in `value` refers to."""
    return {(m[1], m[2]) for text in strings(value) for m in _OUTPUT.finditer(text)}


def reached(start: Key) -> Iterator[Template]:
    """`start` and everything that it calls, each once."""
    known, waiting = {start}, [start]
    while waiting:
        template = templates()[waiting.pop()]
        yield template
        calls = {template.target(step) for group in template.steps for step in group}
        waiting += calls - known
        known |= calls


def stage_order(start: Key, given: dict[str, Any] | None = None) -> list[str]:
    """Stages in the order in which `start` runs them, a loop's second turn left out."""
    return list(_walk(start, given or {}, ()))


def _walk(key: Key, given: dict[str, Any], path: tuple[Key, ...]) -> Iterator[str]:
    template = templates()[key]
    if key in path:
        return
    if template.is_leaf:
        command = template.body["container"]["command"]
        if command[-1] == "run-job":
            stage = template.body["container"]["args"][0]
            yield given["stage"] if "inputs.parameters.stage" in stage else stage
        return
    for step in (step for group in template.steps for step in group):
        passed = {
            name: given["stage"] if value == "{{inputs.parameters.stage}}" else value
            for name, value in arguments(step).items()
        }
        yield from _walk(template.target(step), passed, (*path, key))
