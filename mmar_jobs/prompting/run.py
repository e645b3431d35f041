"""What `prompts compare` and `prompts search` do, from their settings to their text.

Not here: the statistics (compare.py, search.py) and the words (text.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mmar_jobs import logs, settings
from mmar_jobs.artifact import file_sha256
from mmar_jobs.base_model import check_config, model_digest
from mmar_jobs.engine import Engine
from mmar_jobs.engine.open import open_engine
from mmar_jobs.errors import SettingsError
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.layout import ADAPTER_WEIGHTS
from mmar_jobs.lineage import BASE, Model, best_model, child_of
from mmar_jobs.output import write_output
from mmar_jobs.progress import Tracker, bars, no_bar
from mmar_jobs.prompt import SYSTEM_BY_VERSION, system_text
from mmar_jobs.prompting.asking import Lab
from mmar_jobs.prompting.compare import compare_variants
from mmar_jobs.prompting.proposals import parse_proposals, recombine
from mmar_jobs.prompting.questions import read_questions
from mmar_jobs.prompting.search import plan_search, search
from mmar_jobs.prompting.settings import CompareCommand, PromptsCommand, SearchCommand
from mmar_jobs.prompting.source import read_version
from mmar_jobs.prompting.text import comparison_table, list_variants, search_text, to_json
from mmar_jobs.records import Question
from mmar_jobs.stages import Edges
from mmar_jobs.stages.answering import open_checked_engine
from mmar_jobs.store import open_store, read_uri


def show_variants(arguments: Sequence[str]) -> str:
    """The text of `prompts list`."""
    if arguments:
        raise SettingsError("prompts list takes no settings")
    return list_variants()


def compare(arguments: Sequence[str]) -> str:
    """The text of `prompts compare`, which asks what is not in the store yet."""
    command = settings.parse(CompareCommand, arguments, prog="mmar-jobs prompts compare")
    reference = command.prompt.version
    chosen = [read_version(version) for version in command.variants] or list(SYSTEM_BY_VERSION)
    versions = list(dict.fromkeys([reference, *chosen]))
    if len(versions) == 1:
        raise SettingsError("--variants and --prompt.version are the same one: name another")
    lab, questions = _open_lab(command)
    with lab.edges.store.lease(lab.lease_key):
        answers = {version: lab.ask(version, questions) for version in versions}
    rows = compare_variants(answers, reference=reference)
    return (
        to_json({"model_hash": lab.identity.hash}, rows=rows)
        if command.as_json
        else (comparison_table(rows))
    )


def search_better(arguments: Sequence[str]) -> str:
    """The text of `prompts search`; a better prompt is also written to --output."""
    command = settings.parse(SearchCommand, arguments, prog="mmar-jobs prompts search")
    versions = _candidates(command)
    lab, questions = _open_lab(command)
    plan = plan_search(
        questions, len(versions), confirm_share=command.confirm_share, seed=command.seed
    )
    with lab.edges.store.lease(lab.lease_key):
        found = search(
            versions, plan, lab.ask, reference=command.prompt.version, alpha=command.alpha
        )
    if found.is_better and command.output is not None:
        write_output(command.output, f"{found.winner_text}\n")
    return found.model_dump_json(indent=1) if command.as_json else search_text(found)


def _candidates(command: SearchCommand) -> list[str]:
    """All variants, recombinations and the user's own proposals, without the reference."""
    versions = [*SYSTEM_BY_VERSION, *recombine(command.num_proposals, seed=command.seed)]
    if command.proposals is not None:
        where = str(command.proposals)
        versions += parse_proposals(read_uri(where).decode(errors="replace"), where)
    reference = system_text(command.prompt.version)
    return [version for version in versions if system_text(version) != reference]


def _open_lab(command: PromptsCommand) -> tuple[Lab, list[Question]]:
    """The model to ask and the questions, all checked before a model is loaded."""
    edges = Edges(
        store=open_store(command.store, endpoint_url=command.endpoint_url),
        open_engine=open_engine,
        track=_tracker(),
        log=logs.configure(command.log_format).bind(command="prompts"),
    )
    check_config(Path(command.model))
    questions, clips = read_questions(command, edges)
    base_digest = model_digest(Path(command.model))
    identity, opener = _model(command, edges, base_digest)
    lab = Lab(
        edges=edges,
        clips=clips,
        identity=identity,
        open_engine=opener,
        sampling=command.sampling,
        engine=command.engine,
    )
    return lab, questions


def _model(
    command: PromptsCommand, edges: Edges, base_digest: str
) -> tuple[ModelIdentity, Callable[[], Engine]]:
    """Identity of the model to ask, and what opens it."""
    base = Path(command.model)
    if command.adapter:
        weights = Path(command.adapter) / ADAPTER_WEIGHTS
        if not weights.is_file():
            raise SettingsError(f"--adapter {command.adapter} holds no {ADAPTER_WEIGHTS}")
        identity = ModelIdentity(base_digest=base_digest, adapter_digest=file_sha256(weights))
        return identity, lambda: edges.open_engine(base, Path(command.adapter), command.engine)
    model = _run_model(command, edges)
    return model.identity(base_digest), lambda: open_checked_engine(
        edges, base, model, command.engine, base_digest=base_digest
    )


def _run_model(command: PromptsCommand, edges: Edges) -> Model:
    if not command.run_id or command.iteration == BASE:
        return Model(BASE, None)
    if command.iteration is None:
        return best_model(edges.store, command.run_id)[0]
    return child_of(edges.store, command.run_id, command.iteration)


def _tracker() -> Tracker:
    console = Console(stderr=True)
    return bars(console) if console.is_terminal else no_bar
