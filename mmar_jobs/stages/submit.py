"""Pack the predictions into submission.zip and validate what was packed.

Not here: the format itself (submission.py).
"""

from typing import Final

from mmar_jobs.artifact import Artifact, begin, require_artifact
from mmar_jobs.errors import GateError
from mmar_jobs.layout import BENCHMARK, PREDICTIONS, predictions_key, questions_key, submission_key
from mmar_jobs.lineage import best_iteration
from mmar_jobs.questions import read_split
from mmar_jobs.records import Prediction
from mmar_jobs.settings import SubmitCommand
from mmar_jobs.stages import Edges
from mmar_jobs.submission import num_over_long, pack, problems

STAGE: Final = "submit"
SUBMISSION: Final = "submission.zip"


def run(command: SubmitCommand, edges: Edges) -> Artifact:
    """Make or verify submission.zip."""
    questions = require_artifact(edges.store, questions_key(command.run_id), stage="ingest")
    iteration = best_iteration(edges.store, command.run_id)
    key = predictions_key(command.run_id, iteration)
    predictions = require_artifact(edges.store, key, stage="infer")
    draft = begin(
        edges.store,
        submission_key(command.run_id, iteration),
        stage=STAGE,
        recipe={},
        inputs={"questions": questions.digest, "predictions": predictions.digest},
    )
    if isinstance(draft, Artifact):
        return draft
    asked = read_split(questions, BENCHMARK)
    rows = list(predictions.read_records(PREDICTIONS, Prediction))
    data = pack(rows, asked)
    found = problems(data, asked)
    if found:
        raise GateError(f"{SUBMISSION} has {len(found)} problems, first: {found[0]}")
    draft.write_bytes(SUBMISSION, data)
    return draft.finish(
        [SUBMISSION],
        counts={"num_predictions": len(rows), "num_over_long": num_over_long(rows)},
        metrics={},
        placement={},
        cost={},
    )
