"""The generation bench: its figures, and what the client costs a candidate of 1,000 tokens."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmar_jobs.cli import run_command
from mmar_jobs.errors import ExitCode
from mmar_jobs.tiny import tiny_model_folder
from tests.fakes import Fails

FIGURES = {
    "generate/output_tokens_per_s": "tokens/s",
    "generate/seconds": "s",
    "generate/tail_seconds": "s",
    "generate/client_cpu_s_per_1000_candidates": "s",
    "generate/client_peak_memory_gib": "GiB",
}


@pytest.fixture(scope="module")
def canned() -> Iterator[str]:
    """The address of a server that costs the client's process nothing."""
    command = [sys.executable, "-m", "tests.engine.canned", str(tiny_model_folder())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.communicate(timeout=60)


def bench(servers: str, *flags: str) -> tuple[str, ...]:
    """Arguments of the bench."""
    return ("generate", "--servers", servers, "--model", str(tiny_model_folder()), *flags)


def test_every_figure_is_told(canned: str, tmp_path: Path) -> None:
    """Each once, in its unit, with the case; and every draw of every question was answered."""
    path = tmp_path / "out.json"
    flags = ("--questions", "6", "--warm-up", "2", "--draws", "4", "--max-tokens", "20")
    assert ExitCode.DONE == run_command(
        "bench", bench(canned, *flags, "--clip-s", "1", "--json", str(path))
    )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert FIGURES == {line["name"]: line["unit"] for line in lines}
    assert all(line["value"] > 0 for line in lines)
    assert (1, 6, 4) == tuple(
        lines[0]["case"][name] for name in ("servers", "num_questions", "num_draws")
    )
    assert (24, 24 * 20) == tuple(
        lines[0]["detail"][name] for name in ("num_candidates", "num_tokens")
    )


def test_a_server_of_another_model_is_not_measured(
    canned: str, fails: Fails, other_model_folder: Path
) -> None:
    """The figures would be of something else."""
    wrong = ("generate", "--servers", canned, "--model", str(other_model_folder))
    assert "nothing was asked" in fails(ExitCode.DATA, "bench", *wrong)


@pytest.mark.parametrize("servers", ["localhost:8000", "http://"])
def test_addresses_are_checked(servers: str, fails: Fails) -> None:
    """What is no address is a setting, and nothing is measured in its stead."""
    assert "give addresses like" in fails(ExitCode.SETTINGS, "bench", *bench(servers))


@pytest.mark.slow
@pytest.mark.alone
def test_the_client_is_cheap(canned: str) -> None:
    """About 2 s of CPU for 1,000 candidates of 1,000 tokens, and less than 1 GB.

    A machine's day changes the same work by a third; what is kept too long costs more than that.
    """
    flags = ("--questions", "512", "--max-tokens", "1000", "--logprobs", "--json", "-")
    command = [sys.executable, "-m", "mmar_jobs", "bench", *bench(canned, *flags)]
    found: dict[str, float] = {}
    for _ in range(4):  # the same work took 1.5 to 2.2 s on one machine, by what ran beside it
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = map(json.loads, done.stdout.splitlines())
        found = {line["name"]: line["value"] for line in lines}
        print(found)  # noqa: T201 - what was measured, for whoever reads the log
        if found["generate/client_cpu_s_per_1000_candidates"] < 2.0:
            break
    assert found["generate/client_cpu_s_per_1000_candidates"] < 2.6
    assert found["generate/client_peak_memory_gib"] < 1e9 / (1 << 30)
