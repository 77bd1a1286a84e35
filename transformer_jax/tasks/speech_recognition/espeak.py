"""Speech that every machine can make: lines spoken by espeak-ng, in a process of its own, once.

The same sequence of requests gives the same samples in a fresh process, and other samples in a used one. So a whole set
is spoken by one process, in order, into a file that is named by the hash of the requests and of the library.

The package `espeakng_loader` brings the library. It is GPL-3.0-or-later, so no extra names it and nothing imports it.
"""

import hashlib
import importlib.util
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer_jax import sound
from transformer_jax.data import tokens, waves
from transformer_jax.errors import InputError, RunError

FORMAT = 1
CHILD = Path(__file__).with_name("espeak_child.py")


class Line(NamedTuple):
    """What is spoken, and how.

    Attributes:
      voice: the voice of espeak-ng, with a variant: "en-us+f2".
      rate: words a minute, 80 to 450.
      pitch: 0 to 99.
      text: in the voice's language.
    """

    voice: str
    rate: int
    pitch: int
    text: str


def speak(lines: Sequence[Line]) -> list[np.ndarray]:
    """The samples of each line, int16 [W] at `waves.RATE`, memory-mapped; they are spoken on first use.

    Args:
      lines: spoken in this order.

    Raises:
      InputError: espeakng_loader is not installed.
      RunError: the process that speaks fails.
    """
    library, data = _found()
    key = hashlib.sha256(json.dumps([FORMAT, library.stat().st_size, lines]).encode()).hexdigest()[:32]
    folder = tokens.cache_dir() / "spoken"
    path = folder / f"{key}.npz"
    if not path.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        print(f"espeak-ng speaks {len(lines):,} lines into {path}", file=sys.stderr)
        spoken = [
            waves.as_int16(sound.resample(sound.as_float(one)[None], rate, waves.RATE)[0])
            for rate, one in _run(library, data, lines)
        ]
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".npz", delete=False) as file:
            np.savez(file, samples=np.concatenate(spoken), sizes=np.array([len(one) for one in spoken]))
        Path(file.name).rename(path)
    with np.load(path) as held:
        samples, sizes = held["samples"], held["sizes"]
    return np.split(samples, np.cumsum(sizes)[:-1])


def _found() -> tuple[Path, Path]:
    """The library and the folder of its data, without importing the package that brings them."""
    spec = importlib.util.find_spec("espeakng_loader")
    if spec is None or spec.origin is None:
        raise InputError(
            "the spoken numbers: espeakng_loader is not installed; pip install espeakng-loader (it is GPL-3.0, so no "
            "extra of this package brings it)"
        )
    folder = Path(spec.origin).parent
    names = [
        path for pattern in ("*espeak-ng.so", "*espeak-ng.dylib", "*espeak-ng.dll") for path in folder.glob(pattern)
    ]
    if not names:
        raise InputError(f"espeakng_loader has no library of espeak-ng in {folder}; install it again")
    return names[0], folder / "espeak-ng-data"


def _run(library: Path, data: Path, lines: Sequence[Line]) -> list[tuple[int, np.ndarray]]:
    """(samples a second, int16 samples) of each line."""
    done = subprocess.run(
        [sys.executable, "-I", str(CHILD), str(library), str(data)],
        input=json.dumps(lines).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RunError(
            f"espeak-ng failed with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}"
        )
    first, _, rest = done.stdout.partition(b"\n")
    rate, at, spoken = int(json.loads(first)["rate"]), 0, []
    while at < len(rest):
        (count,) = struct.unpack_from("<I", rest, at)
        spoken.append((rate, np.frombuffer(rest, "<i2", count, at + 4)))
        at += 4 + 2 * count
    if len(spoken) != len(lines):
        raise RunError(f"espeak-ng spoke {len(spoken)} of {len(lines)} lines")
    return spoken
