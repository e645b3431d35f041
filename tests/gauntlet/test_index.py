"""The index of the gauntlet: every fault has a chapter, every chapter a lesson and a test."""

import ast
from pathlib import Path

import pytest

from tests.gauntlet import FAULTS

CHAPTERS = {int(path.name[11:13]): path for path in Path(__file__).parent.glob("test_fault_*.py")}
# What the list of nineteen adds in its last sentence, and where it is planted.
ALSO = {
    "test_13_a_clip_that_starts_later_is_not_read_from_zero",
    "test_04_a_row_cut_on_the_right_is_refused",
    "test_06_hedging_teaches_nothing",
}


def find_tests(number: int) -> dict[str, str]:
    """The tests of a chapter with their docstrings."""
    tree = ast.parse(CHAPTERS[number].read_text())
    return {
        node.name: ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_fault_has_its_chapter() -> None:
    """Nineteen faults of the earlier attempt in their order, and one that it was spared."""
    assert list(range(1, 21)) == sorted(FAULTS) == sorted(CHAPTERS)


@pytest.mark.parametrize("number", FAULTS)
def test_every_chapter_tells_and_tests_its_fault(number: int) -> None:
    """A chapter begins with what went wrong; its tests carry its number and say what they show."""
    lesson = ast.get_docstring(ast.parse(CHAPTERS[number].read_text())) or ""
    assert lesson.startswith(f"Fault {number}: " if number < 20 else "Not one of the nineteen")
    tests = find_tests(number)
    assert 3 <= len(tests)
    assert all(name.startswith(f"test_{number:02d}_") for name in tests)
    assert all(tests.values())
    assert "ExitCode." in CHAPTERS[number].read_text()


def test_the_faults_without_a_number_are_planted_too() -> None:
    """Right truncation, clips from their beginning, and answers that restate all choices."""
    names = {name for number in FAULTS for name in find_tests(number)}
    assert set() == ALSO - names
