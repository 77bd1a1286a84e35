"""Twelve formats through a workdir and back, compared by Transformers: ids, text, generation settings, greedy output.

From the project root, in two environments (the second has torch and Transformers):

    python tools/check_round_trips.py make /tmp/trips
    python tools/check_round_trips.py compare /tmp/trips
"""

import json
import pathlib
import shutil
import sys
from typing import Any

HF = pathlib.Path("tests/data/hf")
PARITY = pathlib.Path("tests/data/tokenizers_parity")
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.2}
# name: (fixture of the model, fixture of the tokenizer, generation_config.json)
KINDS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "gpt2": ("gpt2", "gpt2_chat", {"bos_token_id": 0, "eos_token_id": 421, "no_repeat_ngram_size": 3}),
    "llama": ("llama", "llama2", SAMPLED | {"bos_token_id": 1, "eos_token_id": [2, 5]}),
    "llama3": ("llama3_rope", "llama3", SAMPLED | {"eos_token_id": [1, 3], "num_beams": 2}),
    "qwen2": ("qwen2", "qwen2", {"do_sample": False, "eos_token_id": [420, 422], "max_new_tokens": 9}),
    "qwen3": ("qwen3", "qwen2", None),
    "t5": ("seq2seq/t5", "t5", {"num_beams": 2, "max_length": 12, "eos_token_id": 1, "decoder_start_token_id": 0}),
    "bart": ("seq2seq/bart", "bart", {"num_beams": 2, "forced_bos_token_id": 0, "max_length": 10, "do_sample": False}),
    "mbart": ("seq2seq/mbart", "mbart50", {"num_beams": 1, "max_length": 10}),
    "marian": ("seq2seq/marian", "marian", {"num_beams": 2, "bad_words_ids": [[5]], "max_length": 12}),
    "bert": ("encoders/BertForMaskedLM", "bert_markers", None),
    "roberta": ("encoders/RobertaForMaskedLM", "roberta", None),
    "albert": ("encoders/AlbertForMaskedLM", "albert", None),
}
TEXTS = [
    "The quick brown fox",
    "Paris is the [MASK] <mask> of France. <|im_start|> [E1] naïve",
    "  two  spaces\n人人生而自由 🙂",
]


def make(out: pathlib.Path) -> None:
    """SOURCE/NAME as published, and BACK/NAME from the workdir that was made of it."""
    import dataclasses

    import jax

    from transformer_jax import hub, models
    from transformer_jax.cli import convert
    from transformer_jax.data import tokenizers

    for name, (model, tokenizer, generation) in KINDS.items():
        config = hub.load(HF / model)[0]
        held = tokenizers.load(PARITY / tokenizer)
        changes = {"vocab_size": held.vocab_size}
        if hasattr(config, "decoder_start_id"):
            start = held.special.pad if name in ("t5", "marian") else held.eos_id
            generation = {"decoder_start_token_id": start} | (generation or {})
            changes |= {"eos_id": held.eos_id, "pad_id": held.special.pad, "decoder_start_id": start}
        config = dataclasses.replace(config, **changes)
        params = models.family(config).init(jax.random.key(1), config)
        source = out / "source" / name
        hub.export(source, config, params, held)
        for file in (PARITY / tokenizer).iterdir():
            if file.name != "config.json":
                shutil.copy(file, source)
        if generation is not None:
            (source / "generation_config.json").write_text(json.dumps(generation))
        for one, other in ((source, out / "run" / name), (out / "run" / name, out / "back" / name)):
            assert convert.main(["hf", str(one), str(other)]) == 0


def compare(out: pathlib.Path) -> None:
    """Prints a line for each format; exits with the number of formats that differ in something."""
    import torch
    import transformers

    wrong = 0
    for name in KINDS:
        made = []
        for side in ("source", "back"):
            folder = out / side / name
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
            model = getattr(transformers, architecture).from_pretrained(folder).eval()
            ids = [tokenizer(text)["input_ids"] for text in TEXTS]
            facts: dict[str, Any] = {"ids": ids, "text": [tokenizer.decode(one) for one in ids]}
            facts["special"] = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
            facts["template"] = tokenizer.chat_template
            with torch.no_grad():
                if model.can_generate():
                    # Stated or not, a default and what config.json says mean the same.
                    usual = transformers.GenerationConfig()._get_default_generation_params()
                    usual |= {
                        key: getattr(model.config, key, None) for key in ("pad_token_id", "decoder_start_token_id")
                    }
                    said = model.generation_config.to_dict().items()
                    facts["generation"] = {k: v for k, v in said if v is not None and v != usual.get(k)}
                    facts["generation"].pop("transformers_version", None)
                    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": 8}
                    facts["greedy"] = [model.generate(torch.tensor([one[:16]]), **options)[0].tolist() for one in ids]
                else:
                    facts["greedy"] = [model(torch.tensor([one[:16]])).logits.argmax(-1).tolist() for one in ids]
            made.append(facts)
        differ = {key: (made[0][key], made[1][key]) for key in made[0] if made[0][key] != made[1][key]}
        wrong += bool(differ)
        print(f"{name:8} {type(tokenizer).__name__:20} {differ or 'equal: ' + ', '.join(made[0])}")
    sys.exit(wrong)


if __name__ == "__main__":
    {"make": make, "compare": compare}[sys.argv[1]](pathlib.Path(sys.argv[2]))
