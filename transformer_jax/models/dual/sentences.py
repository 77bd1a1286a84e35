"""The folders of sentence-transformers: one text tower, pooling, and a dense layer and normalisation if they have them.

What pools and normalises is in no config.json, so other libraries that read that file alone compute other embeddings.
The tower itself is a folder of its own model type, such as BERT's or MPNet's.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import models
from transformer_jax.errors import InputError
from transformer_jax.hub import modules
from transformer_jax.hub.mapping import Row, Table
from transformer_jax.models import bert, dual
from transformer_jax.tasks.contrastive import Contrastive

MODEL_TYPES = (modules.MODEL_TYPE,)

# Our pooling -> the value of "pooling_mode" in sentence-transformers. Older files have one true or false for each.
POOLINGS = {"first": "cls", "mean": "mean", "last": "lasttoken"}
RESTS: tuple[list[str], ...] = ([], ["Dense"], ["Normalize"], ["Dense", "Normalize"])  # the modules after the pooling
ACTIVATIONS = {"none": "torch.nn.modules.linear.Identity", "tanh": "torch.nn.modules.activation.Tanh"}
OLD = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "lasttoken": "pooling_mode_lasttoken"}


def table(cfg: dual.Config) -> Table:
    """Where each leaf is stored: the tower's own table."""
    inner = _format(cfg).table(cfg.left)
    dense = [Row("left_projection/kernel", f"{modules.DENSE}linear.weight", transpose=True)] if cfg.projected else []
    dense += [Row("left_projection/bias", f"{modules.DENSE}linear.bias")] if dense and cfg.projection_bias else []
    return inner._replace(rows=[*(row._replace(leaf=f"left/{row.leaf}") for row in inner.rows), *dense])


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> dual.Config:
    """The config that the folder's files describe."""
    kind = given["transformer"].get("model_type")
    format = models.format_of(str(kind))
    tower = None if format is None else format.read_config(given["transformer"], names, where)
    if not isinstance(tower, bert.Config):
        raise InputError(f'{where}: "model_type" is {kind!r}; of sentence-transformers, encoders are supported')
    kinds = [one["type"] for one in given["modules"]]
    if kinds not in [["Transformer", "Pooling", *rest] for rest in RESTS]:
        raise InputError(
            f"{where}: modules.json has the modules {', '.join(kinds)}; supported are Transformer, Pooling, and after "
            "them Dense and Normalize, in this order"
        )
    tower = dataclasses.replace(tower, pooling=_pooling(given["modules"][1], where))
    dense = _dense(given["modules"][2], tower, where) if "Dense" in kinds else {"width": tower.width, "projected": ()}
    most = given.get("max_seq_length") or tower.max_length
    return dual.Config(
        left=tower,
        **dense,
        normalize="Normalize" in kinds,
        learned_scale=False,
        scale=20.0,
        text_length=min(most, tower.max_length),
    )


def _pooling(module: Mapping[str, Any], where: str) -> Any:
    """Our name of a module's pooling."""
    asked = module.get("pooling_mode")
    if asked is None:
        modes = [name for name, value in module.items() if name.startswith("pooling_mode_") and value is True]
        asked = next((name for name, old in OLD.items() if modes == [old]), modes)
    asked = asked[0] if isinstance(asked, list) and len(asked) == 1 else asked
    ours = next((name for name, theirs in POOLINGS.items() if theirs == asked), None)
    if ours is None:
        raise InputError(f"{where}: the pooling is {asked!r}; supported is one of {', '.join(POOLINGS.values())}")
    if module.get("include_prompt", True) is not True:
        raise InputError(f'{where}: "include_prompt" is {module["include_prompt"]!r}; only true is supported')
    return ours


def _dense(module: Mapping[str, Any], tower: bert.Config, where: str) -> dict[str, Any]:
    """Our settings of a Dense module."""
    ours = next((name for name, theirs in ACTIVATIONS.items() if theirs == module.get("activation_function")), None)
    if ours is None:
        raise InputError(
            f"{where}: the Dense module has the activation {module.get('activation_function')!r}; supported are "
            f"{', '.join(ACTIVATIONS.values())}"
        )
    if module.get("in_features") != tower.width or type(module.get("out_features")) is not int:
        raise InputError(
            f"{where}: the Dense module maps {module.get('in_features')!r} to {module.get('out_features')!r} features, "
            f"and the pooled states have {tower.width}"
        )
    for name in ("module_input_name", "module_output_name"):
        if module.get(name) not in (None, "sentence_embedding"):
            raise InputError(f"{where}: the Dense module's {name} is {module[name]!r}; supported is the pooled state")
    return {
        "width": module["out_features"],
        "projected": ("left",),
        "projection_bias": bool(module.get("bias", True)),
        "projection_activation": ours,
    }


def holds(cfg: Any) -> bool:
    """Whether this is the format to write a config in."""
    is_one = isinstance(cfg, dual.Config) and cfg.right is None and isinstance(cfg.left, bert.Config)
    return is_one and cfg.projected in ((), ("left",))


def write_config(cfg: dual.Config) -> dict[str, Any]:
    """The object that `hub.modules` writes for `cfg`."""
    if cfg.left.pooling not in POOLINGS:
        raise InputError(f"sentence-transformers has no pooling {cfg.left.pooling!r}, so this cannot be exported")
    pooling = {"embedding_dimension": cfg.left.width, "word_embedding_dimension": cfg.left.width}
    pooling |= {old: theirs == POOLINGS[cfg.left.pooling] for theirs, old in OLD.items()}
    made = [{"type": "Transformer"}, {"type": "Pooling"} | pooling]
    if cfg.projected:
        dense = {"in_features": cfg.left.width, "out_features": cfg.width, "bias": cfg.projection_bias}
        made.append({"type": "Dense"} | dense | {"activation_function": ACTIVATIONS[cfg.projection_activation]})
    return {
        "model_type": modules.MODEL_TYPE,
        "transformer": _format(cfg).write_config(_plain(cfg.left)),
        "modules": made + [{"type": "Normalize"}] * cfg.normalize,
        "max_seq_length": cfg.max_length,
    }


def _plain(tower: bert.Config) -> bert.Config:
    """The tower as its own format knows it, which pools the first token."""
    return dataclasses.replace(tower, pooling="first")


def _format(cfg: dual.Config) -> Any:
    """The format of the tower."""
    tower = _plain(cfg.left)
    return next(format for format in models.formats() if format.MODEL_TYPES != MODEL_TYPES and format.holds(tower))


def task(folder: Path, cfg: dual.Config) -> Contrastive:
    """Contrastive learning of texts."""
    return Contrastive(max_scale=0.0)
