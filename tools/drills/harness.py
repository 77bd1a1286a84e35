"""Compares `tasks.few_shot.harness` with the harness's own backend of Hugging Face models, on the same random weights.

    python -m tools.drills.harness          # where lm_eval, torch, transformers and this package are installed

A GPT-2 of random weights with a byte-level tokenizer answers the same requests both ways. The log-likelihoods must
agree to 1e-4, greedy flags and generated texts exactly.
"""

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import transformer_jax
from transformer_jax.tasks.few_shot import harness

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "12", "dogs", "ran,", "far", "away;", "naïve", "café", "über"]


def snapshot(folder: Path) -> str:
    """A folder with a random GPT-2 and its tokenizer."""
    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator(
        [" ".join(WORDS)] * 3, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(fast), n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=fast.eos_token_id, eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def main() -> None:
    rng = random.Random(0)
    text = lambda low, high: " ".join(rng.choices(WORDS, k=rng.randint(low, high)))  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        path = snapshot(Path(folder))
        theirs = HFLM(pretrained=path, batch_size=4, device="cpu", dtype="float32")
        ours = harness.language_model(transformer_jax.load(path), batch_size=4)
        pairs = [(text(1, 40), " " + text(1, 5)) for _ in range(20)] + [("", "the cat"), ("a mat ", "and")]
        both = [model.loglikelihood(requests("loglikelihood", pairs)) for model in (theirs, ours)]
        nats = np.array([[score[0] for score in found] for found in both])
        assert [score[1] for score in both[0]] == [score[1] for score in both[1]], "greedy"
        print(f"loglikelihood: {len(pairs)} requests, largest difference {np.abs(nats[0] - nats[1]).max():.1e} nats")
        texts = [(text(1, 100),) for _ in range(10)]
        rolling = np.array([m.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) for m in (theirs, ours)])
        print(f"loglikelihood_rolling: largest difference {np.abs(rolling[0] - rolling[1]).max():.1e} nats")
        asked = [(text(1, 20), {"until": ["\n", " a"], "max_gen_toks": 16, "do_sample": False}) for _ in range(10)]
        made = [model.generate_until(requests("generate_until", asked)) for model in (theirs, ours)]
        assert made[0] == made[1], [pair for pair in zip(*made, strict=True) if pair[0] != pair[1]]
        assert np.abs(nats[0] - nats[1]).max() < 1e-4 and np.abs(rolling[0] - rolling[1]).max() < 1e-3
        print(f"generate_until: {len(asked)} texts, all equal, such as {made[1][0]!r}")


if __name__ == "__main__":
    main()
