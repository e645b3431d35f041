"""Folders of data sets that several tests build from."""

from pathlib import Path

import pytest

from tests.datasets.build_cases import write_counting, write_music, write_tacos


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each data set; read only."""
    base = tmp_path_factory.mktemp("sources")
    return {
        "countingqa": write_counting(base / "c", 60),
        "musicbench": write_music(base / "m", 40),
        "tacos": write_tacos(base / "t", 40),
    }
