"""Marks for the fields of the frozen dataclasses that an experiment holds: `field(default=..., metadata=LAUNCH)`.

A mark states who decides a field. A field without a mark decides what the parameters mean: a resumed run may not change
it, and a run that starts from a checkpoint takes it from there.
"""

import dataclasses
from typing import Any

LAUNCH = {"decided": "launch"}
"""How something is computed or written, not what is computed: a resumed run may change it."""
TRAINING = {"decided": "training"}
"""How a model is trained: a run that starts from a checkpoint keeps its own value. No Hugging Face folder has it."""
RUN = {"decided": "run"}
"""Decided by the run even where it starts from another model, such as the number of labels."""
NOT_STORED = {"decided": "launch", "stored": False}
"""Not written into config.json."""


def decided_by(cls: Any, *who: str) -> frozenset[str]:
    """The names of a dataclass's fields with these marks.

    Args:
      cls: the dataclass, or a value of it.
      *who: any of "launch", "training" and "run".
    """
    return frozenset(f.name for f in dataclasses.fields(cls) if f.metadata.get("decided") in who)


def fill(cfg: Any, name: str, value: Any) -> Any:
    """The dataclass `cfg` with a `value` for a field that was left at its default; unchanged if it has no such field.

    What an experiment states once is filled in elsewhere. A field with another value is kept, for a check to compare.

    Args:
      cfg: the dataclass.
      name: the field.
      value: what it is in place of its default.
    """
    default = {f.name: f.default for f in dataclasses.fields(cfg)}.get(name, dataclasses.MISSING)
    if default is dataclasses.MISSING or getattr(cfg, name) != default:
        return cfg
    return dataclasses.replace(cfg, **{name: value})
