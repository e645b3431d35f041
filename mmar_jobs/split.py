"""Separating questions by where their sound comes from; pure.

Not here: near-duplicate audio. Two questions share a source when they share the file's bytes, an id
or a source id (a video): a model that heard one has heard the other.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from mmar_jobs.records import Question


def source_keys(question: Question) -> Iterator[tuple[str, str]]:
    """Everything that ties a question to its sound, as (kind, key)."""
    yield "id", question.id
    if question.audio_sha256:
        yield "audio", question.audio_sha256
    for source_id in question.source_ids:
        yield "source", source_id


def find_shared(questions: Sequence[Question], others: Sequence[Question]) -> dict[str, str]:
    """Evidence by id for each of `questions` that shares a source with any of `others`.

    Sharing is passed on: the file of a question whose video is among the others' is theirs, too,
    and so is every other question about that file.
    """
    owner = {key: other.id for other in others for key in source_keys(other)}
    shared: dict[str, str] = {}
    num_before = -1
    while len(shared) > num_before:
        num_before = len(shared)
        for question in questions:
            if question.id in shared:
                continue
            hit = next((key for key in source_keys(question) if key in owner), None)
            if hit is None:
                continue
            kind, key = hit
            shown = key[:12] if kind == "audio" else key
            shared[question.id] = f"has the same {kind} {shown} as {owner[hit]}"
            for other_key in source_keys(question):
                owner.setdefault(other_key, question.id)
    return shared


def split_by_source(
    questions: Sequence[Question], *, fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Split into (train, held-out) so that no source is on both sides; order is kept.

    Each group of connected questions is drawn by a hash of the seed and its smallest key, so adding
    questions of other sources never moves it; `fraction` is expected, not exact.
    """
    group_of = _groups(questions)
    train: list[Question] = []
    heldout: list[Question] = []
    for question in questions:
        digest = hashlib.sha256(f"{seed}\0{group_of[question.id]}".encode()).digest()
        is_heldout = int.from_bytes(digest[:8], "big") < fraction * 2**64
        (heldout if is_heldout else train).append(question)
    return train, heldout


def _groups(questions: Sequence[Question]) -> Mapping[str, str]:
    """The smallest key of each question's connected group, by union-find over source keys."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for question in questions:
        keys = [f"{kind}:{key}" for kind, key in source_keys(question)]
        for key in keys[1:]:
            low, high = sorted((root(keys[0]), root(key)))
            parent[high] = low
    return {question.id: root(f"id:{question.id}") for question in questions}
