"""Golden fixtures for `transformer_jax.hub`, made by Transformers itself; and the check in the other direction.

Runs where torch and Transformers are installed (the library needs neither), from the project root:

    python tools/make_hf_fixtures.py                       # rewrites tests/data/hf/<name>/
    python tools/make_hf_fixtures.py --check-export DIR    # Transformers loads DIR/<name>, exported by the library

A fixture is a snapshot folder as `save_pretrained` writes it (tiny, float32, random weights) plus `expected.npz`: input
tokens, the logits Transformers gives for them, the same for left-padded prompts of different lengths, and what the
tokenizer makes of a text. Every parameter is redrawn, norms and biases included, at a scale that keeps logits near 1: a
swapped, transposed or forgotten leaf then shows in the logits.

The exports for `--check-export` come from an environment with the library:

    from transformer_jax import hub
    for name in ("gpt2", "gpt2_sharded", "llama", "llama3_rope", "qwen2", "qwen3"):
        hub.export(f"DIR/{name}", *hub.load(f"tests/data/hf/{name}"))
"""

import argparse
import pathlib
import shutil

import numpy as np
import tokenizers
import torch
import transformers

FIXTURES = pathlib.Path("tests/data/hf")
VOCAB = 288  # the 256 bytes, 31 merges and <|endoftext|>
CORPUS = "the theory of the thing: there is nothing in the other, and in the end the string is in the list. " * 3
TEXT = "def add(a, b):\n    return a + b  # naïve — 加法\n"
LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=VOCAB - 1,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
CONFIGS = {
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=48, n_embd=32, n_layer=2, n_head=4, bos_token_id=VOCAB - 1, eos_token_id=VOCAB - 1
    ),
    # Untied head, MLP width of its own, exact GELU, three layers over several files.
    "gpt2_sharded": transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=48,
        n_embd=24,
        n_layer=3,
        n_head=2,
        n_inner=40,
        activation_function="gelu",
        tie_word_embeddings=False,
        bos_token_id=VOCAB - 1,
        eos_token_id=VOCAB - 1,
    ),
    "llama": transformers.LlamaConfig(**LLAMA, rms_norm_eps=1e-5, tie_word_embeddings=False),
    # The wavelengths of 8 frequencies fall in all three of the llama3 rule's ranges; heads wider than D / N; tied.
    "llama3_rope": transformers.LlamaConfig(
        **LLAMA | dict(max_position_embeddings=512), head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE
    ),
    "qwen2": transformers.Qwen2Config(
        **LLAMA, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6)
    ),
    "qwen3": transformers.Qwen3Config(
        **LLAMA, head_dim=12, tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=1e6)
    ),
}


def redraw(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter anew: matrices at 1/sqrt(fan in), norm scales around 1, biases around 0."""
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        if "wte" in name or "wpe" in name or "embed_tokens" in name:
            draw = rng.normal(0, p.shape[1] ** -0.5, p.shape)
        elif p.ndim == 2:
            fan_in = p.shape[0] if ".h." in name else p.shape[1]  # GPT-2's Conv1D is [in, out], Linear [out, in]
            draw = rng.normal(0, 1.2 * fan_in**-0.5, p.shape)
        elif name.endswith("bias"):
            draw = rng.normal(0, 0.3, p.shape)
        else:
            draw = rng.uniform(0.5, 1.5, p.shape)
        p.data.copy_(torch.from_numpy(draw.astype(np.float32)))


def make_tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB - 1, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS + TEXT], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def logits_of(model: torch.nn.Module, tokens_BT: np.ndarray, start_B: np.ndarray | None = None) -> np.ndarray:
    """Logits in float32; `start_B[b]` is the first real column of a left-padded row."""
    start = np.zeros(len(tokens_BT), np.int64) if start_B is None else start_B
    columns = np.arange(tokens_BT.shape[1])
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(tokens_BT),
            attention_mask=torch.from_numpy((columns >= start[:, None]).astype(np.int64)),
            position_ids=torch.from_numpy(np.maximum(columns - start[:, None], 0)),
        ).logits.numpy()


def make(name: str, config: transformers.PretrainedConfig, seed: int) -> None:
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    redraw(model, seed)
    model.save_pretrained(folder, max_shard_size="30KB" if name == "gpt2_sharded" else "5GB")

    tokenizer = make_tokenizer()
    if name == "gpt2_sharded":  # the older pair of files
        tokenizer.model.save(str(folder))
    else:
        tokenizer.save(str(folder / "tokenizer.json"))

    rng = np.random.default_rng(seed)
    tokens_BT = rng.integers(0, VOCAB, (2, 40))
    start_B = np.array([0, 7])
    logits_BTV = logits_of(model, tokens_BT)
    np.savez_compressed(
        folder / "expected.npz",
        tokens=tokens_BT.astype(np.int32),
        logits=logits_BTV,
        start=start_B.astype(np.int32),
        padded_last_logits=logits_of(model, tokens_BT, start_B)[:, -1],
        text=np.array(TEXT),
        text_ids=np.array(tokenizer.encode(TEXT).ids, np.int32),
        versions=np.array(f"torch {torch.__version__}, transformers {transformers.__version__}"),
    )
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size / 1000:.0f} kB, logits' standard deviation {logits_BTV.std():.2f}")


def check_export(folder: pathlib.Path) -> None:
    """Transformers loads each export without a missing or unexpected tensor and computes the fixture's logits."""
    for name in CONFIGS:
        expected = np.load(FIXTURES / name / "expected.npz")
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder / name, attn_implementation="eager", output_loading_info=True, local_files_only=True
        )
        wrong = {k: v for k, v in report.items() if v}
        assert not wrong, f"{name}: {wrong}"
        theirs = transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / name, dtype=torch.float32).state_dict()
        ours = model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs), name
        difference = np.abs(logits_of(model.eval(), expected["tokens"].astype(np.int64)) - expected["logits"]).max()
        assert difference <= 1e-6, f"{name}: logits differ by {difference}"
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name, local_files_only=True)
        ids = tokenizer(str(expected["text"]), add_special_tokens=False).input_ids
        assert ids == expected["text_ids"].tolist(), f"{name}: {ids}"
        print(
            f"{name}: {len(ours)} tensors equal to the bit, logits within {difference:.1e}, {type(tokenizer).__name__}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check-export", type=pathlib.Path, metavar="DIR", help="holds one export per fixture")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    if arguments.check_export:
        check_export(arguments.check_export)
    else:
        for seed, (name, config) in enumerate(CONFIGS.items()):
            make(name, config, seed)
