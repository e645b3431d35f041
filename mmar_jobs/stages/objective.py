"""What train minimises, from the settings: plain fine-tuning, a policy gradient, or both.

Not here: the losses (qlora/step.py, qlora/policy.py), rewards and advantages (filter).
"""

from typing import Any

from mmar_jobs.artifact import Artifact
from mmar_jobs.errors import SettingsError
from mmar_jobs.examples import OBJECTIVE, objective_of
from mmar_jobs.qlora.policy import PolicyGradient
from mmar_jobs.qlora.recipes import PolicyRecipe, TrainRecipe
from mmar_jobs.qlora.step import CROSS_ENTROPY, Objective
from mmar_jobs.recipes import recipe
from mmar_jobs.settings import TrainCommand

_OF_FIT = {"learning_rates", "num_epochs", "candidates_per_step"}


def check_objective(command: TrainCommand, examples: Artifact) -> None:
    """Raise SettingsError where the examples were made for another objective."""
    made_for = objective_of(examples)
    if made_for != command.objective:
        raise SettingsError(
            f"{examples.key} was made for objective {made_for}, --objective is "
            f"{command.objective}: give filter and train the same, or another --run-id"
        )


def objective_for(command: TrainCommand) -> Objective:
    """The objective in the trainer's form."""
    if command.objective == "rest":
        return CROSS_ENTROPY
    values = command.grpo.model_dump(exclude=_OF_FIT)
    if command.objective == "grpo":
        values["example_weight"] = 0.0
    return PolicyGradient(PolicyRecipe(**values))


def train_recipe(command: TrainCommand) -> TrainRecipe:
    """How the adapter is fitted; a policy gradient has rates, passes and step sizes of its own."""
    rates = command.optim.learning_rates
    values = command.optim.model_dump(exclude={"learning_rates"})
    if command.objective != "rest":
        rates = command.grpo.learning_rates
        values["num_epochs"] = command.grpo.num_epochs
        values["examples_per_step"] = command.grpo.candidates_per_step
    return TrainRecipe(
        learning_rate=rates[min(command.iteration, len(rates)) - 1],
        checkpoint_every_steps=command.checkpoint_every_steps,
        **values,
    )


def objective_recipe(command: TrainCommand) -> dict[str, Any]:
    """What of it is hashed; nothing for plain fine-tuning, which runs had before the others."""
    if command.objective == "rest":
        return {}
    return recipe(("grpo", command.grpo)) | {OBJECTIVE: command.objective}


def warn_of_warped(command: TrainCommand, candidates: Artifact, log: Any) -> None:
    """Say where candidates were not drawn from the softmax whose log-probabilities are learned."""
    sampling = candidates.manifest.recipe["sampling"]
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    warped = {name: sampling[name] for name, value in plain.items() if sampling[name] != value}
    if command.objective != "rest" and warped:
        log.warning("candidates_drawn_warped", **warped)
