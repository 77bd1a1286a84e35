"""What anyone may bring, and the values that pass between rooms."""

from typing import Any

from flax import struct


@struct.dataclass
class TrainState:
    """What a step reads and writes. All arrays, so the whole of it can be donated.

    The same structure carries what there is to say about each leaf: shapes and dtypes (`abstract`), shardings.

    Fields:
      step: int32 scalar, steps taken, the skipped ones included.
      params: the family's parameter tree, float32.
      opt_state: the optax state.
      ema: the exponential moving average of `params`, or None when it is off.
      skipped: int32 scalar, steps whose loss or gradient was not finite, or whose loss was a spike to be skipped, and
        that changed nothing.
      recent: float32 [n], the last n finite losses, the newest last, NaN where there were none yet; None when spikes
        are not looked for.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    skipped: Any
    recent: Any = None
