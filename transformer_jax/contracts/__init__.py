"""The contracts: a model, a task, a source, a tokenizer, an optimiser, an observer, a Hugging Face format.

Each contract is a small Protocol. A value that has its methods satisfies it; a class that inherits from it also gets
the methods that have a default. Nothing is registered: an experiment holds the value, and the parts that ship with the
package satisfy the same contracts. Values that pass between rooms, such as the state of a run, are here as well.
"""

from typing import Any

from transformer_jax.contracts.fields import LAUNCH, NOT_STORED, RUN, TRAINING, decided_by, fill
from transformer_jax.contracts.model import Family, Format
from transformer_jax.contracts.task import Answers, Predict, Task
from transformer_jax.contracts.text import Source, Tokenizer, TokenizerSpec
from transformer_jax.contracts.training import EvaluatesOther, Observer, Optimizer, ScalesRates
from transformer_jax.contracts.values import (
    Evaluation,
    Frozen,
    Input,
    Outputs,
    Prepared,
    Progress,
    Query,
    Report,
    Row,
    RunFacts,
    Special,
    Sums,
    TrainState,
    no_progress,
)
from transformer_jax.errors import InputError

__all__ = [
    "LAUNCH",
    "NOT_STORED",
    "RUN",
    "TRAINING",
    "Answers",
    "EvaluatesOther",
    "Evaluation",
    "Family",
    "Format",
    "Frozen",
    "Input",
    "Observer",
    "Optimizer",
    "Outputs",
    "Predict",
    "Prepared",
    "Progress",
    "Query",
    "Report",
    "Row",
    "RunFacts",
    "ScalesRates",
    "Source",
    "Special",
    "Sums",
    "Task",
    "Tokenizer",
    "TokenizerSpec",
    "TrainState",
    "decided_by",
    "defaults",
    "fill",
    "missing",
    "no_progress",
    "require_data",
    "required",
]


def missing(value: Any, contract: Any) -> list[str]:
    """The methods without a default that `value`, or a type, lacks of `contract`."""
    cls = value if isinstance(value, type) else type(value)
    own = {name: getattr(cls, name, None) for name in required(contract)}
    return [name for name, method in own.items() if not callable(method) or method is vars(contract).get(name)]


def require_data(data: Any, by: str, fields: tuple[str, ...]) -> None:
    """Checks that an experiment's `data`, of any type, has what a task reads.

    Args:
      data: the experiment's.
      by: the task, for the message.
      fields: the names of what it reads.

    Raises:
      InputError: with what is missing.
    """
    if lacking := [name for name in fields if not hasattr(data, name)]:
        raise InputError(f"{by} needs data with {', '.join(fields)}; {type(data).__name__} has no {', '.join(lacking)}")


def defaults(contract: Any) -> tuple[str, ...]:
    """The names of the methods and constants of `contract` that have a default."""
    return tuple(name for name in vars(contract) if not name.startswith("_") and name not in required(contract))


def required(contract: Any) -> tuple[str, ...]:
    """The names of the methods of `contract` that have no default; all methods, for a contract defined elsewhere."""
    known: dict[Any, tuple[str, ...]] = {
        Task: ("example", "prepare", "loss", "report"),
        Source: ("documents",),
        TokenizerSpec: ("build",),
        Optimizer: ("schedule", "make"),
        Observer: (),
        Family: ("declare",),
        Format: ("read_config", "holds", "write_config", "table", "task"),
    }
    if contract in known:
        return known[contract]
    return tuple(name for name, member in vars(contract).items() if name[0] != "_" and callable(member))
