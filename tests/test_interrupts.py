"""Ctrl-C in a program: one line and exit code 130, whatever the program is doing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transformer_jax import interrupts

ROOT = Path(__file__).parents[1]


# Handles Ctrl-C even where pytest was started in the background, which ignores it. Not `preexec_fn`: it forks, and
# forking a process that has imported JAX is a warning.
FOREGROUND = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, sys.argv[1:])
"""


def program(*arguments, code=""):
    """A process of Python in the foreground.

    Args:
      arguments: a module and its arguments, or none.
      code: run in place of a module.
    """
    interpreter = [sys.executable, *(["-c", code] if code else ["-m"]), *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", FOREGROUND, *interpreter],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("library", ["numpy", "jaxlib"])
@pytest.mark.parametrize("command", [("transformer_jax", "doctor"), ("experiments.vit.digits",)])
def test_while_modules_are_imported(command, library):
    running = program(*command)
    ends = time.monotonic() + 60
    while library not in Path(f"/proc/{running.pid}/maps").read_text() and time.monotonic() < ends:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    printed, said = running.communicate(timeout=60)
    assert (running.returncode, printed, said) == (130, "", f"{interrupts.LINE}\n")


START = """
import sys
sys.argv = ["-m"]
import transformer_jax
from transformer_jax import interrupts
from transformer_jax.cli import main as command
import signal
command.COMMANDS = ("mine",)
command.importlib.import_module = lambda name: sys.modules["__main__"]
"""


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("signal.raise_signal(signal.SIGINT)", 130, [interrupts.LINE]),
        (  # a library in C++ calls Python, and makes one exception of another
            "\n try: signal.raise_signal(signal.SIGINT)\n except BaseException: raise RuntimeError('INTERNAL')",
            130,
            [interrupts.LINE],
        ),
        (  # whoever holds files cleans up
            "\n try: signal.raise_signal(signal.SIGINT)\n finally: print('cleaned', file=sys.stderr)",
            130,
            ["cleaned", interrupts.LINE],
        ),
        ("\n class A: __del__ = lambda _: signal.raise_signal(signal.SIGINT)\n A(); return 0", 130, [interrupts.LINE]),
        ("return 0", 0, []),
    ],
)
def test_in_a_command(body, code, said):
    text = f"{START}\ndef main(arguments):\n {body}\ncode = command.main(['mine'])\n"
    running = program(code=f"{text}signal.raise_signal(signal.SIGINT)  # too late: the work is done\nsys.exit(code)")
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err.splitlines()) == (code, said)


def test_importing_the_library_installs_nothing():
    code = "import signal, transformer_jax, experiments; signal.raise_signal(signal.SIGINT)"
    running = program(code=code)
    _, err = running.communicate(timeout=60)
    assert err.splitlines()[-1] == "KeyboardInterrupt"


def test_one_that_was_lost_ends_the_run_at_its_first_step(monkeypatch):
    from transformer_jax.train.stop import StopSignals

    monkeypatch.setattr(interrupts, "came", True)
    with StopSignals() as stop:
        assert stop() and stop.number == signal.SIGINT
