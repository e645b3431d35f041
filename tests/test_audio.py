"""Tests of decoding and of the arithmetic that tells whether a model heard all of a clip."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import (
    _get_feat_extract_output_lengths,
)

from mmar_jobs import mp3
from mmar_jobs.audio import (
    SAMPLE_RATE_HZ,
    Clip,
    ClipReader,
    canary_clip,
    check_audio_tokens,
    decode,
    num_audio_tokens,
    num_mel_frames,
)
from mmar_jobs.encode import encode_prompt, load_processor
from mmar_jobs.errors import DataError, GateError
from mmar_jobs.manifest import sha256
from mmar_jobs.prompt import render
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import make_question, sound_bytes, tone

RATES_HZ = (8_000, 16_000, 22_050, 44_100, 48_000)
FORMATS = ("WAV", "FLAC", "OGG", "MP3")
# What a lossy encoder may add at the ends, seconds: an MP3 frame at 8 kHz lasts 0.072 s.
SLACK_S = {"WAV": 0.0, "FLAC": 0.0, "OGG": 0.01, "MP3": 0.15}


def loudest_hz(waveform: Any) -> float:
    """Frequency of the strongest partial of a 16 kHz waveform."""
    spectrum = np.abs(np.fft.rfft(waveform))
    return float(np.argmax(spectrum) * SAMPLE_RATE_HZ / len(waveform))


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("format_", FORMATS)
def test_decode_keeps_length_pitch_and_level(format_: str, rate_hz: int, num_channels: int) -> None:
    """Whatever format, rate and channels: mono at 16 kHz, as long, as high and as loud."""
    data = sound_bytes(
        tone(seconds=1.3, rate_hz=rate_hz, num_channels=num_channels), rate_hz, format_
    )
    clip = decode(data, "clip")
    assert (np.float32, 1) == (clip.waveform.dtype, clip.waveform.ndim)
    assert (rate_hz, num_channels) == (clip.file_rate_hz, clip.num_channels)
    assert clip.duration_s == len(clip.waveform) / SAMPLE_RATE_HZ
    assert abs(clip.duration_s - 1.3) <= SLACK_S[format_] + 1 / SAMPLE_RATE_HZ
    assert abs(loudest_hz(clip.waveform) - 440) < 2
    expected = 0.4 * (1.0 if num_channels == 1 else 0.75)
    assert abs(np.abs(clip.waveform[2000:-4000]).max() - expected) < 0.03


@pytest.mark.parametrize("rate_hz", [11_025, 22_050, 44_100, 48_000])
def test_resampling_moves_nothing(rate_hz: int) -> None:
    """Sample by sample what the same tone is at 16 kHz, but for the first and last 20 ms."""
    found = decode(sound_bytes(tone(seconds=1, rate_hz=rate_hz), rate_hz, "WAV", "FLOAT"), "clip")
    expected = tone(seconds=1)[:, 0]
    assert len(expected) == len(found.waveform)
    assert np.abs(found.waveform - expected)[320:-320].max() < 1e-4


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW"])
def test_decode_reads_wav_of_every_depth(subtype: str) -> None:
    """The depth of the file does not change what is heard."""
    sound = tone(seconds=0.5)
    clip = decode(sound_bytes(sound, 16_000, "WAV", subtype), "clip")
    assert np.abs(clip.waveform - sound[:, 0]).max() < 0.03


def cut(share: float) -> Callable[[bytes], bytes]:
    """Keep the first part of a file."""
    return lambda data: data[: int(len(data) * share)]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("format_", FORMATS)
def test_truncated_file_is_an_error(format_: str, share: float) -> None:
    """A file that lost its end is not taken for a shorter clip; the error names it."""
    data = sound_bytes(tone(seconds=3, rate_hz=22_050), 22_050, format_)
    with pytest.raises(DataError, match=r"audio file x\.wav (is truncated|cannot be decoded)") as e:
        decode(cut(share)(data), "x.wav")
    assert "\n" not in str(e.value)


def streamed_mp3(folder: Path, *quality: str) -> bytes:
    """Three seconds as ffmpeg writes them where it cannot go back to the header."""
    (folder / "x.wav").write_bytes(sound_bytes(tone(seconds=3, rate_hz=44_100), 44_100))
    encode = ["ffmpeg", "-v", "error", "-i", str(folder / "x.wav"), "-write_xing", "0", *quality]
    subprocess.run([*encode, str(folder / "x.mp3")], check=True)
    return (folder / "x.mp3").read_bytes()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("bit_rate", ["32k", "320k"])
def test_an_mp3_without_a_header_of_its_length_is_whole(bit_rate: str, tmp_path: Path) -> None:
    """It is heard to its end, and refused where it is too long."""
    data = streamed_mp3(tmp_path, "-b:a", bit_rate)
    assert not mp3.states_length(data)
    assert decode(data, "x.mp3", max_s=3).duration_s == pytest.approx(3, abs=0.15)
    with pytest.raises(DataError, match=r"lasts \d.\d+ s, more than the limit of 1 s"):
        decode(data, "x.mp3", max_s=1)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_an_mp3_is_never_cut_without_a_word(tmp_path: Path) -> None:
    """Of varying bit rate libsndfile guesses a sixth of the length and reads no further."""
    data = streamed_mp3(tmp_path, "-q:a", "5")
    assert mp3.num_samples(data) == pytest.approx(3 * 44_100, abs=mp3.SLACK_SAMPLES)
    with pytest.raises(DataError, match="does not state its length, and only"):
        decode(data, "x.mp3")


def test_an_mp3_with_a_header_says_so() -> None:
    """Its frames add up to its length."""
    data = sound_bytes(tone(seconds=3, rate_hz=22_050), 22_050, "MP3")
    assert mp3.states_length(data)
    assert mp3.num_samples(data) == pytest.approx(3 * 22_050, abs=mp3.SLACK_SAMPLES)


@given(st.binary(max_size=4000))
def test_any_bytes_have_a_length_as_mp3(data: bytes) -> None:
    """Frames are counted to the end of whatever it is; a tag before them does not count."""
    length = mp3.num_samples(data)
    assert 0 <= length <= 1_152 * len(data) / 24
    size = bytes([0, 0, 2, 5])
    tagged = b"ID3\4\0\0" + size + bytes(2 * 128 + 5) + data
    if data[:3] != b"ID3":
        assert length == mp3.num_samples(tagged)


def test_empty_file_is_an_error() -> None:
    """Nothing at all is the commonest broken download."""
    with pytest.raises(DataError, match=r"audio file x\.mp3 is empty: fetch it again"):
        decode(b"", "x.mp3")


@pytest.mark.parametrize(
    "data",
    [
        b"<html><body>404 Not Found</body></html>",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"\0" * 1000,
        b"RIFF\x24\0\0\0WAVE",
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0",
        b"OggS",
        b"fLaC",
        b"ID3\x04\0\0\0\0\0\0",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    ],
)
def test_what_is_not_audio_is_an_error(data: bytes) -> None:
    """Web pages, pictures and LFS pointers are refused in one line."""
    with pytest.raises(DataError, match=r"audio file x\.wav ") as caught:
        decode(data, "x.wav")
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_bytes_never_crash(format_: str, data: st.DataObject) -> None:
    """Whatever bytes change: a finite clip of bounded length, or a DataError."""
    good = SMALL[format_]
    places = data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4))
    bad = bytearray(good)
    for place in places:
        bad[place] = data.draw(st.integers(0, 255))
    try:
        clip = decode(bytes(bad), "x", max_s=30)
    except DataError:
        return
    assert np.isfinite(clip.waveform).all()
    assert clip.duration_s <= 30


SMALL = {format_: sound_bytes(tone(seconds=0.3), 16_000, format_) for format_ in FORMATS}


def test_too_short_clip_is_an_error() -> None:
    """A click is no clip: the model would hear nothing."""
    with pytest.raises(DataError, match=r"lasts 0\.050 s, at least 0\.1 s needed"):
        decode(sound_bytes(tone(seconds=0.05), 16_000), "x.wav")


def test_too_long_clip_is_an_error() -> None:
    """The limit counts seconds, at whatever rate, and says what to change."""
    data = sound_bytes(tone(seconds=2, rate_hz=8_000), 8_000)
    assert 2 == decode(data, "x.wav", max_s=2).duration_s
    with pytest.raises(
        DataError, match=r"lasts 2\.00 s, more than the limit of 1\.4 s and 0\.5 s of"
    ):
        decode(data, "x.wav", max_s=1.4)


def test_too_long_clip_is_refused_by_its_header() -> None:
    """An hour of silence in a small file is not unpacked to see that it is too long."""
    silence = np.zeros((600 * 48_000, 1), dtype=np.float32)
    data = sound_bytes(silence, 48_000, "FLAC")
    assert len(data) < 1_000_000
    with pytest.raises(DataError, match=r"lasts 600\.00 s, more than"):
        decode(data, "x.flac", max_s=30)


def test_values_that_are_no_numbers_are_an_error() -> None:
    """A float WAV may hold NaN, which would spread to every logit."""
    sound = tone(seconds=0.5)
    sound[100] = np.nan
    with pytest.raises(DataError, match="holds values that are not numbers"):
        decode(sound_bytes(sound, 16_000, "WAV", "FLOAT"), "x.wav")


def test_muted_clip_is_silent_and_as_long() -> None:
    """Muting changes the sound only, so that the prompt stays the same."""
    clip = canary_clip()
    muted = clip.muted()
    assert clip.waveform.any()
    assert not muted.waveform.any()
    assert (clip.duration_s, clip.waveform.shape) == (muted.duration_s, muted.waveform.shape)


def test_canary_clip_is_pinned() -> None:
    """Every adapter's canary was made with this sound: another one would refuse them all."""
    assert (16_000,) == canary_clip().waveform.shape
    head = np.round(canary_clip().waveform[[0, 1, 4_000, 15_999]], 4).tolist()
    assert pytest.approx([0.0, 0.0353, 0.3, -0.1466], abs=2e-4) == head


@given(st.integers(0, 480_000))
def test_audio_tokens_are_those_of_transformers(num_samples: int) -> None:
    """Our arithmetic is the released processor's."""
    frames = np.array([num_mel_frames(num_samples)])
    assert int(_get_feat_extract_output_lengths(frames)[0]) == num_audio_tokens(num_samples)


@pytest.mark.parametrize(("seconds", "expected"), [(1, 13), (10, 130), (30, 390), (0.256, 4)])
def test_audio_tokens_of_known_lengths(seconds: float, expected: int) -> None:
    """13 a second; 0.256 s gives the 4 tokens that a truncating processor left of every clip."""
    assert expected == num_audio_tokens(round(seconds * SAMPLE_RATE_HZ))


@pytest.fixture(scope="module")
def processor(model_folder: Path) -> Any:
    """The real processor class."""
    return load_processor(model_folder)


@settings(max_examples=60, deadline=None)
@given(num_samples=st.integers(1_600, 200_000))
def test_processor_makes_as_many_tokens(processor: Any, num_samples: int) -> None:
    """The real processor puts exactly that many audio tokens into a prompt, and as many frames."""
    waveform = np.full(num_samples, 0.1, dtype=np.float32)
    clip = Clip(waveform, num_samples / SAMPLE_RATE_HZ, SAMPLE_RATE_HZ, 1)
    encoded = encode_prompt(processor, render(make_question(), "v9"), clip, question_id="q")
    assert num_audio_tokens(num_samples) == encoded.num_audio_tokens
    assert num_mel_frames(num_samples) == encoded.features_MF.shape[1]


def test_prompt_ends_where_the_answer_begins(processor: Any) -> None:
    """The chat template opens the assistant's turn, and text and choices are all there."""
    encoded = encode_prompt(
        processor, render(make_question(), "v9"), canary_clip(), question_id="q"
    )
    text = processor.tokenizer.decode(encoded.input_ids_S)
    assert text.endswith("<|im_start|>assistant\n")
    assert "How many beeps are there?\nChoices:\n- one\n- two\n- three<|im_end|>" in text
    assert 13 == text.count("<|audio_pad|>")


def test_other_folder_is_no_processor(tmp_path: Path) -> None:
    """A folder without a processor is a data error that names it."""
    with pytest.raises(DataError, match="holds no Qwen3-Omni processor"):
        load_processor(tmp_path)


@given(st.floats(0.1, 30), st.integers(0, 500))
def test_token_check_accepts_one_number_only(duration_s: float, actual: int) -> None:
    """Any other number of audio tokens than the clip's is refused."""
    expected = num_audio_tokens(round(duration_s * SAMPLE_RATE_HZ))
    check_audio_tokens(expected, duration_s=duration_s, question_id="q")
    if actual != expected:
        with pytest.raises(GateError, match=rf"question q: .* {actual} audio tokens"):
            check_audio_tokens(actual, duration_s=duration_s, question_id="q")


def test_reader_checks_that_the_file_is_the_same(tmp_path: Path) -> None:
    """A clip that changed after ingest is refused, and one that was read stays in memory."""
    path = tmp_path / "audio" / "q1.wav"
    path.parent.mkdir()
    path.write_bytes(sound_bytes(tone(), 16_000))
    question = make_question(audio_sha256=sha256(path.read_bytes()))
    reader = ClipReader(str(tmp_path))
    clip = reader.read(question)
    path.write_bytes(sound_bytes(tone(pitch_hz=500), 16_000))
    assert clip is reader.read(question)
    with pytest.raises(GateError, match=r"question q1: audio/q1\.wav is not the file that ingest"):
        ClipReader(str(tmp_path)).read(question)


def test_reader_forgets_the_oldest(tmp_path: Path) -> None:
    """Memory is bounded: the clip used longest ago is read again."""
    questions = []
    for index in range(3):
        data = sound_bytes(tone(pitch_hz=300 + index), 16_000)
        (tmp_path / f"{index}.wav").write_bytes(data)
        questions.append(make_question(audio=f"{index}.wav", audio_sha256=sha256(data)))
    reader = ClipReader(str(tmp_path), num_kept=2)
    first, second = reader.read(questions[0]), reader.read(questions[1])
    assert first is reader.read(questions[0])
    reader.read(questions[2])
    assert first is reader.read(questions[0])
    assert second is not reader.read(questions[1])


def test_reader_takes_uris(tmp_path: Path) -> None:
    """A question may name its clip by a URI, wherever the audio root is."""
    data = sound_bytes(tone(), 16_000)
    (tmp_path / "far.wav").write_bytes(data)
    uri = (tmp_path / "far.wav").as_uri()
    question = make_question(audio=uri, audio_sha256=sha256(data))
    assert 1 == ClipReader(str(tmp_path / "elsewhere")).read(question).duration_s


@pytest.mark.parametrize("audio", ["https://example.org/x.wav", "s3:///x.wav", "file://host/x.wav"])
def test_reader_takes_a_bad_address_for_a_bad_row(tmp_path: Path, audio: str) -> None:
    """What a row names wrongly is no wrong setting."""
    with pytest.raises(DataError, match=r"use a folder, file:///folder or s3://"):
        ClipReader(str(tmp_path)).read_bytes(make_question(audio=audio))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("is_uri", [False, True])
def test_reader_names_a_clip_that_may_not_be_read(tmp_path: Path, is_uri: bool) -> None:
    """One closed file is a bad row with its path, whichever way the row names it."""
    path = tmp_path / "closed.wav"
    path.write_bytes(b"x")
    path.chmod(0)
    question = make_question(audio=path.as_uri() if is_uri else path.name)
    with pytest.raises(DataError, match=r"cannot read .*/closed\.wav: permission denied"):
        ClipReader(str(tmp_path)).read_bytes(question)


def test_reader_takes_a_refused_clip_for_a_bad_row(tmp_path: Path) -> None:
    """The same by a name that the file system refuses, for root may read everything."""
    part = "a" * 255  # allowed alone; sixteen of them are longer than Linux takes
    question = make_question(audio=f"{tmp_path.as_uri()}/{part}/{part}/{part}")
    with pytest.raises(DataError):
        ClipReader(str(tmp_path)).read_bytes(question)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    with pytest.raises(DataError, match=r"loop\.wav"):
        ClipReader(str(tmp_path)).read_bytes(make_question(audio="loop.wav"))


def test_world_decodes_whole(world: TinyWorld) -> None:
    """Every clip of the synthetic benchmark decodes to 2.5 to 3.3 s."""
    for path in sorted((world.folder / "audio").iterdir()):
        assert 2.5 <= decode(path.read_bytes(), path.name).duration_s <= 3.31
