"""Golden fixtures of encoders for `transformer_jax.hub`, made by Transformers; and the check in the other direction.

Runs where torch and Transformers are installed (the library needs neither), from the project root:

    python tools/make_hf_encoder_fixtures.py                       # rewrites tests/data/hf/encoders/<architecture>/
    python tools/make_hf_encoder_fixtures.py --check-export DIR    # Transformers loads DIR/<architecture>

A fixture is a snapshot folder as `save_pretrained` writes it (tiny, float32, random weights) plus `expected.npz`:
padded rows of tokens with their lengths and token types, and what Transformers makes of them: hidden states, pooled
states and the logits of each head under our name for it. Every parameter is redrawn, norms and biases included, at a
scale that keeps logits near 1: a swapped, transposed or forgotten leaf then shows in them. ALBERT's embeddings and
ELECTRA's have a width of their own. Rows are padded with the padding token, by which RoBERTa numbers its positions.

The exports for `--check-export` come from an environment with the library:

    from pathlib import Path
    from transformer_jax import hub
    for folder in Path("tests/data/hf/encoders").iterdir():
        hub.export(f"DIR/{folder.name}", *hub.load(folder), labels=hub.labels(folder))
"""

import argparse
import pathlib
import shutil
from typing import Any

import numpy as np
import torch
import transformers

FIXTURES = pathlib.Path("tests/data/hf/encoders")
VOCAB, ROWS, LENGTH = 40, 4, 12
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=20,
    initializer_range=0.03,  # not the default
)
TYPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Bert": (transformers.BertConfig, dict(layer_norm_eps=1e-12)),
    "Roberta": (transformers.RobertaConfig, dict(type_vocab_size=1, layer_norm_eps=1e-5)),
    "Albert": (transformers.AlbertConfig, dict(embedding_size=8, hidden_act="gelu_new")),
    "Electra": (transformers.ElectraConfig, dict(embedding_size=8)),
}
ENDINGS = (
    *("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
    *("ForQuestionAnswering", "ForMultipleChoice"),
)
ARCHITECTURES = (
    *(f"{stem}{ending}" for stem in TYPES for ending in ENDINGS),
    *("BertForPreTraining", "BertForNextSentencePrediction", "AlbertForPreTraining", "ElectraForPreTraining"),
)
LABELS = {0: "physics", 1: "poetry", 2: "plumbing"}


def make_config(architecture: str) -> transformers.PretrainedConfig:
    stem = next(stem for stem in TYPES if architecture.startswith(stem))
    kind, settings = TYPES[stem]
    named = architecture.endswith(("ForSequenceClassification", "ForTokenClassification"))
    labels = dict(id2label=LABELS, label2id={name: i for i, name in LABELS.items()}) if named else {}
    return kind(**SIZES, **settings, **labels)


def redraw(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter anew: matrices at 1/sqrt(fan in), norm scales around 1, biases around 0."""
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            scale = 1.0 if name.endswith("embeddings.weight") else 1.2 if len(p) > len(LABELS) else 2.0  # 2: a head
            draw = rng.normal(0, scale * p.shape[1] ** -0.5, p.shape)
        elif name.endswith("bias"):
            draw = rng.normal(0, 0.3, p.shape)
        else:
            draw = rng.uniform(0.5, 1.5, p.shape)
        p.data.copy_(torch.from_numpy(draw.astype(np.float32)))


def make_inputs(config: transformers.PretrainedConfig, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = np.array([LENGTH, 7, LENGTH, 9])
    real = np.arange(LENGTH) < lengths[:, None]
    return {
        "tokens": np.where(real, rng.integers(5, VOCAB, (ROWS, LENGTH)), config.pad_token_id),
        "types": np.where(real, rng.integers(0, config.type_vocab_size, (ROWS, LENGTH)), 0),
        "lengths": lengths,
    }


def outputs_of(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states, and what the architecture puts on top, under our names."""
    mask = (np.arange(LENGTH) < inputs["lengths"][:, None]).astype(np.int64)
    given = dict(input_ids=inputs["tokens"], attention_mask=mask, token_type_ids=inputs["types"])
    given = {name: torch.from_numpy(value.astype(np.int64)) for name, value in given.items()}
    name = type(model).__name__
    with torch.no_grad():
        trunk = model.base_model(**given)
        made = {"hidden": trunk.last_hidden_state, "pooled": getattr(trunk, "pooler_output", None)}
        if name.endswith("ForMultipleChoice"):  # two questions with two choices each
            shape = (2, ROWS // 2, LENGTH)
            made["choice"] = model(**{k: v.reshape(shape) for k, v in given.items()}).logits.reshape(ROWS)
        elif not name.endswith("Model"):
            top = model(**given)
            if name == "ElectraForPreTraining":
                made["discriminator"] = top.logits
            elif name.endswith("ForPreTraining"):
                made["mlm"] = top.prediction_logits
                made["pair"] = top.sop_logits if name.startswith("Albert") else top.seq_relationship_logits
            elif name.endswith("ForQuestionAnswering"):
                made["span"] = torch.stack([top.start_logits, top.end_logits], dim=-1)
            else:
                heads = {
                    "ForMaskedLM": "mlm",
                    "ForNextSentencePrediction": "pair",
                    "ForSequenceClassification": "classification",
                    "ForTokenClassification": "tokens_labels",
                }
                made[next(ours for theirs, ours in heads.items() if name.endswith(theirs))] = top.logits
    return {name: value.numpy() for name, value in made.items() if value is not None}


def make(architecture: str, seed: int) -> None:
    folder = FIXTURES / architecture
    shutil.rmtree(folder, ignore_errors=True)
    config = make_config(architecture)
    config._attn_implementation = "eager"
    model = getattr(transformers, architecture)(config).eval()
    redraw(model, seed)
    model.save_pretrained(folder)
    inputs = make_inputs(config, seed)
    expected = outputs_of(model, inputs)
    versions = np.array(f"torch {torch.__version__}, transformers {transformers.__version__}")
    small = {name: value.astype(np.int32) for name, value in inputs.items()}
    arrays: dict[str, Any] = {"versions": versions, **small, **expected}
    np.savez_compressed(folder / "expected.npz", **arrays)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{architecture}: {size / 1000:.0f} kB,", ", ".join(f"{k} {v.std():.2f}" for k, v in expected.items()))


def check_export(folder: pathlib.Path) -> None:
    """Transformers loads each export without a missing or unexpected tensor and computes what the fixture says."""
    for architecture in ARCHITECTURES:
        with np.load(FIXTURES / architecture / "expected.npz") as file:
            expected = dict(file)
        load = getattr(transformers, architecture).from_pretrained
        model, report = load(
            folder / architecture, attn_implementation="eager", output_loading_info=True, local_files_only=True
        )
        wrong = {k: v for k, v in report.items() if v}
        assert not wrong, f"{architecture}: {wrong}"
        assert model.config.architectures == [architecture], model.config.architectures
        if model.config.num_labels == len(LABELS):
            assert model.config.id2label == LABELS, model.config.id2label
        theirs, ours = load(FIXTURES / architecture, dtype=torch.float32).state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs), architecture
        found = outputs_of(model.eval(), expected)
        differences = {name: np.abs(value - expected[name]).max() for name, value in found.items()}
        assert max(differences.values()) <= 1e-6, f"{architecture}: {differences}"
        print(
            f"{architecture}: {len(ours)} tensors equal to the bit; differences",
            ", ".join(f"{name} {value:.0e}" for name, value in differences.items()),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check-export", type=pathlib.Path, metavar="DIR", help="holds one export per fixture")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    if arguments.check_export:
        check_export(arguments.check_export)
    else:
        for seed, architecture in enumerate(ARCHITECTURES):
            make(architecture, seed)
