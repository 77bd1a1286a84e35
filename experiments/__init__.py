"""One short module per recipe; each says what it reproduces, the command, hardware, time and the expected number."""

import os

from transformer_jax import interrupts

# Before jaxlib is loaded: its CPU backend (0.10.1) prints pages of false alarms about the machine's features whenever a
# compiled program comes from the cache. What goes wrong for real is raised as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

interrupts.install_in("-m")
