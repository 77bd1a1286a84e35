"""Optimisers as values: frozen dataclasses that make an Optax transformation (`contracts.Optimizer`).

AdamW(peak_lr=6e-4)                                 its settings; `Rates` has those that all of them share
optimizer.schedule(total_updates)                   count of updates applied so far -> learning rate
make(optimizer, total_updates, declaration)         the transformation, which skips steps that are not finite
lr_scales(optimizer, declaration)                   the factor of each parameter's learning rate
freeze(params, scales)                              the same values, without gradients where the factor is 0
"""

from transformer_jax.optim.adafactor import Adafactor
from transformer_jax.optim.adamw import AdamW
from transformer_jax.optim.groups import freeze
from transformer_jax.optim.lamb import Lamb
from transformer_jax.optim.momentum import Lion, Sgd
from transformer_jax.optim.muon import Muon
from transformer_jax.optim.rates import Rates
from transformer_jax.optim.schedule_free import ScheduleFree
from transformer_jax.optim.transform import Skippable, around, by_layer, lr_scales, make, skippable

Optim = AdamW  # the former name, which config files and scripts still use

__all__ = [
    "Adafactor",
    "AdamW",
    "Lamb",
    "Lion",
    "Muon",
    "Optim",
    "Rates",
    "ScheduleFree",
    "Sgd",
    "Skippable",
    "around",
    "by_layer",
    "freeze",
    "lr_scales",
    "make",
    "skippable",
]
