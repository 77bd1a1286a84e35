"""A model, a task, data, an optimiser and an observer of one's own, in one file: the next value of a time series.

    transformer-jax train own_model.py --data.path series.csv --workdir runs/own
    transformer-jax evaluate runs/own --with own_model.py
    transformer-jax predict runs/own "0.1 0.4 0.8 1.1" --with own_model.py

The model is no Transformer: a gated linear recurrence, computed in parallel by an associative scan (Martin and Cundy
2018, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length"). On a noisy sum of two sines (tests/
test_examples.py) 200 steps take two seconds, and the squared error is 0.30 of that of repeating the last value.
B batch, T length, D width, N windows."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_jax import contracts
from transformer_jax.data import pipeline
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment, Train
from transformer_jax.nn import params
from transformer_jax.nn.params import Param


# --8<-- [start:model]
@dataclass(frozen=True)
class Config:  # this module is the family
    width: int = 32
    num_layers: int = 2


def declare(cfg: Config) -> dict[str, Any]:
    """The tree of parameters: initial values, shardings, moments, counts and checkpoints follow from it."""
    D = cfg.width
    inner = Param((D, D), ("embed", "mlp"), params.xavier)
    gate = {"kernel": inner, "bias": Param((D,), ("mlp",), params.ones)}
    block = {
        "gate": gate,
        "value": {"kernel": inner},
        "out": {"kernel": Param((D, D), ("mlp", "embed"), params.xavier)},
    }
    return {
        "embed": {"kernel": Param((1, D), (None, "embed"), params.normal(1.0))},
        "blocks": params.stack(block, cfg.num_layers),
        "head": {"kernel": Param((D, 1), ("embed", None), params.zeros)},
    }


def apply(p: Any, cfg: Config, values_BT: jax.Array) -> jax.Array:
    """The next value at each position, [B, T] -> [B, T]; in a layer, h_t = a_t h_{t-1} + (1 - a_t) v_t."""

    def combine(first: Any, second: Any) -> Any:
        return first[0] * second[0], first[1] * second[0] + second[1]

    def layer(x_BTD: jax.Array, p: Any) -> tuple[jax.Array, None]:
        a_BTD = jax.nn.sigmoid(x_BTD @ p["gate"]["kernel"] + p["gate"]["bias"])
        v_BTD = jnp.tanh(x_BTD @ p["value"]["kernel"])
        _, h_BTD = jax.lax.associative_scan(combine, (a_BTD, (1 - a_BTD) * v_BTD), axis=1)
        return x_BTD + h_BTD @ p["out"]["kernel"], None

    x_BTD, _ = jax.lax.scan(layer, values_BT[..., None] @ p["embed"]["kernel"], p["blocks"])
    return values_BT + (x_BTD @ p["head"]["kernel"])[..., 0]


# --8<-- [end:model]
# --8<-- [start:data]
@dataclass(frozen=True)
class Series:
    """The data: a column of a CSV file, whose last tenth validates."""

    path: str = "series.csv"
    column: str = "value"
    length: int = 64

    def windows(self) -> np.ndarray:
        with open(self.path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or self.column not in rows[0]:
            raise InputError(f"data.path {self.path} has no column {self.column!r}; name one with --data.column")
        values = np.array([row[self.column] for row in rows], np.float32)
        return np.lib.stride_tricks.sliding_window_view(values, self.length + 1)


@dataclass(frozen=True)
class Windows:
    """Example i: the window that begins at order[i]."""

    values_NT: np.ndarray
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {"values": self.values_NT[self.order[i]], "weights": np.ones((), np.float32)}


# --8<-- [end:data]
# --8<-- [start:task]
@dataclass(frozen=True)
class NextValue(contracts.Task):
    """Predict each value from those before it."""

    def example(self, data: Series) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {"values": (data.length + 1,), "weights": ()}
        return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}

    def prepare(self, data: Series, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> contracts.Prepared:
        windows_NT, T = data.windows(), data.length + 1
        first = int(0.9 * len(windows_NT))
        train = Windows(windows_NT, pipeline.epochs(first - T, seed))  # no value of the validation set is in it
        validation = contracts.Evaluation(Windows(windows_NT, range(first, len(windows_NT), T)))
        return contracts.Prepared(train, validation, {"windows": len(windows_NT)})

    def loss(self, p: Any, model_cfg: Config, batch: Any, *, key: jax.Array | None = None) -> Any:
        x_BT, next_BT, weights_B1 = batch["values"][:, :-1], batch["values"][:, 1:], batch["weights"][:, None]
        errors = {"squared": apply(p, model_cfg, x_BT) - next_BT, "last": x_BT - next_BT}
        weight = weights_B1.sum() * x_BT.shape[1]
        sums = {name: ((weights_B1 * error_BT**2).sum(), weight) for name, error_BT in errors.items()}
        return *sums["squared"], sums

    def best_metric(self) -> str:
        return "mean_squared_error"

    def report(self, sums: contracts.Sums, outputs: Any, evaluation: Any) -> dict[str, float]:
        squared, last = (sums[name][0] / sums[name][1] for name in ("squared", "last"))
        return {"mean_squared_error": squared, "share_of_last_value": squared / last}

    def predict(self, p: Any, model_cfg: Any, tokenizer: Any, inputs: Any, *, top: int) -> Iterator[dict[str, Any]]:
        for text in inputs:
            x_BT = jnp.array([[float(value) for value in text.split()]])
            yield {"values": text, "next": round(float(apply(p, model_cfg, x_BT)[0, -1]), 4)}


# --8<-- [end:task]
# --8<-- [start:optimizer]
@dataclass(frozen=True)
class AdaBelief:  # an optimiser of Optax's that the package does not ship
    peak_lr: float = 3e-3

    def schedule(self, total_updates: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(self.peak_lr, total_updates)

    def make(self, total_updates: int, declaration: Any) -> optax.GradientTransformation:
        return optax.adabelief(self.schedule(total_updates))


# --8<-- [end:optimizer]
# --8<-- [start:observer]
class Bell:  # an observer
    def evaluation(self, step: int, name: str, report: contracts.Report) -> None:
        print(f"ding: {report['share_of_last_value']:.2f} of the last value's error at step {step}")


# --8<-- [end:observer]
# --8<-- [start:experiment]
def experiment() -> Experiment:
    parts = {"model": Config(), "data": Series(), "task": NextValue(), "optim": AdaBelief(), "observers": (Bell(),)}
    return Experiment(**parts, train=Train(200, 16))


# --8<-- [end:experiment]
