"""`python -m tests.datasets.guard_load N`: the guard's work after decoding, for N training clips.

Prints JSON: CPU seconds and peak memory of comparing with 1,000 benchmark clips, and what was
found. Prints are of 10 to 30 s, put together of pieces of real ones; those of the benchmark and of
training come from different speech and music. The latter come again after 4,000 clips. Not here:
what is expected (test_guard_figures.py).
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmar_jobs.bench.spent import peak_bytes
from mmar_jobs.datasets.fingerprint import NUM_FEATURES, Print, fingerprint
from mmar_jobs.datasets.guard import Ear, find_hits
from mmar_jobs.datasets.near import is_printable
from mmar_jobs.records import Question
from tests.datasets.print_cases import cut_out, damaged, joined
from tests.datasets.sound_cases import melody, print_file, sentence, speak

NUM_BENCHMARK = 1_000
NUM_COPIES = 100
NUM_DIFFERENT = 4_000


def real_prints(first_seed: int) -> list[Print]:
    """Prints of 30 sentences and 30 pieces of music."""
    made = [fingerprint(melody(first_seed + i, 15)) for i in range(30)]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(30):
            voice, words = sentence(first_seed + i, 25)
            made.append(print_file(speak(Path(folder) / "s.wav", words, voice, pitch=20 + 2 * i)))
    return made


def put_together(pool: Sequence[Print], dice: np.random.Generator) -> Print:
    """A print of 10 to 30 s of pieces of others, moved up or down by some bands."""
    num_frames = int(dice.integers(313, 938))
    parts: list[Print] = []
    while sum(part.num_frames for part in parts) < num_frames:
        taken = pool[dice.integers(len(pool))]
        start = int(dice.integers(0, taken.num_frames - 60))
        parts.append(cut_out(taken, start, start + int(dice.integers(60, 200))))
    made = cut_out(joined(*parts), 0, num_frames)
    up = np.uint32(dice.integers(1, NUM_FEATURES))
    sign_F, known_F = ((bits >> up) | (bits << (NUM_FEATURES - up)) for bits in pair_of(made))
    return damaged(Print(sign_F, known_F), 0.02, int(dice.integers(1 << 30)))


def pair_of(made: Print) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays."""
    return made.sign_F, made.known_F


def row(name: str) -> Question:
    """A row whose clip's digest is its id."""
    return Question(id=name, audio=name, text="?", choices=("x", "y"), audio_sha256=name)


def main(num_clips: int) -> dict[str, float]:
    """Make prints, compare them one by one as they would come from the decoders, find hits."""
    dice = np.random.default_rng(0)
    theirs, ours = real_prints(0), real_prints(1_000)
    others = [put_together(ours, dice) for _ in range(min(num_clips, NUM_DIFFERENT))]
    benchmark = {f"b{i}": put_together(theirs, dice) for i in range(NUM_BENCHMARK)}
    started_s = time.process_time()
    ear = Ear(benchmark)
    cpu_s = time.process_time() - started_s
    num_plain = 0
    every = num_clips // NUM_COPIES
    for i in range(num_clips):
        made = others[i % NUM_DIFFERENT]
        if i % every == 0:
            copied = benchmark[f"b{i // every}"]
            made = damaged(cut_out(copied, 62, copied.num_frames), 0.05, i)
        started_s = time.process_time()
        ear.hear(f"t{i}", made)
        num_plain += not is_printable(made)
        cpu_s += time.process_time() - started_s
    rows = [row(f"t{i}") for i in range(num_clips)]
    started_s = time.process_time()
    hits = find_hits(rows, [row(name) for name in benchmark], ear.sounds())
    cpu_s += time.process_time() - started_s
    copies = {(f"t{i * every}", f"b{i}") for i in range(NUM_COPIES)}
    found = {(hit.id, hit.benchmark_id) for hit in hits}
    return {
        "cpu_s": round(cpu_s, 1),
        "peak_mb": round(peak_bytes() / 1e6),
        "num_copies_found": len(found & copies),
        "num_others_found": len({name for name, _ in found} - {name for name, _ in copies}),
        "num_plain": num_plain,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))))
