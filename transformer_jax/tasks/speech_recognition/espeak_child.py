"""A program of its own: speaks lines with libespeak-ng and writes the samples to stdout.

    python espeak_child.py LIBRARY DATA < requests.json > samples

espeak-ng is GPL-3.0-or-later: it is loaded here, in a process of its own that imports nothing of this package, and
nothing else loads it. Stdin is a JSON list of [voice, words a minute, pitch, text]; stdout begins with a line of JSON,
{"rate": Hz}, and has for each request the number of samples, uint32, and the samples, int16, both little-endian.
"""

import array
import ctypes
import json
import struct
import sys

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: speech is given to a callback, not played
RATE, PITCH = 1, 3  # espeak_PARAMETER
UTF8 = 1  # espeakCHARS_UTF8


def main(library: str, data: str) -> None:
    """Speaks the lines of stdin with `library` and its folder of `data`, as the file's docstring states."""
    espeak = ctypes.CDLL(library)
    rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), 0)
    if rate <= 0:
        raise SystemExit(f"espeak_Initialize returned {rate}")
    spoken = array.array("h")

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events):  # type: ignore[no-untyped-def]
        if samples and count > 0:
            spoken.frombytes(ctypes.string_at(samples, 2 * count))
        return 0

    espeak.espeak_SetSynthCallback(receive)
    out = sys.stdout.buffer
    out.write(json.dumps({"rate": rate}).encode() + b"\n")
    for voice, speed, pitch, text in json.load(sys.stdin):
        del spoken[:]
        if espeak.espeak_SetVoiceByName(voice.encode()):
            raise SystemExit(f"espeak-ng has no voice {voice}")
        espeak.espeak_SetParameter(RATE, speed, 0)
        espeak.espeak_SetParameter(PITCH, pitch, 0)
        encoded = text.encode() + b"\0"
        espeak.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, UTF8, None, None)
        out.write(struct.pack("<I", len(spoken)))
        out.write(spoken.tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
