"""Runs steps of a GitHub workflow as its runner would: expressions, environment, shell, files.

It knows what the workflow here uses: contexts, `||`, `run` steps in bash. Not here: actions.
"""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.manifests import ROOT, Object, read_one

WORKFLOW = ROOT / ".github" / "workflows" / "benchmark.yml"
_EXPRESSION = re.compile(r"\$\{\{(.+?)\}\}")


def jobs() -> dict[str, Object]:
    """Jobs by name."""
    found: dict[str, Object] = read_one(WORKFLOW)["jobs"]
    return found


def run_steps() -> set[tuple[str, str]]:
    """Job and name of every step that is a script."""
    return {
        (job, step["name"])
        for job, body in jobs().items()
        for step in body["steps"]
        if "run" in step
    }


@dataclass
class Runner:
    """One machine that has checked the project out."""

    workspace: Path
    temp: Path
    contexts: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, job: str, name: str) -> subprocess.CompletedProcess[str]:
        """Run one step's script."""
        [step] = [step for step in jobs()[job]["steps"] if step.get("name") == name]
        given = jobs()[job].get("env", {}) | step.get("env", {})
        assert "bash" == read_one(WORKFLOW)["defaults"]["run"]["shell"]
        script = self.temp / "script.sh"
        script.write_text(step["run"])
        files = {
            f"GITHUB_{file.upper()}": str(self.file(file)) for file in ("step_summary", "output")
        }
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.workspace,
            env={
                **os.environ,
                "CI": "true",
                "RUNNER_TEMP": str(self.temp),
                # For the installation that `set up` makes of this checkout.
                "PYTHONPATH": str(self.workspace),
                **files,
                **self.environment,
                **{key: self.filled(value) for key, value in given.items()},
            },
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def file(self, name: str) -> Path:
        """One of the files that steps write for GitHub."""
        path = self.temp / name
        path.touch()
        return path

    def filled(self, value: Any) -> str:
        """A value with its expressions evaluated; an unknown context is an error here."""

        def evaluated(match: re.Match[str]) -> str:
            names = [name.strip() for name in match[1].split("||")]
            return next((found for name in names if (found := self.contexts[name])), "")

        return _EXPRESSION.sub(evaluated, str(value))
