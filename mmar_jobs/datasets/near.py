"""Which clips sound the same: stretches of two prints that agree more than chance explains; pure.

Not here: making prints (fingerprint.py), other ways by which a row betrays another (guard.py).
Every pair is judged by itself: the order of the clips, and which others there are, change nothing.
"""

# Shapes: F frames of one print, H hits of the index, M = 32 features of a frame.

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mmar_jobs.datasets.fingerprint import FRAME_S, NUM_FEATURES, Print

# A run of equal features counts once, whatever its length. Of such runs unlike clips share 0.62 at
# most where they agree best, copies at 32 kbit/s 0.88 (median 0.98): a log-likelihood ratio.
_AGREE_COPY: Final = 0.88
_AGREE_OTHER: Final = 0.62
_GAIN: Final = math.log(_AGREE_COPY / _AGREE_OTHER)
_LOSS: Final = math.log((1 - _AGREE_COPY) / (1 - _AGREE_OTHER))
MIN_SCORE: Final = 36.0
MIN_STRETCH_S: Final = 1.0
_MIN_FRAMES: Final = round(MIN_STRETCH_S / FRAME_S)

# Keys of the index: 20 neighbouring features of a frame, of which 5 are known, four times.
_KEY_BITS: Final = 20
_KEY_SHIFTS: Final = (0, 4, 8, 12)
_MIN_KNOWN: Final = 5
# A pair is looked at where two keys agree at one offset, or at two neighbouring ones, if the 2 s
# around are alike: 2 of 100 such places between real clips are, and 99.7 % of those at copies.
_MIN_VOTES: Final = 2
_AROUND: Final = 32
_BLOCKS: Final = 8
_MIN_ROUGH: Final = 20.0
_MAX_OFFSETS: Final = 8
_BATCH_FRAMES: Final = 30_000
_CHUNK: Final = 2_048
# A hit is one integer, sorted with all others: index here, index there, offset and frame.
_FRAME_BITS: Final = 15
MAX_FRAMES: Final = (1 << _FRAME_BITS) - 1
_OFFSET_BITS: Final = _FRAME_BITS + 1
_BATCH_BITS: Final = 10
_PLACE_BITS: Final = _FRAME_BITS + _OFFSET_BITS


@dataclass(frozen=True, slots=True)
class Match:
    """A stretch of `first` that is also in `second`; times in seconds from each clip's start.

    `score` is the log-likelihood ratio of a copy against chance, in nats, over the stretch, and
    `probability` bounds the chance that any stretch of two unlike clips of these lengths reaches it
    (features independent between runs; expected number of such stretches, at most 1).
    """

    first_s: float
    second_s: float
    stretch_s: float
    agreement: float
    score: float
    probability: float


def is_printable(made: Print) -> bool:
    """Whether enough happens in a clip for a copy to be found: an exact one is, else none."""
    table = _Table.of([made])
    if len(table.keys) < _MIN_VOTES:
        return False
    around = table.around(table.owners[:1], table.frames.min(keepdims=True))
    return bool(_rough(around, around)[0] >= _MIN_ROUGH) and _match(made, made, 0) is not None


class Index:
    """Prints by their keys; finds those that share a stretch with other prints.

    Of a print longer than MAX_FRAMES (17 minutes) only the beginning is heard.
    """

    def __init__(self, prints: Sequence[Print]) -> None:
        self._table = table = _Table.of(prints)
        order = np.argsort(table.keys, kind="stable")
        place = (table.owners << (_PLACE_BITS + _BATCH_BITS)) + (table.frames << _FRAME_BITS)
        self._places = place[order]
        self._counts = np.bincount(table.keys, minlength=len(_KEY_SHIFTS) << _KEY_BITS)
        self._starts = np.cumsum(self._counts) - self._counts

    def search(self, prints: Sequence[Print]) -> Iterator[tuple[int, int, Match]]:
        """Each pair that matches: index here, index in `prints`, and the match as (here, there)."""
        for first, batch in _batches(prints):
            asked = _Table.of(batch)
            for (mine, other), offsets in self._candidates(asked).items():
                found = _best(self._table.prints[mine], asked.prints[other], offsets)
                if found is not None:
                    yield mine, first + other, found

    def _candidates(self, asked: "_Table") -> dict[tuple[int, int], list[int]]:
        """Offsets (frame here less frame there) at which pairs may be copies, by pair."""
        hits = self._hits(asked)
        starts = np.flatnonzero(np.diff(hits >> _FRAME_BITS, prepend=-1))
        place_H = hits[starts] >> _FRAME_BITS
        votes_H = np.diff(starts, append=len(hits))
        # A copy's frames begin elsewhere, so its votes fall upon two neighbouring offsets.
        is_beside_H = np.diff(place_H) == 1
        num_near_H = votes_H.copy()
        num_near_H[1:] += votes_H[:-1] * is_beside_H
        num_near_H[:-1] = np.maximum(num_near_H[:-1], votes_H[:-1] + votes_H[1:] * is_beside_H)
        kept = num_near_H >= _MIN_VOTES
        place_H, frame_H = place_H[kept], hits[starts[kept]] & MAX_FRAMES
        offset_H = (place_H & ((1 << _OFFSET_BITS) - 1)) - MAX_FRAMES
        mine_H, other_H = np.divmod(place_H >> _OFFSET_BITS, 1 << _BATCH_BITS)
        rough_H = np.zeros(len(place_H), np.float32)
        for first in range(0, len(place_H), _CHUNK):
            part = slice(first, first + _CHUNK)
            here = self._table.around(mine_H[part], (frame_H + offset_H)[part])
            rough_H[part] = _rough(here, asked.around(other_H[part], frame_H[part]))
        alike = rough_H >= _MIN_ROUGH
        return _by_pair(mine_H[alike], other_H[alike], offset_H[alike], rough_H[alike])

    def _hits(self, asked: "_Table") -> NDArray[np.int64]:
        """Every pair of equal keys as one integer, sorted."""
        counts = self._counts[asked.keys]
        first = self._starts[asked.keys] - (np.cumsum(counts) - counts)
        place_H = np.repeat(first, counts)
        place_H += np.arange(len(place_H))
        offset = (MAX_FRAMES - asked.frames) << _FRAME_BITS
        hits: NDArray[np.int64] = self._places[place_H]
        hits += np.repeat((asked.owners << _PLACE_BITS) + offset + asked.frames, counts)
        hits.sort()
        return hits


def _batches(prints: Sequence[Print]) -> Iterator[tuple[int, list[Print]]]:
    """Consecutive prints that are looked up together, with the place of the first."""
    batch: list[Print] = []
    num_frames = 0
    for number, made in enumerate(prints, start=1):
        batch.append(made)
        num_frames += made.num_frames
        is_full = num_frames >= _BATCH_FRAMES or len(batch) == 1 << _BATCH_BITS
        if is_full or number == len(prints):
            yield number - len(batch), batch
            batch, num_frames = [], 0


@dataclass(frozen=True, slots=True)
class _Table:
    """Prints end to end, each after a gap of silence, and the keys of their frames."""

    prints: Sequence[Print]
    sign_F: NDArray[np.uint32]
    known_F: NDArray[np.uint32]
    bases: NDArray[np.int64]
    keys: NDArray[np.int64]
    frames: NDArray[np.int64]
    owners: NDArray[np.int64]

    @classmethod
    def of(cls, prints: Sequence[Print]) -> "_Table":
        """The table of some prints."""
        cut = [Print(made.sign_F[:MAX_FRAMES], made.known_F[:MAX_FRAMES]) for made in prints]
        gap = np.zeros(_AROUND, np.uint32)
        sign_F = np.concatenate([gap, *(part for p in cut for part in (p.sign_F, gap))])
        known_F = np.concatenate([gap, *(part for p in cut for part in (p.known_F, gap))])
        lengths = np.array([p.num_frames for p in cut], np.int64)
        bases = _AROUND + np.cumsum(lengths + _AROUND) - lengths - _AROUND
        owner_F = np.repeat(np.arange(len(cut)), lengths)
        frame_F = np.arange(len(owner_F)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        keys, places = _keys(sign_F, known_F, bases[owner_F] + frame_F)
        return cls(cut, sign_F, known_F, bases, keys, frame_F[places], owner_F[places])

    def around(
        self, owners_H: NDArray[np.int64], frames_H: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Signs and what is known of them for 2 s around some frames, each [H, F / 2]."""
        first_H = self.bases[owners_H] + frames_H - _AROUND
        sign_HF = sliding_window_view(self.sign_F, 2 * _AROUND)[first_H]
        known_HF = sliding_window_view(self.known_F, 2 * _AROUND)[first_H]
        return sign_HF.view(np.uint64), known_HF.view(np.uint64)


def _keys(
    sign_F: NDArray[np.uint32], known_F: NDArray[np.uint32], heard_F: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys of the frames at `heard_F`, and which of these frames each is of.

    A key that stays the same from frame to frame is listed once, where it begins.
    """
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for number, shift in enumerate(_KEY_SHIFTS):
        mask = np.uint32(((1 << _KEY_BITS) - 1) << shift)
        key_F = (sign_F & mask) >> np.uint32(shift)
        is_rich_F = np.bitwise_count(known_F & mask) >= _MIN_KNOWN
        is_new_F = is_rich_F.copy()
        is_new_F[1:] &= (key_F[1:] != key_F[:-1]) | ~is_rich_F[:-1]
        places = np.flatnonzero(is_new_F[heard_F])
        found.append((key_F[heard_F[places]].astype(np.int64) + (number << _KEY_BITS), places))
    return np.concatenate([keys for keys, _ in found]), np.concatenate([at for _, at in found])


def _rough(
    here: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    there: tuple[NDArray[np.uint64], NDArray[np.uint64]],
) -> NDArray[np.float32]:
    """Score of the best stretch of each place, [H], in steps of 8 frames and without runs."""
    both_HF = here[1] & there[1]
    unlike_HF = (here[0] ^ there[0]) & both_HF
    score_HB = _count(both_HF) * np.float32(_GAIN) + _count(unlike_HF) * np.float32(_LOSS - _GAIN)
    total_HB = np.cumsum(score_HB, axis=1)
    lowest_HB = np.minimum(np.minimum.accumulate(total_HB, axis=1), 0)
    return np.asarray((total_HB - lowest_HB).max(axis=1))


def _count(bits_HF: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Set bits in each of the blocks, [H, B]."""
    counts_HF = np.bitwise_count(bits_HF)
    return np.asarray(counts_HF.reshape(len(bits_HF), _BLOCKS, -1).sum(axis=2, dtype=np.int64))


def _by_pair(
    mine_H: NDArray[np.int64],
    other_H: NDArray[np.int64],
    offset_H: NDArray[np.int64],
    rough_H: NDArray[np.float32],
) -> dict[tuple[int, int], list[int]]:
    """The most promising offsets of each pair; with a tie at the end all that are equal."""
    pairs: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for mine, other, offset, rough in zip(
        mine_H.tolist(), other_H.tolist(), offset_H.tolist(), rough_H.tolist(), strict=True
    ):
        pairs.setdefault((mine, other), []).append((rough, offset))
    chosen = {}
    for pair, ranked in pairs.items():
        enough = sorted((rough for rough, _ in ranked), reverse=True)[:_MAX_OFFSETS][-1]
        chosen[pair] = [offset for rough, offset in ranked if rough >= enough]
    return chosen


def _best(first: Print, second: Print, offsets: Sequence[int]) -> Match | None:
    """The best match at any of `offsets` or one frame beside."""
    near = sorted({offset + step for offset in offsets for step in (-1, 0, 1)})
    found = [match for offset in near if (match := _match(first, second, offset)) is not None]
    return max(
        found, key=lambda match: (match.score, -abs(match.first_s - match.second_s)), default=None
    )


def _match(first: Print, second: Print, offset: int) -> Match | None:
    """The stretch of highest score where frame f of `second` lies on f + offset of `first`."""
    start, end = max(0, offset), min(first.num_frames, second.num_frames + offset)
    if end - start < _MIN_FRAMES:
        return None
    sign_F = first.sign_F[start:end] ^ second.sign_F[start - offset : end - offset]
    both_F = first.known_F[start:end] & second.known_F[start - offset : end - offset]
    weight_FM = _weights(both_F, first.sign_F[start:end], sign_F)
    unlike_FM = weight_FM * _bits(sign_F & both_F)
    runs_F, unlike_F = weight_FM.sum(axis=1), unlike_FM.sum(axis=1)
    score, low, high = _stretch(_GAIN * runs_F + (_LOSS - _GAIN) * unlike_F)
    if score < MIN_SCORE or high - low < _MIN_FRAMES:
        return None
    agreement = 1 - unlike_F[low:high].sum() / runs_F[low:high].sum()
    num_places = first.num_frames * second.num_frames
    return Match(
        first_s=round((start + low) * FRAME_S, 3),
        second_s=round((start + low - offset) * FRAME_S, 3),
        stretch_s=round((high - low) * FRAME_S, 3),
        agreement=round(float(agreement), 4),
        score=round(score, 2),
        probability=min(1.0, num_places * math.exp(-score)),
    )


def _stretch(score_F: NDArray[np.float64]) -> tuple[float, int, int]:
    """The stretch of frames with the highest sum: (sum, first frame, frame after the last)."""
    total = np.concatenate([[0.0], np.cumsum(score_F)])
    gain = total - np.minimum.accumulate(total)
    high = int(gain.argmax())
    low = high - int(total[high::-1].argmin()) if high else 0
    return float(gain[high]), low, high


def _weights(
    both_F: NDArray[np.uint32], sign_F: NDArray[np.uint32], unlike_F: NDArray[np.uint32]
) -> NDArray[np.float64]:
    """One over the length of the run that each known feature is in, shape [F, M]; 0 elsewhere.

    A steady slope of a band says one thing, not one a frame: without this two bells are one.
    """
    both_FM = _bits(both_F)
    state_FM = both_FM * (1 + _bits(sign_F) + 2 * _bits(unlike_F))
    is_first_FM = np.ones_like(state_FM, np.bool_)
    is_first_FM[1:] = state_FM[1:] != state_FM[:-1]
    run = np.cumsum(is_first_FM.T.reshape(-1)) - 1
    length = np.bincount(run)
    weight_FM: NDArray[np.float64] = (1.0 / length[run]).reshape(NUM_FEATURES, -1).T * both_FM
    return weight_FM


def _bits(packed_F: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The features of each frame, shape [F, M], 0 or 1."""
    as_bytes = packed_F.astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.unpackbits(as_bytes, axis=1, bitorder="little")
