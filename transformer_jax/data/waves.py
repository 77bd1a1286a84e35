"""Sound files as the models of speech read them: one channel, 16,000 samples a second, int16.

    samples_W = waves.read(Path("a.flac"))              # decoded, mixed to one channel, resampled
    seconds = waves.header(Path("a.flac")).seconds      # only the header is read
    waves.write(Path("b.wav"), samples_W)

WAV is read by the standard library, FLAC, MP3 and Ogg by `soundfile`. What is not sound, is truncated, or is longer
than `LONGEST` is `Broken`, with one line that says why.

Letters: W samples, C channels.
"""

import io
import math
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformer_jax import extras, files, sound
from transformer_jax.errors import first_line

RATE = 16_000
"""Samples a second, in Hz."""
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
LONGEST = 3600
"""Seconds of a file; its samples must fit into memory, in float32 and at the file's own rate."""
MAX_RATE = 192_000
MAX_CHANNELS = 8
MAX_BYTES = 2**31
SAMPLE_WIDTHS = (1, 2, 3, 4)  # bytes of PCM


class Broken(Exception):
    """A file that has no sound to read; the message says why."""


@dataclass(frozen=True)
class Header:
    """What a sound file says of itself."""

    rate: int
    """Samples a second, in Hz."""
    channels: int
    frames: int
    """Samples of each channel."""

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.frames / self.rate

    @property
    def samples(self) -> int:
        """How many samples `read` returns."""
        return math.ceil(self.frames * RATE / self.rate)


def below(folder: Path) -> list[Path]:
    """The sound files below a folder, sorted by path; hidden files are ignored.

    Args:
      folder: searched with all its subfolders.
    """
    return sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())


def header(path: Path) -> Header:
    """The header of a sound file.

    Args:
      path: a file whose name ends in one of `SUFFIXES`.

    Raises:
      Broken: it cannot be read, is not sound, is empty, or is too long.
    """
    try:
        if _is_wav(path):
            with files.opened(path, limit=MAX_BYTES) as file, wave.open(file) as opened:
                found = Header(opened.getframerate(), opened.getnchannels(), opened.getnframes())
                if opened.getsampwidth() not in SAMPLE_WIDTHS:
                    raise Broken(f"{8 * opened.getsampwidth()} bits a sample; write it as PCM of 8 to 32 bits")
        else:
            extras.need("soundfile", f"{path.suffix} files")
            import soundfile

            info = soundfile.info(str(path))
            found = Header(info.samplerate, info.channels, info.frames)
    except (Broken, extras.Missing):
        raise
    except Exception as error:  # decoders raise many types for damaged bytes
        raise Broken(f"cannot be read as sound ({first_line(error)})") from None
    return _checked(found)


def _checked(found: Header) -> Header:
    if not 1 <= found.rate <= MAX_RATE or not 1 <= found.channels <= MAX_CHANNELS:
        raise Broken(f"{found.channels} channels of {found.rate} samples a second, which no recording has")
    if found.frames < 1:
        raise Broken("no samples")
    if found.seconds > LONGEST:
        raise Broken(f"{found.seconds / 60:,.0f} minutes of sound, more than {LONGEST // 60}; split it")
    return found


def read(path: Path) -> np.ndarray:
    """The samples of a sound file, int16 [W], of one channel at `RATE`: the mean of its channels, resampled.

    Args:
      path: a file whose name ends in one of `SUFFIXES`.

    Raises:
      Broken: as `header`, and where the file ends before the samples that its header states.
    """
    found = header(path)
    try:
        mono_W = _wav(path) if _is_wav(path) else _other(path)
    except Exception as error:
        raise Broken(f"cannot be decoded ({first_line(error)})") from None
    if len(mono_W) < found.frames:
        raise Broken(f"truncated: {len(mono_W):,} samples of the {found.frames:,} that its header states")
    return as_int16(sound.resample(mono_W[None], found.rate, RATE)[0])


def tried(path: Path) -> np.ndarray | str:
    """The samples of a sound file as `read` returns them, or why there are none.

    Args:
      path: a file whose name ends in one of `SUFFIXES`.
    """
    try:
        return read(path)
    except (OSError, Broken) as error:
        return str(error)


def _is_wav(path: Path) -> bool:
    return path.suffix.lower() == ".wav"


def _wav(path: Path) -> np.ndarray:
    """float32 [W] in [-1, 1): the mean of the channels of a file of PCM."""
    with files.opened(path, limit=MAX_BYTES) as file, wave.open(file) as opened:
        width, channels, data = opened.getsampwidth(), opened.getnchannels(), opened.readframes(opened.getnframes())
    whole = len(data) // (width * channels) * width * channels
    if width == 1:  # unsigned
        values = np.frombuffer(data[:whole], np.uint8).astype(np.float32) - 128.0
    elif width == 3:  # three bytes as the upper three of four
        padded = np.zeros((whole // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data[:whole], np.uint8).reshape(-1, 3)
        values = padded.view("<i4")[:, 0].astype(np.float32) / 256.0
    else:
        values = np.frombuffer(data[:whole], f"<i{width}").astype(np.float32)
    return values.reshape(-1, channels).mean(axis=1) / 2.0 ** (8 * width - 1)


def _other(path: Path) -> np.ndarray:
    extras.need("soundfile", f"{path.suffix} files")
    import soundfile

    values_WC, _ = soundfile.read(str(path), dtype="float32", always_2d=True)
    return values_WC.mean(axis=1)


def as_int16(values_W: np.ndarray) -> np.ndarray:
    """int16 samples of floats in [-1, 1]; louder ones are clipped.

    Args:
      values_W: floats.
    """
    return np.clip(np.rint(values_W * 32768.0), -32768, 32767).astype(np.int16)


def write(path: Path, samples_W: np.ndarray, rate: int = RATE) -> None:
    """Writes a WAV file of one channel, whole or not at all.

    Args:
      path: the path of the file; its folder must exist.
      samples_W: int16, or floats in [-1, 1].
      rate: in Hz.
    """
    samples_W = samples_W if samples_W.dtype == np.int16 else as_int16(np.asarray(samples_W))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes(samples_W.astype("<i2").tobytes())
    files.write(path, buffer.getvalue())
