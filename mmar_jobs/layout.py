"""Where a run's artifacts lie in a store, and the files in them that two modules know; pure names.

Not here: reading or writing them (artifact.py).
"""

from typing import Final

# Splits of the questions.
TRAIN: Final = "train"
HELDOUT: Final = "heldout"
BENCHMARK: Final = "benchmark"

REJECTS: Final = "rejects.jsonl.gz"  # in questions
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"  # in adapter, as the three below
ADAPTER_CONFIG: Final = "adapter_config.json"
CANARY: Final = "canary.json"
STEPS: Final = "steps.json"
VERDICT: Final = "verdict.json"  # in verdict
PREDICTIONS: Final = "predictions.jsonl.gz"  # in predictions


def split_shard(split: str) -> str:
    """The file in questions that holds one split."""
    return f"{split}.jsonl.gz"


def run_key(run_id: str) -> str:
    """Root of everything that belongs to one run."""
    return f"runs/{run_id}"


def questions_key(run_id: str) -> str:
    """The checked and split questions; made by ingest."""
    return f"runs/{run_id}/questions"


def candidates_key(run_id: str, iteration: int) -> str:
    """K candidates per question; made by generate."""
    return f"runs/{run_id}/iter-{iteration}/candidates"


def muted_key(run_id: str, iteration: int) -> str:
    """Greedy answers to the same questions with muted audio; made by generate where asked for."""
    return f"runs/{run_id}/iter-{iteration}/muted"


def examples_key(run_id: str, iteration: int) -> str:
    """Training examples; made by filter."""
    return f"runs/{run_id}/iter-{iteration}/examples"


def adapter_key(run_id: str, iteration: int) -> str:
    """LoRA weights; made by train."""
    return f"runs/{run_id}/iter-{iteration}/adapter"


def checkpoint_key(run_id: str, iteration: int) -> str:
    """Resumable training states; made by train, deleted when the adapter is finished."""
    return f"runs/{run_id}/iter-{iteration}/checkpoint"


def answers_key(run_id: str, model_hash: str, *, muted: bool = False) -> str:
    """One model's greedy answers to the held-out questions; made by evaluate for all verdicts."""
    return f"runs/{run_id}/answers/{model_hash[:12]}{'-muted' if muted else ''}"


def clip_embeds_key(tower: str) -> str:
    """Clips' embeddings by one audio tower (its digest), for all runs; safe to delete any time."""
    return f"clip-embeds/{tower}"


def verdict_key(run_id: str, iteration: int) -> str:
    """The gate's decision; made by evaluate."""
    return f"runs/{run_id}/iter-{iteration}/verdict"


def predictions_key(run_id: str, iteration: int) -> str:
    """The answers to the benchmark by the model that `iteration` trained, 0 the base; by infer.

    One key a model: a run that goes on and promotes a better one answers again.
    """
    return f"runs/{run_id}/predictions/iter-{iteration}"


def submission_key(run_id: str, iteration: int) -> str:
    """submission.zip out of the predictions of the same `iteration`; made by submit."""
    return f"runs/{run_id}/submission/iter-{iteration}"


def estimate_key(run_id: str) -> str:
    """What the run was planned to take, kept before it began; written by plan --keep."""
    return f"runs/{run_id}/estimate.json"


def report_key(run_id: str) -> str:
    """report.html: written over whenever asked for, it is a view and not an artifact."""
    return f"runs/{run_id}/report/report.html"
