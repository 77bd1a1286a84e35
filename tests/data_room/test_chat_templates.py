"""Conversations as tokens: as Transformers encodes them, with the assistant's tokens marked, and nothing guessed."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from transformer_jax.data import chat_templates, jinja_process
from transformer_jax.data.chat_templates import FolderTemplate, Template
from transformer_jax.data.conversations import Conversation, Messages
from transformer_jax.data.tokenizers import ByteTokenizer, SubwordTokenizer
from transformer_jax.errors import InputError

FIXTURE = json.loads((Path(__file__).parents[1] / "data" / "chat_templates.json").read_text())
END = {"chatml": "<|im_end|>", "chatml_marked": "<|im_end|>", "llama3": "<|eot_id|>", "qwen3": "<|im_end|>"}
END["gemma"] = "<end_of_turn>"


def _tokenizer(template: str, **settings: str | None) -> SubwordTokenizer:
    files = {"tokenizer_config.json": json.dumps({"chat_template": template, **settings}).encode()}
    inner = Tokenizer.from_str(json.dumps(FIXTURE["tokenizer"]))
    return SubwordTokenizer(inner, settings.get("eos_token"), files=files)


def _folder(name: str) -> tuple[SubwordTokenizer, FolderTemplate]:
    found = FIXTURE["templates"][name]
    tokenizer = _tokenizer(found["template"], bos_token=found["bos_token"], eos_token=found["eos_token"])
    template = FolderTemplate.read(tokenizer)
    assert template is not None
    return tokenizer, template


def _said(tokenizer, ids, trained) -> list[str]:
    """The texts of the trained parts."""
    borders = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(int), [0]])))
    return [tokenizer.decode(ids[a:b]) for a, b in zip(borders[::2], borders[1::2], strict=True)]


@pytest.mark.parametrize("name", FIXTURE["templates"])
def test_tokens_are_those_of_transformers(name):
    tokenizer, template = _folder(name)
    rendered, end = FIXTURE["templates"][name]["rendered"], END[name]
    cases = {case: FIXTURE["conversations"][case] for case in rendered}
    prompts = template.prompts(tokenizer, list(cases.values()))
    assert [ids.tolist() for ids in prompts] == [kept["prompt"] for kept in rendered.values()]
    encoded = template.encode(tokenizer, [Conversation(messages, case) for case, messages in cases.items()])
    for (case, messages), parts in zip(cases.items(), encoded, strict=True):
        replies = [message["content"] for message in messages if message["role"] == "assistant"]
        if name == "qwen3" and case != "one":  # a reply loses its thoughts once others follow: an example for each
            whole = rendered["one" if case == "asked" else case]["whole"]
            assert parts[-1].ids.tolist() == whole and len(parts) == len(replies)
            said = [_said(tokenizer, *part) for part in parts]
            assert said == [["<think>\n\n</think>\n\n" + replies[0] + end], [replies[-1] + end]][: len(parts)]
            continue
        (part,) = parts
        assert part.ids.tolist() == rendered[case]["whole"]
        if name != "qwen3":
            assert _said(tokenizer, *part) == [reply + end for reply in replies]
        if "mask" in rendered[case]:
            assert part.trained.astype(int).tolist() == rendered[case]["mask"]
    assert template.end_id(tokenizer) == tokenizer.id_of(end)


def test_special_tokens_in_a_message_are_text_in_a_template_value():
    """Whoever writes a message must not end the turn: a template of a folder reads them as Transformers does."""
    tokenizer, _ = _folder("chatml")
    template = Template("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>", between="\n")
    messages = FIXTURE["conversations"]["two"]
    (((ids, trained),),) = template.encode(tokenizer, [Conversation(messages, "here")])
    assert tokenizer.decode(ids) == "".join(
        f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages
    )
    assert _said(tokenizer, ids, trained) == [
        messages[1]["content"] + "<|im_end|>",
        messages[3]["content"] + "<|im_end|>",
    ]
    assert (ids == tokenizer.id_of("<|im_end|>")).sum() == 4  # the one that is spelled in a message is not among them
    (asked,) = template.prompts(tokenizer, [messages[:3]])
    np.testing.assert_array_equal(asked, ids[: len(asked)])  # what is generated from is what was trained on


TURN = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "nd"}]
REWRITES = """{% for m in messages %}<|im_start|>{{ m.role|upper }} {{ m.content }}<|im_end|>{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"""
INSIDE_A_TOKEN = """{% for m in messages %}{{ m.role[0] }}{{ m.content }}
{%- if m.role == "assistant" %}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}a{% endif %}"""


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (REWRITES, "not certain"),  # a reply is written in another way than the prompt announces
        (INSIDE_A_TOKEN, "reaches over the border"),  # "a" + "nd" is the token "and"
        ("{{ messages[-1].content }}", "not certain"),
        ("{{ 'a' * 10**10 }}", "more than 1,024 MiB"),
        ("{% for", "TemplateSyntaxError"),
    ],
)
def test_bad_templates_are_refused_in_a_line(template, message):
    tokenizer = _tokenizer(template)
    with pytest.raises(InputError, match=message) as refused:
        FolderTemplate(template, {}).encode(tokenizer, [Conversation(TURN, "c:1")])
    assert str(refused.value).startswith("c:1") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no such chat') }}", "no such chat"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "more than 67,108,864 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses"),
    ],
)
def test_hostile_templates_end(template, message):
    task = {"template": template, "special": {}, "date": "2026-05-07", "jobs": [[TURN, False]]}
    answer = jinja_process.answer(task)
    assert message in answer["error"] and answer["job"] == 0


def test_the_helpers_of_templates():
    """What Transformers gives a template: the date, JSON that escapes nothing, loop controls, special tokens."""
    template = "{{ bos_token }}{{ strftime_now('%d %b') }}{% for m in messages %}{{ m|tojson }}{% break %}{% endfor %}"
    task = {"template": template, "special": {"bos_token": "<é>"}, "date": "2026-05-07", "jobs": [[TURN, False]]}
    assert jinja_process.answer(task) == {"texts": ['<é>07 May{"role": "user", "content": "x"}']}


@pytest.mark.slow
def test_an_endless_template_is_stopped():
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    with pytest.raises(InputError, match="processor time"):
        chat_templates.of(Template(), _tokenizer(loop + "{% endfor %}{% endfor %}"))


def test_a_template_needs_its_tokens():
    with pytest.raises(InputError, match="no chat_template"):
        chat_templates.of(Template(), ByteTokenizer())
    with pytest.raises(InputError, match="no special token of the tokenizer"):
        chat_templates.of(Template("u", "a", "<|end|>"), ByteTokenizer())
    with pytest.raises(InputError, match="give all three"):
        Template(user="u")


def test_lines_of_messages(tmp_path):
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text("\n".join(json.dumps({"messages": turns, "number": i}) for i in range(100)))
    source = Messages((str(path),))
    train, held = source.conversations("train"), source.conversations("validation")
    assert len(train) + len(held) == 100 and 3 < len(held) < 25
    assert {one.where for one in train}.isdisjoint(one.where for one in held) and train[0].messages == turns
    for line, message in (
        ('{"conversations": []}', "no column 'messages'"),
        ('{"messages": []}', "at least one"),
        ('{"messages": [{"content": "a"}]}', 'message 1 must be an object with a "role"'),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "is a list, and only texts"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    ):
        path.write_text(line)
        with pytest.raises(InputError, match=message):
            Messages((str(path),), validation=(str(path),)).conversations("train")
