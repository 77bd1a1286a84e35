"""Chat against hand-made conversations: which tokens are trained, what a reply is, what is refused."""

import dataclasses
import io
import json
import sys

import jax
import numpy as np
import pytest

from transformer_jax import sharding
from transformer_jax.contracts import Evaluation, Input
from transformer_jax.data.chat_templates import Template
from transformer_jax.data.conversations import Messages
from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.restore import Loaded
from transformer_jax.tasks.causal_lm import CausalLM, Continue
from transformer_jax.tasks.chat import Chat, Chats, Reply, Turns
from transformer_jax.tasks.chat.cldr import CldrDates

TASK = Chat(template=Template("<|user|>", "<|assistant|>", "<|end|>"), metrics=("exact_match",))
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
CFG = gpt.Config(vocab_size=300, max_length=64, width=16, num_layers=1, num_heads=2, position="rotary", init_std=0.5)


def _data(tmp_path, *conversations, length=40) -> Chats:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return Chats(Messages((str(path),), validation=(str(path),)), TrainBPE(259, special=SPECIAL), length)


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CHATS = _turns("a?", "bc", "d?", "e"), _turns("f", "g"), _turns("x" * 90, "y")


def test_whole_conversations_in_segments_with_the_reply_trained(tmp_path):
    data = _data(tmp_path, *CHATS)
    made = TASK.prepare(data, CFG, seed=0)
    (row,) = (made.validation.examples[i] for i in range(len(made.validation.examples)))
    decode = made.tokenizer.decode
    for segment, (asked, said) in enumerate(
        [
            ("<|user|>a?<|end|><|assistant|>bc<|end|><|user|>d?<|end|><|assistant|>e<|end|>", "bc<|end|>e<|end|>"),
            ("<|user|>f<|end|><|assistant|>g<|end|>", "g<|end|>"),
        ],
        1,
    ):
        inside = row["segments"] == segment
        assert decode([*row["inputs"][inside][:1], *row["targets"][inside]]) == asked
        np.testing.assert_array_equal(row["inputs"][inside][1:], row["targets"][inside][:-1])
        assert decode(row["targets"][inside & (row["weights"] > 0)]) == said
    assert row["weights"][row["segments"] == 0].sum() == 0
    assert made.facts["train_examples_dropped_too_long"] == 1 and made.facts["train_assistant_tokens"] == 7
    assert "<|assistant|>«bc<|end|>»<|user|>d?" in made.facts["first_example"]
    whole = dataclasses.replace(TASK, train_on="all").prepare(data, CFG, seed=0)
    np.testing.assert_array_equal(whole.train[0]["weights"], row["segments"] > 0)
    np.testing.assert_array_equal(whole.validation.examples[0]["weights"], row["weights"])
    assert whole.validation.reference.unigram_nats == made.validation.reference.unigram_nats
    counts = {"bc<|end|>e<|end|>": 1, "g<|end|>": 1}  # the unigram model, by hand, with one added to each count
    said = np.concatenate([made.tokenizer.encode_prompt(text) for text in counts])
    shares = (np.bincount(said, minlength=made.tokenizer.vocab_size) + 1) / (7 + made.tokenizer.vocab_size)
    assert made.validation.reference.unigram_nats == pytest.approx(-np.log(shares[said]).mean())


def test_what_nothing_is_learned_from_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"chats.jsonl:2: no token of this conversation is the assistant's"):
        TASK.prepare(_data(tmp_path, CHATS[0], _turns("only asked")), CFG, seed=0)
    with pytest.raises(InputError, match="role 'tool'"):
        TASK.prepare(_data(tmp_path, [{"role": "tool", "content": "1"}, *CHATS[1]]), CFG, seed=0)
    with pytest.raises(InputError, match="longer than data.length = 40"):
        TASK.prepare(_data(tmp_path, CHATS[2]), CFG, seed=0)
    with pytest.raises(InputError, match=r"model.vocab_size is 64"):
        TASK.prepare(_data(tmp_path, CHATS[0]), dataclasses.replace(CFG, vocab_size=64), seed=0)


def test_replies(tmp_path, monkeypatch, capsys):
    """A conversation given, and one read from the terminal, are the same; `score` generates from the same prompts."""
    made = TASK.prepare(_data(tmp_path, *CHATS), CFG, seed=0)
    params = gpt.init(jax.random.key(0), CFG)
    loaded = Loaded(gpt, CFG, params, made.tokenizer, TASK, 0, 0)
    options = Reply(max_new_tokens=10, temperature=0.0)
    given = [Input(text, "", {}) for text in ("a?", "d?")]
    said = "".join(TASK.respond(loaded, given, options))
    first = said.removeprefix("> a?\n").partition("\n> d?\n")[0]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a?\n\nd?\n"))
    assert "".join(TASK.respond(loaded, TASK.read([], options), options)) == said
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    files = {"tokenizer_config.json": json.dumps({"chat_template": template}).encode()}
    snapshot = dataclasses.replace(loaded, tokenizer=made.tokenizer.replace(files=files), task=CausalLM())
    talking = Continue(max_new_tokens=10, temperature=0.0, chat=True)
    assert "".join(snapshot.task.respond(snapshot, given, talking)) == said
    long = [Input("x" * 25, "", {})] * 3
    assert "".join(TASK.respond(loaded, long, options)).count("> ") == 3 and "forgotten" in capsys.readouterr().err
    with pytest.raises(InputError, match="shorten it"):
        list(TASK.respond(loaded, [Input("x" * 70, "", {})], options))

    greeting = made.validation.reference.conversations[1]._replace(messages=[{"role": "assistant", "content": "h"}])
    talked = [*made.validation.reference.conversations[:2], greeting]  # no prompt is before a greeting
    held = dataclasses.replace(made.validation.reference, conversations=talked)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    lines = []
    evaluation = Evaluation(made.validation.examples, held)
    scores = TASK.score(params, CFG, made.tokenizer, evaluation, tmp_path, "test", mesh=mesh, log=lines.append)
    turns = [json.loads(line) for line in (tmp_path / "test.turns.jsonl").read_text().splitlines()]
    assert [(turn["asked"], turn["reference"]) for turn in turns] == [("a?", "bc"), ("d?", "e"), ("f", "g")]
    assert turns[0]["reply"] == first.strip() and scores["exact_match"] == 0.0


def test_dates_of_a_test_conversation_are_in_no_other():
    source = CldrDates(languages=("fr", "pl"), train=300, validation=50, test=50)
    said = {side: _said(source, side) for side in ("train", "validation", "test")}
    assert said["test"].isdisjoint(said["train"] | said["validation"])
    first = source.conversations("test")[0].messages
    assert first[0]["content"].startswith("How is ") and len(first) == 6
    assert source.conversations("test") == source.conversations("test")
    with pytest.raises(InputError, match="'xx_yy', which is no locale"):
        CldrDates(languages=("xx_yy",)).conversations("train")


def _said(source, side) -> set[str]:
    turns = [message for one in source.conversations(side) for message in one.messages]
    return {message["content"] for message in turns if message["role"] == "assistant"}


def test_settings_that_are_refused():
    for wrong, message in ((dict(train_on="user"), "train_on"), (dict(metrics=("bleu",)), "there is exact_match")):
        with pytest.raises(InputError, match=message):
            Chat(**wrong)
    assert TASK.predict_options(Turns(inputs=("a",), max_new_tokens=3)) == Reply(max_new_tokens=3)
