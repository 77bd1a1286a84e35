"""TensorBoard's event files in the run's folder."""

import math
import time
from collections.abc import Mapping
from typing import Any

from transformer_jax import extras
from transformer_jax.contracts import RunFacts
from transformer_jax.observe.scalars import Scalars

FLUSH_SECONDS = 120.0


class TensorBoard(Scalars):
    """Writes FOLDER/events.out.tfevents...: `train/loss`, `validation/...`, `test/...`."""

    def start(self, run: RunFacts) -> None:
        extras.need("tensorboardX", "TensorBoard's event files")
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # SummaryWriter is not used: its thread dies when the disk is full, and the caller then waits forever.
        self.events, self.flushed = EventsWriter(str(run.folder / "events")), time.monotonic()
        # TensorBoard then drops the later steps of a killed run.
        start = SessionLog(status=SessionLog.START)
        self.events.write_event(Event(wall_time=time.time(), step=run.first_step + 1, session_log=start))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        extras.need("tensorboardX", "TensorBoard's event files")
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in numbers.items():
            if math.isfinite(value):
                self.events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.events.flush()
            self.flushed = time.monotonic()

    def save(self, step: int) -> None:
        self.events.flush()

    def end(self, results: Mapping[str, Any]) -> None:
        self.events.close()
