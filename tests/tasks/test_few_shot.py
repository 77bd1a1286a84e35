"""Few-shot scores against one forward pass per choice in float64; the harness's requests; what is refused."""

import importlib.machinery
import json
import sys
import types
from collections import namedtuple

import jax
import numpy as np
import pytest

from transformer_jax.data.tokenizers import ByteTokenizer
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.restore import Loaded
from transformer_jax.tasks import CausalLM, few_shot
from transformer_jax.tasks.few_shot import FewShot, harness

CFG = gpt.Config(vocab_size=257, max_length=24, width=16, num_layers=1, num_heads=2, init_std=0.5)
Request = namedtuple("Request", "args")


@pytest.fixture(scope="module")
def loaded():
    params = jax.jit(gpt.init, static_argnums=1)(jax.random.key(0), CFG)
    return Loaded(gpt, CFG, params, ByteTokenizer(), CausalLM(), 0, 0)


def naive(loaded, ids, count) -> tuple[float, bool]:
    """The log-likelihood of the last `count` ids, and whether they are greedy, by one forward pass."""
    ids = np.array(ids)[-CFG.max_length - 1 :]
    padded = np.zeros((1, CFG.max_length), np.int32)  # one shape, one compilation; a causal model ignores what follows
    padded[0, : len(ids) - 1] = ids[:-1]
    logits = np.asarray(APPLY(loaded.params, CFG, padded), np.float64)[0, : len(ids) - 1]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = logits[np.arange(len(ids) - 1), ids[1:]]
    return picked[-count:].sum(), bool((logits.argmax(-1) == ids[1:])[-count:].all())


APPLY = jax.jit(gpt.apply, static_argnums=1)


def _task(tmp_path, *lines) -> str:
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


LINES = (
    {"question": "a b", "choices": ["c", "dé"], "answer": 0},
    {"question": "e", "choices": ["f", "ggg", "h"], "answer": "ggg"},
    {"question": "i", "choices": ["j", "kk"], "answer": 1},
)


def test_choices(loaded, tmp_path):
    items = few_shot.read(_task(tmp_path, *LINES))
    options = FewShot(shots=(0, 1), batch_size=4)
    scores = few_shot.evaluate(loaded, items, items, options)
    for shots in (0, 1):
        right = np.zeros(2)
        for item, prompt in zip(items, few_shot.prompts(items, items, shots, options), strict=True):
            assert prompt.endswith(item.question) and prompt.count("\n") == shots
            assert item.answer not in prompt  # a question is never its own example
            nats = []
            for choice in item.choices:
                ids = list((prompt + " " + choice).encode())
                nats.append(naive(loaded, ids, len(choice.encode()) + 1)[0])
            by_bytes = np.array(nats) / [len(choice.encode()) for choice in item.choices]
            right += [item.choices[np.argmax(x)] == item.answer for x in (nats, by_bytes)]
        assert [scores[f"{name}_{shots}_shot"] for name in ("acc", "acc_norm")] == (right / 3).tolist()
    generated = few_shot.read(_task(tmp_path, {"question": "q", "answer": "r"}, {"question": "s", "answer": "t"}))
    found = few_shot.evaluate(loaded, generated, generated, FewShot(shots=(1,), max_new_tokens=4, batch_size=4))
    assert found["exact_match_1_shot"] == 0.0


def test_the_harness_gets_what_it_asks_for(loaded, monkeypatch):
    """A fake of the contract: `tools/drills/check_integrations` compares with the harness itself."""
    fake = types.ModuleType("lm_eval.api.model")
    fake.LM = type("LM", (), {})  # type: ignore[attr-defined]
    for name, module in (("lm_eval", types.ModuleType("lm_eval")), ("lm_eval.api", types.ModuleType("lm_eval.api"))):
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", fake)
    model = harness.language_model(loaded, batch_size=4)
    asked = [("ab ", "cd"), ("", "e"), ("x" * 40, " yz")]
    found = model.loglikelihood([Request(pair) for pair in asked])
    whole = [(b"ab cd", 3), (bytes([]) + b"e", 1), (b"x" * 40 + b" yz", 3)]
    for (nats, greedy), (text, count) in zip(found, whole, strict=True):
        ids = ([256] if len(text) == count else []) + list(text)  # no context: the end of text
        wanted = naive(loaded, ids, count)
        assert nats == pytest.approx(wanted[0], rel=1e-5) and greedy == wanted[1]
    text = "the text is longer than the model's positions, so it is read in windows"
    (rolling,) = model.loglikelihood_rolling([Request((text,))])
    ids = [256, *text.encode()]
    total, T = 0.0, CFG.max_length
    for begin in range(0, len(ids) - 1, T):  # each token once, after as many before it as the model reads
        end = min(begin + T, len(ids) - 1)
        total += naive(loaded, ids[max(0, end - T) : end + 1], end - begin)[0]
    assert rolling == pytest.approx(total, rel=1e-5)
    (made,) = model.generate_until([Request(("ab", {"until": [], "max_gen_toks": 6}))])
    ids = list(b"ab")
    for _ in range(6):
        padded = np.zeros((1, CFG.max_length), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(APPLY(loaded.params, CFG, padded)[0, len(ids) - 1].argmax()))
    assert made == loaded.tokenizer.decode(ids[2:])
    asked = [Request(("ab", {"until": [made[1:3]], "max_gen_toks": 6}))] * 2
    assert model.generate_until(asked) == [made.split(made[1:3])[0]] * 2


def test_bad_tasks_are_refused(loaded, tmp_path):
    for line, message in (
        ({"choices": ["a"], "answer": 0}, "no column 'question'"),
        ({"question": "a", "choices": ["b", ""], "answer": 0}, "texts that are not empty"),
        ({"question": "a", "choices": ["b", "c"], "answer": 2}, "one of the choices"),
        ({"question": "a", "choices": ["b", "c"], "answer": "d"}, "one of the choices"),
        ({"question": "a"}, "one of the choices"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            few_shot.read(_task(tmp_path, line))
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="make two files"):
        few_shot.read(_task(tmp_path, LINES[0], {"question": "a", "answer": "b"}))
    items = few_shot.read(_task(tmp_path, *LINES))
    with pytest.raises(InputError, match="there are 2 other records"):
        few_shot.evaluate(loaded, items, items, FewShot(shots=(3,)))
    with pytest.raises(InputError, match="give numbers of examples"):
        FewShot(shots=(-1,))
