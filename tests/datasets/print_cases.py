"""Prints without sound, for what is done with them; no tests."""

import numpy as np

from mmar_jobs.datasets.fingerprint import NUM_FEATURES, Print


def print_of(seed: int, num_frames: int = 160) -> Print:
    """A print like that of busy music: features last 3 frames on average, a third is known."""
    dice = np.random.default_rng(seed)
    changes_FM = dice.random((num_frames, NUM_FEATURES)) < 0.3
    kind_FM = dice.integers(0, 6, (num_frames, NUM_FEATURES))
    last_FM = np.maximum.accumulate(np.where(changes_FM, np.arange(num_frames)[:, None], 0), axis=0)
    lasting_FM = np.take_along_axis(kind_FM, last_FM, axis=0)
    known_FM = lasting_FM < 2
    return Print(_packed(known_FM & (lasting_FM == 1)), _packed(known_FM))


def damaged(made: Print, share: float, seed: int = 0) -> Print:
    """The same with a share of its features taken away and as many turned."""
    dice = np.random.default_rng(seed)
    bits_FM = dice.random((2, made.num_frames, NUM_FEATURES)) < share
    known_F = made.known_F & ~_packed(bits_FM[0])
    return Print((made.sign_F ^ _packed(bits_FM[1])) & known_F, known_F)


def cut_out(made: Print, start: int, end: int) -> Print:
    """Frames from `start` up to `end`."""
    return Print(made.sign_F[start:end], made.known_F[start:end])


def joined(*parts: Print) -> Print:
    """One print after the other."""
    return Print(
        np.concatenate([part.sign_F for part in parts]),
        np.concatenate([part.known_F for part in parts]),
    )


def _packed(bits_FM: np.ndarray) -> np.ndarray:
    packed = np.packbits(bits_FM, axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u4")[:, 0].astype(np.uint32)
