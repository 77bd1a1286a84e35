"""Gemma (2024) and Gemma 2 (2024) as Hugging Face stores them: `model_type: gemma` and `gemma2`.

A Llama whose embeddings are scaled by sqrt(width) and whose norms' scales are stored less 1. Gemma 2 norms the output
of each sublayer too, alternates local and global layers, divides the attention scores by a number of its own, and caps
them and the logits softly. Its `post_attention_layernorm` is the norm of the attention's output; in Gemma, as in
Llama, the same name is the norm before the MLP.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table
from transformer_jax.models import gpt
from transformer_jax.models.gpt import llama

ARCHITECTURES = {"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM"}
MODEL_TYPES = tuple(ARCHITECTURES)

LAYER = "model.layers.{}"
NORMS = (
    Row("blocks/attention/output_norm/scale", f"{LAYER}.post_attention_layernorm.weight"),
    Row("blocks/mlp_norm/scale", f"{LAYER}.pre_feedforward_layernorm.weight"),
    Row("blocks/mlp/output_norm/scale", f"{LAYER}.post_feedforward_layernorm.weight"),
)


def _table(*changed: Row) -> Table:
    leaves = {row.leaf for row in changed}
    rows = (*(row for row in llama.TABLE.rows if row.leaf not in leaves), *changed)
    return llama.TABLE._replace(rows=[row._replace(plus=float("norm" in row.leaf)) for row in rows])


TABLES = {"gemma": _table(), "gemma2": _table(*NORMS)}

HEAD_DIM = 256  # the default where config.json states none
WINDOW = 4096  # likewise
GELU = "gelu_pytorch_tanh"
ACTIVATION = {"gemma": "hidden_act", "gemma2": "hidden_activation"}  # what each calls it, whatever the other name says
DEFAULTS = llama.DEFAULTS | {"hidden_act": GELU, "tie_word_embeddings": True}
OF_GEMMA_2 = {
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "layer_types": [],
}
NEUTRAL = llama.NEUTRAL | {"use_bidirectional_attention": False, "hidden_activation": GELU}
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # null: none
LOCAL, GLOBAL = "sliding_attention", "full_attention"


task = llama.task


def table(cfg: gpt.Config) -> Table:
    """The table of this format."""
    return TABLES["gemma2" if cfg.output_norm else "gemma"]


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> gpt.Config:
    """The config of a config.json's object.

    Raises:
      InputError: for what `gpt` does not compute.
    """
    known, fields = dict(given), {"scale_embedding": True}
    if known.get("hidden_act") == "gelu":  # the first files mean the approximation
        del known["hidden_act"]
    if given["model_type"] == "gemma":
        s = settings.read(known, DEFAULTS, NEUTRAL, where)
        return gpt.Config(**llama.read_fields(s, where, HEAD_DIM) | fields)
    known |= {name: 0.0 for name in CAPS if known.get(name, 0) is None}
    known["hidden_act"], known["hidden_activation"] = (
        known.get("hidden_activation", GELU),
        known.get("hidden_act", GELU),
    )
    window = known.pop("sliding_window", WINDOW)
    s = settings.read(known, DEFAULTS | OF_GEMMA_2, NEUTRAL, where)
    fields |= _windows(window, s["layer_types"], s["num_hidden_layers"], where) | {
        "output_norm": True,
        "score_width": s["query_pre_attn_scalar"],
        "score_cap": s["attn_logit_softcapping"],
        "logit_cap": s["final_logit_softcapping"],
    }
    return gpt.Config(**llama.read_fields(s, where, HEAD_DIM) | fields)


def _windows(window: Any, kinds: list[str], num_layers: int, where: str) -> dict[str, int]:
    """`window` and `global_every` of Gemma 2's layers: every second one is global."""
    if type(window) is not int or window < 1:
        raise InputError(f'{where}: "sliding_window" is {window!r}; it must be a positive integer')
    if kinds and kinds != _kinds(num_layers):
        raise InputError(
            f'{where}: "layer_types" is {kinds!r}; supported is "{LOCAL}" and "{GLOBAL}" in turn, '
            f"for {num_layers} layers"
        )
    return {"window": window, "global_every": 2}


def _kinds(num_layers: int) -> list[str]:
    return [GLOBAL if i % 2 else LOCAL for i in range(num_layers)]


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, gpt.Config) and cfg.position == "rotary" and cfg.scale_embedding


def write_config(cfg: gpt.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that these models have."""
    model_type = "gemma2" if cfg.output_norm else "gemma"
    activation = settings.THEIR_ACTIVATIONS[cfg.activation]
    activation = {"gelu_new": "gelu_pytorch_tanh"}.get(activation, activation)
    written = llama.write_fields(cfg, model_type, ARCHITECTURES[model_type]) | {
        "head_dim": cfg.head_width,
        ACTIVATION[model_type]: activation,
    }
    if model_type == "gemma":
        return written
    return written | {
        "query_pre_attn_scalar": round(cfg.score_scale**-2),
        "attn_logit_softcapping": cfg.score_cap or None,
        "final_logit_softcapping": cfg.logit_cap or None,
        "sliding_window": cfg.window or WINDOW,
        "layer_types": _kinds(cfg.num_layers),
    }
