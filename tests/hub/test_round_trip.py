"""A snapshot that goes through a workdir and back keeps every setting of its tokenizer and of its generation."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer_jax
from transformer_jax.cli import convert
from transformer_jax.data import corpus, sources, tokenizers

FIXTURES = Path(__file__).parents[1] / "data" / "hf"


def llama(folder: Path) -> Path:
    """Llama as it is published: a beginning that the post-processor adds, a chat's tokens and template."""
    shutil.copytree(FIXTURES / "llama", folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    old = next(token for token, id in described["model"]["vocab"].items() if id == 286)
    del described["model"]["vocab"][old]
    described["model"]["merges"] = [m for m in described["model"]["merges"] if "".join(m) != old]
    described["added_tokens"].insert(0, {"id": 286, "content": "<s>"} | added)
    piece = lambda id: {"SpecialToken": {"id": id, "type_id": 0}}  # noqa: E731
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece("<s>"), {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [286], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(described))
    settings: dict = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|endoftext|>"}
    settings |= {"model_max_length": 64, "chat_template": "{{ bos_token }}{{ messages }}", "extra": [1, {"a": None}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    config = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 286}
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "num_beams": 2, "eos_token_id": [287, 5]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_a_round_trip_through_a_workdir_keeps_every_setting(tmp_path, capsys):
    source = llama(tmp_path / "source")
    assert convert.main(["hf", str(source), str(tmp_path / "run")]) == 0
    assert convert.main(["hf", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes()
    for file in ("tokenizer_config.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / file).read_text()) == json.loads((source / file).read_text())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (286, [287, 5])
    run = json.loads((tmp_path / "run" / "config.json").read_text())
    assert run["sample"]["temperature"] == 0.6 and run["sample"]["top_p"] == 0.9


def test_a_text_begins_with_the_token_that_the_model_was_trained_to_find(tmp_path):
    """In a prompt, an empty one too, and in each document, which then ends with the end of text."""
    loaded = transformer_jax.load(llama(tmp_path / "llama"))
    plain = loaded.tokenizer.encode("def add(").tolist()
    assert loaded.tokenizer.bos_id == 286 not in plain
    assert tokenizers.prompt_ids(loaded.tokenizer, "def add(") == [286, *plain]
    assert tokenizers.prompt_ids(loaded.tokenizer, "<s>def add(") == [286, *plain]
    assert tokenizers.prompt_ids(loaded.tokenizer, "") == [286]
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("def add( " * 20)
    files = tuple(str(tmp_path / f"{name}.txt") for name in ("a", "b"))
    text = corpus.TextCorpus(source=sources.TextFiles(files, validation=files), length=16)
    made = corpus.prepare(text, seed=0, tokenizer=loaded.tokenizer, cache=tmp_path / "cache").train_tokens
    one = loaded.tokenizer.encode("def add( " * 20)
    np.testing.assert_array_equal(made.tokens, [286, *one, 287, 286, *one, 287])
    np.testing.assert_array_equal(made.starts, [0, len(one) + 2])


def test_special_tokens_are_read_in_prompts_and_texts_of_a_snapshot_and_the_switch_says_otherwise(tmp_path, capsys):
    folder = llama(tmp_path / "llama")
    read = tokenizers.build(tokenizers.TokenizerFile(str(folder)), [])
    text = tokenizers.build(tokenizers.TokenizerFile(str(folder), special_tokens="text"), [])
    spelled = "a <|endoftext|> b"
    assert 287 in read.encode(spelled) and 287 not in text.encode(spelled)
    assert 287 in text.encode_prompt(spelled) and read.fingerprint != text.fingerprint
    text.save(tmp_path / "kept")
    kept = tokenizers.load(tmp_path / "kept")
    assert kept.fingerprint == text.fingerprint
    assert tokenizers.build(tokenizers.TrainBPE(300, special_tokens="read"), [], given=kept).encode(
        spelled
    ).tolist() == (read.encode(spelled).tolist())
    (tmp_path / "stories.txt").write_text("once upon a time <|endoftext|> " * 9)
    source = sources.TextFiles(str(tmp_path / "stories.txt"), validation=str(tmp_path / "stories.txt"))
    corpus.prepare(corpus.TextCorpus(source=source, length=8), seed=0, tokenizer=text, cache=tmp_path / "cache")
    assert "<|endoftext|> 9 times); this tokenizer encodes them as text" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_an_exported_tokenizer_reads_special_tokens_as_transformers_does(tmp_path, kind):
    """How the texts of a run were read is the run's own: a masked language model's export must find its mask."""
    from transformer_jax import hub
    from transformer_jax.models import bert

    specs = {
        "bpe": tokenizers.TrainBPE(300, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
        "wordpiece": tokenizers.TrainWordPiece(60),
    }
    tokenizer = tokenizers.build(specs[kind], [("a", "the cat sat on the mat " * 9)])
    config = bert.Config(vocab_size=tokenizer.vocab_size, max_length=16, width=16, num_layers=1, num_heads=2)
    hub.export(tmp_path / "hf", config, bert.init(jax.random.key(0), config), tokenizer)
    mask = tokenizer.decode([tokenizer.special.mask]).strip()
    assert tokenizer.special.mask not in tokenizer.encode(f"the {mask} sat")
    assert tokenizer.special.mask in tokenizers.load(tmp_path / "hf").encode(f"the {mask} sat")


def test_generation_settings_that_nobody_changed_stay_byte_for_byte(tmp_path):
    """Also in other words than ours: bad_words_ids, and no end of text. Changed ones are written anew."""
    from transformer_jax import hub
    from transformer_jax.models import seq2seq

    fixtures = Path(__file__).parents[1] / "data"
    config = hub.load(fixtures / "hf/seq2seq/marian")[0]
    held = tokenizers.load(fixtures / "tokenizers_parity/marian")
    text = json.dumps({"num_beams": 2, "bad_words_ids": [[5]], "max_length": 12}).encode()
    held = held.replace(kept={"generation_config.json": text})
    ids = {"eos_id": held.eos_id, "pad_id": held.special.pad, "decoder_start_id": held.special.pad}
    config = dataclasses.replace(config, vocab_size=held.vocab_size, **ids)
    params = seq2seq.init(jax.random.key(0), config)
    (tmp_path / "generation_config.json").write_bytes(text)
    (tmp_path / "config.json").write_text("{}")
    beam = hub.generation(tmp_path, config)
    hub.export(tmp_path / "same", config, params, held, beam=beam)
    assert (tmp_path / "same/generation_config.json").read_bytes() == text
    assert tokenizers.load(tmp_path / "same").kept == held.kept
    hub.export(tmp_path / "wider", config, params, held, beam=dataclasses.replace(beam, width=3))
    written = json.loads((tmp_path / "wider/generation_config.json").read_text())
    assert (written["num_beams"], written["suppress_tokens"], written["eos_token_id"]) == (3, [5], held.eos_id)
