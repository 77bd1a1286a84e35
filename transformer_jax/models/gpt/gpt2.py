"""GPT-2 (Radford et al. 2019) as Hugging Face stores it: `model_type: gpt2`.

Its kernels are `Conv1D`, stored [in, out] as ours are; query, key and value are one kernel [D, 3 D]. Trunks saved
alone, the published `gpt2` among them, leave out the `transformer.` of the names.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformer_jax import hub
from transformer_jax.data.tokenizers import items
from transformer_jax.errors import InputError
from transformer_jax.hub import settings
from transformer_jax.hub.mapping import Row, Table
from transformer_jax.models import gpt
from transformer_jax.tasks.causal_lm import CausalLM, Sample
from transformer_jax.tasks.next_item import NextItem

MODEL_TYPES = ("gpt2",)
SIGNS = ("n_embd", "n_head")

TABLE = Table(
    rows=(
        Row("embed/token/embedding", "transformer.wte.weight"),
        Row("embed/position/embedding", "transformer.wpe.weight"),
        Row("blocks/attention_norm/scale", "transformer.h.{}.ln_1.weight"),
        Row("blocks/attention_norm/bias", "transformer.h.{}.ln_1.bias"),
        Row("blocks/attention/query/kernel", "transformer.h.{}.attn.c_attn.weight", part=0, parts=3),
        Row("blocks/attention/key/kernel", "transformer.h.{}.attn.c_attn.weight", part=1, parts=3),
        Row("blocks/attention/value/kernel", "transformer.h.{}.attn.c_attn.weight", part=2, parts=3),
        Row("blocks/attention/query/bias", "transformer.h.{}.attn.c_attn.bias", part=0, parts=3),
        Row("blocks/attention/key/bias", "transformer.h.{}.attn.c_attn.bias", part=1, parts=3),
        Row("blocks/attention/value/bias", "transformer.h.{}.attn.c_attn.bias", part=2, parts=3),
        Row("blocks/attention/out/kernel", "transformer.h.{}.attn.c_proj.weight"),
        Row("blocks/attention/out/bias", "transformer.h.{}.attn.c_proj.bias"),
        Row("blocks/mlp_norm/scale", "transformer.h.{}.ln_2.weight"),
        Row("blocks/mlp_norm/bias", "transformer.h.{}.ln_2.bias"),
        Row("blocks/mlp/up/kernel", "transformer.h.{}.mlp.c_fc.weight"),
        Row("blocks/mlp/up/bias", "transformer.h.{}.mlp.c_fc.bias"),
        Row("blocks/mlp/down/kernel", "transformer.h.{}.mlp.c_proj.weight"),
        Row("blocks/mlp/down/bias", "transformer.h.{}.mlp.c_proj.bias"),
        Row("final_norm/scale", "transformer.ln_f.weight"),
        Row("final_norm/bias", "transformer.ln_f.bias"),
        Row("head/kernel", "lm_head.weight", transpose=True),
    ),
    prefix="transformer.",
    buffers=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask
    tied={"lm_head.weight": "transformer.wte.weight"},
)

# Transformers' defaults for what an (old) config.json may leave out.
DEFAULTS = {
    "vocab_size": settings.REQUIRED,
    "n_positions": settings.REQUIRED,
    "n_embd": settings.REQUIRED,
    "n_layer": settings.REQUIRED,
    "n_head": settings.REQUIRED,
    "n_inner": settings.OPTIONAL,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "tie_word_embeddings": True,
}
NEUTRAL = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}


def table(cfg: gpt.Config) -> Table:
    """Where each leaf lives: `mapping` leaves out the rows of what `cfg` has not."""
    return TABLE


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> gpt.Config:
    """The config of a config.json's object, without a look at the tensors' names. Errors: `InputError` for what `gpt`
    does not compute."""
    s = settings.read(given, DEFAULTS, NEUTRAL, where)
    rates = {s["resid_pdrop"], s["embd_pdrop"], s["attn_pdrop"]}
    if len(rates) > 1:
        raise InputError(
            f'{where}: "resid_pdrop", "embd_pdrop" and "attn_pdrop" differ ({sorted(rates)}); one dropout rate is '
            "supported, so set all three to the one to train with (evaluation uses none)"
        )
    return gpt.Config(
        vocab_size=s["vocab_size"],
        max_length=s["n_positions"],
        width=s["n_embd"],
        num_layers=s["n_layer"],
        num_heads=s["n_head"],
        mlp_width=s["n_inner"],
        activation=settings.activation(s["activation_function"], "activation_function", where),
        gated=False,
        norm="layer",
        norm_eps=s["layer_norm_epsilon"],
        norm_order="pre",
        bias=True,
        position="learned",
        tie_embeddings=s["tie_word_embeddings"],
        dropout=s["resid_pdrop"],
        init_std=s["initializer_range"],
    )


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, gpt.Config) and cfg.position == "learned"


def write_config(cfg: gpt.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that GPT-2 has."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": cfg.vocab_size,
        "n_positions": cfg.max_length,
        "n_embd": cfg.width,
        "n_layer": cfg.num_layers,
        "n_head": cfg.num_heads,
        "n_inner": cfg.mlp_width,
        "activation_function": settings.THEIR_ACTIVATIONS[cfg.activation],
        "layer_norm_epsilon": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "resid_pdrop": cfg.dropout,
        "embd_pdrop": cfg.dropout,
        "attn_pdrop": cfg.dropout,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


def task(folder: Path, cfg: gpt.Config) -> CausalLM | NextItem:
    """Language modelling, with the tokens that end a text and how the others are chosen as the folder states them.

    Where the vocabulary is of items, the next item of a history.
    """
    if (folder / items.FILE).is_file():
        return NextItem()
    return CausalLM(stop_ids=hub.stop_ids(folder), defaults=Sample(**hub.sampling(folder)))
