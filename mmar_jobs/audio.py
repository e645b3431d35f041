"""Decoding of clips and the arithmetic that tells whether a model heard all of one.

Not here: mel features and the audio tower (engine/, qlora/), storage (store). The only importer of
soundfile and soxr, both lazily: `mmar-jobs --help` must not pay for them.
"""

import io
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs import mp3
from mmar_jobs.errors import DataError, GateError, SettingsError
from mmar_jobs.manifest import sha256
from mmar_jobs.records import Question
from mmar_jobs.store import open_store, read_uri
from mmar_jobs.store.uri import relative_key

SAMPLE_RATE_HZ: Final = 16_000
HOP_LENGTH: Final = 160
MIN_CLIP_S: Final = 0.1
# Encoders fill their last block: a clip cut at 30 s decodes to up to a few tenths more.
PADDING_S: Final = 0.5

_UNKNOWN_FRAMES: Final = 1 << 62  # what libsndfile says of a FLAC that was streamed
_MEL_FRAMES_PER_CHUNK: Final = 100
_TOKENS_PER_CHUNK: Final = 13


@dataclass(frozen=True, slots=True)
class Clip:
    """One decoded clip: `waveform` float32 (num_samples,) mono at 16 kHz, and its file's form."""

    waveform: NDArray[np.float32]
    duration_s: float
    file_rate_hz: int
    num_channels: int

    def muted(self) -> "Clip":
        """The same clip with all sound removed, for the audio-dependence controls."""
        silent = np.zeros_like(self.waveform)
        return Clip(silent, self.duration_s, self.file_rate_hz, self.num_channels)


def num_mel_frames(num_samples: int) -> int:
    """Mel frames of a waveform at 16 kHz, as transformers' WhisperFeatureExtractor counts them."""
    return num_samples // HOP_LENGTH


def num_audio_tokens(num_samples: int) -> int:
    """Audio tokens of a 16 kHz waveform: 13 a second, the rest by three halving convolutions.

    Source: `_get_feat_extract_output_lengths` in transformers' processing_qwen3_omni_moe.
    """
    chunks, rest = divmod(num_mel_frames(num_samples), _MEL_FRAMES_PER_CHUNK)
    for _ in range(3):
        rest = (rest + 1) // 2
    return chunks * _TOKENS_PER_CHUNK + rest


def check_audio_tokens(actual: int, *, duration_s: float, question_id: str) -> None:
    """Raise GateError unless `actual` is what a clip of `duration_s` seconds must give.

    This is the check that the earlier attempt lacked: its processor cut every clip to 0.256 s.
    """
    expected = num_audio_tokens(round(duration_s * SAMPLE_RATE_HZ))
    if actual == expected:
        return
    raise GateError(
        f"question {question_id}: the model would hear {actual} audio tokens "
        f"({actual / 13:.2f} s), its clip of {duration_s:.2f} s gives {expected}: the audio is "
        "truncated, padded or another clip; look for max_length or truncation on the processor call"
    )


def decode(data: bytes, name: str, *, max_s: float | None = None) -> Clip:
    """Decode wav, flac, ogg or mp3 bytes to mono 16 kHz; a DataError says what is wrong.

    `name` stands for the file in errors. A clip more than PADDING_S longer than `max_s` seconds is
    refused by its header, before it fills the memory.
    """
    import soxr  # noqa: PLC0415 - only stages that hear need it

    if not data:
        raise DataError(f"audio file {name} is empty: fetch it again")
    _check_riff_length(data, name)
    _check_ogg_pages(data, name)
    frames, rate_hz = _read_frames(data, name, max_s)
    mono = np.ascontiguousarray(frames.mean(axis=1, dtype=np.float32))
    if not np.isfinite(mono).all():
        raise DataError(f"audio file {name} holds values that are not numbers: encode it again")
    if rate_hz != SAMPLE_RATE_HZ and len(mono):
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    duration_s = len(mono) / SAMPLE_RATE_HZ
    check_length(duration_s, max_s, name)
    if duration_s < MIN_CLIP_S:
        raise DataError(
            f"audio file {name} lasts {duration_s:.3f} s, at least {MIN_CLIP_S} s needed"
        )
    return Clip(mono.astype(np.float32, copy=False), duration_s, rate_hz, frames.shape[1])


def _read_frames(data: bytes, name: str, max_s: float | None) -> tuple[NDArray[np.float32], int]:
    """All frames of a file, [num_frames, num_channels], and its rate in Hz."""
    import soundfile  # noqa: PLC0415 - see decode

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            num_frames, rate_hz = file.frames, file.samplerate
            if file.format == "MP3" and not mp3.states_length(data):
                num_frames = _num_mp3_frames(data, num_frames, name)
            if num_frames >= _UNKNOWN_FRAMES:
                raise DataError(f"audio file {name} does not state its length: encode it again")
            check_length(num_frames / rate_hz, max_s, name)
            frames: NDArray[np.float32] = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise DataError(
            f"audio file {name} cannot be decoded ({reason}): is it audio, and complete?"
        ) from None
    if len(frames) < num_frames:
        raise DataError(
            f"audio file {name} is truncated: {len(frames)} of {num_frames} frames: fetch it again"
        )
    return frames, rate_hz


def _num_mp3_frames(data: bytes, num_readable: int, name: str) -> int:
    """The least number of frames that a file without a length must give."""
    least = max(0, mp3.num_samples(data) - mp3.SLACK_SAMPLES)
    if num_readable < least:
        raise DataError(
            f"audio file {name} does not state its length, and only {num_readable} of more than "
            f"{least} frames can be read: encode it again"
        )
    return least


def encode_wav(clip: Clip) -> bytes:
    """The whole mel frames of a clip as a WAV file of 32-bit floats: our very samples."""
    import soundfile  # noqa: PLC0415 - heavy, see decode

    buffer = io.BytesIO()
    soundfile.write(buffer, whole_frames(clip), SAMPLE_RATE_HZ, subtype="FLOAT", format="WAV")
    return buffer.getvalue()


def whole_frames(clip: Clip) -> NDArray[np.float32]:
    """The samples of a clip's whole mel frames, (samples,).

    The rest, under 10 ms, makes no frame here; vLLM would fill it up to one more, and hear a token
    that training never heard.
    """
    return clip.waveform[: num_mel_frames(len(clip.waveform)) * HOP_LENGTH]


def check_length(duration_s: float, max_s: float | None, name: str) -> None:
    """Raise DataError when a clip is more than PADDING_S longer than `max_s` seconds."""
    if max_s is not None and duration_s > max_s + PADDING_S:
        raise DataError(
            f"clip {name} lasts {duration_s:.2f} s, more than the limit of {max_s:g} s and "
            f"{PADDING_S:g} s of padding: cut it, or raise --data.max-clip-s"
        )


def _check_riff_length(data: bytes, name: str) -> None:
    """Libsndfile reads a cut WAV file without a word, so its own length field is checked here."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(data):
        chunk_id, size = struct.unpack_from("<4sI", data, position)
        if chunk_id == b"data":
            missing = position + 8 + size - len(data)
            # 0xFFFFFFFF and 0 are what streaming writers leave when they cannot seek back.
            if missing > 0 and size not in (0xFFFFFFFF, 0):
                raise DataError(
                    f"audio file {name} is truncated: {missing} bytes are missing: fetch it again"
                )
            return
        position += 8 + size + size % 2
    raise DataError(f"audio file {name} is truncated: it has a WAV header but no sound")


def _check_ogg_pages(data: bytes, name: str) -> None:
    """Libsndfile takes the last whole page of a cut Ogg file for its end, so walk the pages."""
    position = 0
    while data[position : position + 4] == b"OggS":
        num_segments = data[position + 26] if position + 26 < len(data) else 0
        body = position + 27 + num_segments
        position = body + sum(data[position + 27 : body])
        if position > len(data):
            raise DataError(
                f"audio file {name} is truncated: {position - len(data)} bytes of its last page "
                "are missing: fetch it again"
            )


class ClipReader:
    """Reads clips, checks that each is the file that ingest saw, keeps the last few."""

    def __init__(
        self, audio_root: str, *, endpoint_url: str | None = None, num_kept: int = 64
    ) -> None:
        self._audio_root = audio_root
        self._root = open_store(audio_root, endpoint_url=endpoint_url)
        self._endpoint_url = endpoint_url
        self._num_kept = num_kept
        self._kept: OrderedDict[str, Clip] = OrderedDict()

    def read(self, question: Question) -> Clip:
        """The clip of one ingested question."""
        kept = self._kept.get(question.audio_sha256)
        if kept is not None:
            self._kept.move_to_end(question.audio_sha256)
            return kept
        data = self.read_bytes(question)
        if sha256(data) != question.audio_sha256:
            raise GateError(
                f"question {question.id}: {question.audio} is not the file that ingest saw (digest "
                "differs): put the original back, or ingest again under another --run-id"
            )
        clip = decode(data, question.audio)
        self._kept[question.audio_sha256] = clip
        if len(self._kept) > self._num_kept:
            self._kept.popitem(last=False)
        return clip

    def read_bytes(self, question: Question) -> bytes:
        """The undecoded file of a question.

        Raises DataError for what is wrong with this one row or file, an address that cannot be read
        or a file that may not be; SettingsError where a bucket as a whole refuses.
        """
        try:
            if "://" in question.audio:
                root = self._audio_root
                return read_uri(question.audio, root=root, endpoint_url=self._endpoint_url)
            return self._root.read(relative_key(question.audio))
        except SettingsError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise DataError(str(error)) from error


def canary_clip() -> Clip:
    """One second of a fixed rising tone at 16 kHz, the sound of every canary prompt."""
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    tone: Any = 0.3 * np.sin(2 * np.pi * (300 * time_s + 500 * time_s**2))
    return Clip(tone.astype(np.float32), 1.0, SAMPLE_RATE_HZ, 1)
