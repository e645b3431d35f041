"""How long an MP3 file is by its frames, for those that do not state it; pure.

libsndfile guesses the length of such a file from the first frame's bit rate and reads no further
than that, so a clip of varying bit rate would be cut without a word. Not here: decoding (audio.py).
"""

from typing import Final, NamedTuple

# kbit/s of layer III by the header's index; 0 is a free format and 15 none.
_KBITS_1: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ: Final = (44_100, 48_000, 32_000)
_MARKS: Final = (b"Xing", b"Info", b"VBRI")
# What decoders may leave out at both ends: the delays of encoder and decoder.
SLACK_SAMPLES: Final = 3 * 1_152


class _Frame(NamedTuple):
    """One frame of layer III: its length in the file and in samples."""

    num_bytes: int
    num_samples: int


def states_length(data: bytes) -> bool:
    """Whether the first frame is a header that counts the others, as LAME and Fraunhofer write."""
    start = _first_frame(data)
    frame = _frame_at(data, start)
    return frame is not None and any(
        mark in data[start : start + frame.num_bytes] for mark in _MARKS
    )


def num_samples(data: bytes) -> int:
    """Samples in the whole frames of a file, per channel; junk between frames is passed over."""
    total, place = 0, _first_frame(data)
    while place < len(data):
        frame = _frame_at(data, place)
        if frame is None:
            place = data.find(b"\xff", place + 1)
            if place < 0:
                break
            continue
        place += frame.num_bytes
        total += frame.num_samples if place <= len(data) else 0
    return total


def _first_frame(data: bytes) -> int:
    """Where the tag at the beginning ends, whose size is in four bytes of 7 bits."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    return 10 + sum(
        (byte & 127) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True)
    )


def _frame_at(data: bytes, place: int) -> _Frame | None:
    """The frame that begins at a place, if one does."""
    header = data[place : place + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version = header[1] >> 3 & 3  # 3 is MPEG 1, 2 MPEG 2, 0 MPEG 2.5
    kbits_index, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbits_index in (0, 15) or rate_index == 3:
        return None
    halvings = {3: 0, 2: 1, 0: 2}[version]
    rate_hz = _RATES_HZ[rate_index] >> halvings
    kbits = (_KBITS_2 if halvings else _KBITS_1)[kbits_index]
    samples = 576 if halvings else 1_152
    return _Frame(samples // 8 * kbits * 1_000 // rate_hz + (header[2] >> 1 & 1), samples)
