"""Tests of the word after `data`: what is offered, what is refused, what is imported."""

import subprocess
import sys

import pytest

from mmar_jobs.datasets.command import data
from mmar_jobs.errors import ExitCode, SettingsError
from tests.fakes import Fails


@pytest.mark.parametrize("word", ["fetch", "build"])
def test_help_names_every_flag_with_its_default(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each flag of a word has a line of help; those with a default say it."""
    with pytest.raises(SystemExit) as ended:
        data([word, "--help"])
    assert 0 == ended.value.code
    said = capsys.readouterr().out
    flags = [line for line in said.partition("options:")[2].splitlines() if "  --" in line]
    assert len(flags) > 8
    num_defaults = " ".join(said.split()).count("(default: ")
    assert num_defaults >= len(flags) - 1  # --source repeats and is required


def test_a_wrong_word_is_one_line(fails: Fails) -> None:
    """So is none."""
    assert "invalid choice: 'fetsh'" in fails(ExitCode.SETTINGS, "data", "fetsh")
    assert "required: WORD" in fails(ExitCode.SETTINGS, "data")
    with pytest.raises(SettingsError, match="--nonsense"):
        data(["build", "x", "--source", "y", "--nonsense"])


def test_help_imports_nothing_heavy() -> None:
    """The list of words needs neither torch nor the libraries of the extra `data`."""
    code = (
        "import sys; from mmar_jobs.datasets.command import data\n"
        "try: data(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'httpx', 'datasets', 'yt_dlp', 'huggingface_hub', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    assert "doctor" in done.stdout
