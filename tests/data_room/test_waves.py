"""Sound files: every width and rate of PCM, other formats, and files that hold no sound to read."""

import io
import struct
import wave

import numpy as np
import pytest

from transformer_jax.data import waves
from transformer_jax.data.waves import Broken

SECONDS = np.arange(8000) / 16_000


def tone(hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * SECONDS)).astype(np.float32)


def pcm(values_W, *, width=2, rate=16_000, channels=1) -> bytes:
    """A WAV file of floats in [-1, 1)."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as opened:
        opened.setnchannels(channels)
        opened.setsampwidth(width)
        opened.setframerate(rate)
        integers = np.rint(values_W * 2.0 ** (8 * width - 1)).astype(np.int64)
        if width == 1:
            data = (integers + 128).astype(np.uint8).tobytes()
        else:
            data = integers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
        opened.writeframes(data)
    return buffer.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_pcm(tmp_path, width):
    path = tmp_path / "a.wav"
    path.write_bytes(pcm(tone(), width=width))
    found = waves.read(path)
    assert found.dtype == np.int16 and len(found) == 8000 == waves.header(path).samples
    np.testing.assert_allclose(found / 32768, tone(), atol=2.0**-7 if width == 1 else 2.0**-14)


def test_channels_are_averaged_and_rates_resampled(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(pcm(np.stack([tone(), np.zeros(8000)], axis=1).ravel(), channels=2))
    np.testing.assert_allclose(waves.read(path) / 32768, tone() / 2, atol=1e-4)
    path.write_bytes(pcm(tone()[::2], rate=8000))
    found = waves.read(path)
    assert len(found) == 8000 == waves.header(path).samples and waves.header(path).seconds == 0.5
    np.testing.assert_allclose(found[200:-200] / 32768, tone()[200:-200], atol=0.01)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.wav"
    waves.write(path, tone())
    np.testing.assert_array_equal(waves.read(path), waves.as_int16(tone()))
    waves.write(path, np.array([2.0, -2.0, 0.0]))
    assert waves.read(path).tolist() == [32767, -32768, 0]


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".ogg"])
def test_other_formats(tmp_path, suffix):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, tone(), 16_000)
    found = waves.read(path)
    assert abs(len(found) - 8000) <= 2400
    if suffix == ".flac":
        np.testing.assert_array_equal(found, waves.as_int16(tone()))
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(Broken, match="truncated|cannot be decoded"):
            waves.read(path)


def ten_hours() -> bytes:
    """The header of a WAV file of ten hours, and none of its samples."""
    count = 10 * 3600 * 16_000 * 2
    return pcm(tone())[:4] + struct.pack("<I", count + 36) + pcm(tone())[8:40] + struct.pack("<I", count)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as sound"),
        (b"no sound at all, but text", "cannot be read as sound"),
        (pcm(np.zeros(0)), "no samples"),
        (pcm(tone())[:-1000], "truncated: 7,500 samples of the 8,000"),
        (ten_hours(), "600 minutes of sound, more than 60; split it"),
    ],
    ids=["empty", "text", "no_samples", "truncated", "ten_hours"],
)
def test_what_is_no_sound_is_refused_in_a_line(tmp_path, data, message):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(Broken, match=message) as refused:
        waves.read(path)
    assert "\n" not in str(refused.value)


def test_the_files_of_a_folder_are_sorted(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b.WAV", "in/a.flac", ".hidden.wav", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in waves.below(tmp_path)] == ["b.WAV", "a.flac"]
