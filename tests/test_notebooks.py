"""Tests of the notebooks: stored without outputs, and they run on a finished run."""

import os
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mmar_jobs import loop
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import FakeOpener
from tests.loop_run import RUN_ID, Scripted, command_of, edges_for

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def store(world: TinyWorld, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a finished run of one iteration; read only."""
    folder = tmp_path_factory.mktemp("notebooks") / "store"
    command = command_of(world, model_folder, folder)
    loop.run(command, edges_for(command, FakeOpener(Scripted(world))))
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    """Outputs would hold somebody's paths and audio, and make every change unreadable."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert 1 == sum("parameters" in cell.metadata.get("tags", []) for cell in cells)


@pytest.fixture
def quiet_kernel() -> Iterator[None]:
    """One thread in the kernel, and no frozen-modules warning from its debugger."""
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    yield
    os.environ.clear()
    os.environ |= before


@pytest.mark.slow
def test_inspect_run_executes(store: Path, model_folder: Path, quiet_kernel: None) -> None:
    """Every cell runs on a run from a folder, and the page is shown at the end."""
    notebook = nbformat.read(FOLDER / "inspect_run.ipynb", as_version=4)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = "\n".join(
        [
            f"STORE = {str(store)!r}",
            f"RUN_ID = {RUN_ID!r}",
            f"MODEL = {str(model_folder)!r}",
            "QUESTION_ID = ''",
            "MAX_TOKENS = 8",
            "THREADS = 1",
        ]
    )
    done = NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(FOLDER))
    outputs = [output for c in done.cells if c.cell_type == "code" for output in c.outputs]
    shown = [output.get("data", {}) for output in outputs]
    said = "".join(data.get("text/plain", "") for data in shown)
    assert "audio tokens, expected" in said
    assert f"{RUN_ID}-i1-" in said
    assert any("What it is taught" in data.get("text/html", "") for data in shown)
