"""The waves whose features `tools/fixtures/make_sound.py` stores, made by a formula."""

import numpy as np

RATE = 16_000


def waves() -> dict[str, np.ndarray]:
    """{name: float32 [W]} at 16 kHz."""
    speech = like_speech(31 * RATE)
    return {
        "silence": np.zeros(3 * RATE, np.float32),
        "one sample": np.array([0.5], np.float32),
        "31 s": speech,
        "clipped": np.clip(8 * speech[: 4 * RATE], -1, 1),
        "quiet": speech[: 5 * RATE + 77] / 2000,
    }


def like_speech(length: int) -> np.ndarray:
    """A voice's harmonics that glide and swell, over a little noise; float32 in [-1, 1]."""
    t = np.arange(length) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    voice = sum(np.sin(n * phase) / n ** (1.2 + 0.5 * np.sin(2 * np.pi * 1.3 * t)) for n in range(1, 24))
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 2.1 * t)
    noise = np.random.default_rng(5).random(length) - 0.5
    return (0.2 * swell * voice + 0.01 * noise).astype(np.float32)


def utterances(count: int, length: int) -> list[np.ndarray]:
    """`count` different waves, int16 [length]: parts of one voice, each with a tone of its own."""
    speech, t = like_speech(length + 4000 * count), np.arange(length) / RATE
    made = []
    for i in range(count):
        tone = 0.05 * (i % 4) * np.sin(2 * np.pi * (300 + 170 * i) * t)
        wave = (0.2 + 0.8 * i / count) * speech[4000 * i : 4000 * i + length] + tone
        made.append(np.clip(np.rint(32767 * wave), -32768, 32767).astype(np.int16))
    return made
