"""Reading what filter wrote: examples of the kind that its objective learns from.

Not here: making them (stages/filter.py).
"""

from collections.abc import Iterator
from typing import Final

from mmar_jobs.artifact import Artifact
from mmar_jobs.records import Example, PolicyExample

OBJECTIVE: Final = "objective"  # in the recipe; absent where only right candidates are learned


def objective_of(examples: Artifact) -> str:
    """The objective that an artifact of examples was made for."""
    return str(examples.manifest.recipe.get(OBJECTIVE, "rest"))


def read_examples(examples: Artifact) -> Iterator[Example]:
    """All examples, in order; PolicyExamples unless the objective is rest."""
    yield from examples.records(Example if objective_of(examples) == "rest" else PolicyExample)
