"""Tests of what a module brings along: stages that only read and write start without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIGHT = (
    *("mmar_jobs.base_model", "mmar_jobs.lineage", "mmar_jobs.questions", "mmar_jobs.settings"),
    *("mmar_jobs.stages.ingest", "mmar_jobs.stages.generate", "mmar_jobs.stages.filter"),
    *("mmar_jobs.stages.evaluate", "mmar_jobs.stages.infer", "mmar_jobs.stages.submit"),
    *("mmar_jobs.report", "mmar_jobs.summary", "mmar_jobs.check_command"),
)
REPORTS = ("mmar_jobs.report", "mmar_jobs.summary")


def imported_by(module: str) -> set[str]:
    """The modules that a fresh interpreter holds after importing one."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_what_computes_nothing_imports_no_torch(module: str) -> None:
    """A pod that ingests, filters or reports needs neither the wheels nor their seconds."""
    assert not imported_by(module) & {"torch", "transformers", "peft", "safetensors"}


@pytest.mark.parametrize("module", REPORTS)
def test_reports_import_no_stage(module: str) -> None:
    """What a run wrote is read without the code that wrote it."""
    found = imported_by(module)
    assert not [name for name in found if name.startswith("mmar_jobs.stages")]
