"""The speed of a run: rows of metrics from the metrics of steps, and goodput, the share of the time spent in steps.

FLOPs are those of the model, not of the hardware: recomputation is not counted, and the masked half of causal attention
is not subtracted (PaLM, appendix B: per token 6 per parameter of a matrix product, and 12*L*N*H*T for attention). MFU
is their rate divided by the peak dense bfloat16 rate of the chips (`transformer_jax.chips`).
"""

import collections
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from transformer_jax import chips
from transformer_jax.observe.terminal import duration


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """The peak dense bfloat16 FLOP/s of all `devices`; None where it is not known, as for every CPU."""
    chip = chips.of_kind(devices[0].device_kind)
    return None if chip is None else chip.flops / chip.devices * len(devices)


class Meter:
    """Makes rows from the metrics of steps, and measures the rate of steps.

    Args:
      first_step: the step that the run resumes from; 0 for a new run.
      steps: the run's last step, for the time left.
      tokens_per_step: positions of one batch, padding included; of the targets where there are sources and targets.
      flops_per_step: the FLOPs of one batch, forward and backward.
      peak: the peak FLOP/s of all devices; None where it is not known: then rows have no MFU.
      unit: the name of what `tokens_per_step` counts, such as "images".
    """

    def __init__(
        self,
        *,
        first_step: int,
        steps: int,
        tokens_per_step: int,
        flops_per_step: float,
        peak: float | None,
        unit: str = "tokens",
    ) -> None:
        self.last_step, self.steps, self.tokens_per_step = first_step, steps, tokens_per_step
        self.flops_per_step, self.peak, self.unit = flops_per_step, peak, unit
        self.began = self.since = time.perf_counter()
        self.waited = 0.0
        self.spent: dict[str, float] = collections.defaultdict(float)  # activity -> seconds outside of steps

    def row(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """The row of `step`; it waits for its `metrics`. Rates are over the steps since the previous row."""
        values = jax.device_get(metrics)
        row = {"step": float(step)}
        row |= {name: float(total) / max(float(weight), 1e-9) for name, (total, weight) in values["sums"].items()}
        row |= {name: float(values[name]) for name in ("learning_rate", "grad_norm", "skipped")}
        now = time.perf_counter()
        seconds, waited = max(now - self.since, 1e-9), self.waited
        seconds_per_step = seconds / max(step - self.last_step, 1)
        self.since, self.last_step, self.waited = now, step, 0.0
        row["seconds_per_step"] = seconds_per_step
        row["data_wait"] = min(waited / seconds, 1.0)
        row[f"{self.unit}_per_second"] = self.tokens_per_step / seconds_per_step
        if self.peak is not None:
            row["mfu"] = self.flops_per_step / seconds_per_step / self.peak
        row["seconds_left"] = seconds_per_step * (self.steps - step)
        return row

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the wait for a batch. Its share of the time is a row's "data_wait", an upper bound of the device's
        idle time: the device may still compute the previous step."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before
        self.spent["waiting for data"] += time.perf_counter() - before

    @contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Measures an activity outside of steps, `what`, such as "evaluating" or "saving"."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.since += time.perf_counter() - before
            self.spent[what] += time.perf_counter() - before

    def stop(self) -> None:
        """Ends the measurement after the last step; later pauses are not subtracted from the time of steps."""
        self.stepping = max(0.0, time.perf_counter() - self.began - sum(self.spent.values()))

    def goodput(self, seconds: float) -> float:
        """The share of `seconds`, the run's whole time, that was spent in steps."""
        return self.stepping / seconds

    def goodput_in_words(self, seconds: float) -> str:
        """The goodput of a run of `seconds`, and the seconds of every other activity, for people."""
        pauses = ", ".join(f"{what} {spent:.1f} s" for what, spent in self.spent.items()) or "no pauses"
        return f"goodput {self.goodput(seconds):.1%}: the share of {duration(seconds)} spent in steps; {pauses}"
