"""DPO against equation 7 in float64; which tokens of a pair count; runs with a frozen reference."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from tools.targets import collectives
from transformer_jax import adapters, restore
from transformer_jax.adapters import Lora
from transformer_jax.contracts import Frozen
from transformer_jax.data.chat_templates import Template
from transformer_jax.data.conversations import Messages
from transformer_jax.data.tokenizers import TrainBPE
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Experiment, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Optim
from transformer_jax.tasks.chat import Chat, Chats, Turns
from transformer_jax.tasks.preferences import DPO, Preferences
from transformer_jax.tasks.preferences.pairs import Ranked
from transformer_jax.train import loop
from transformer_jax.train import program as programs

TEMPLATE = Template("<|user|>", "<|assistant|>", "<|end|>")
SPEC = TrainBPE(259, special=("<|end|>", "<|user|>", "<|assistant|>"))
CFG = gpt.Config(vocab_size=259, max_length=32, width=16, num_layers=1, num_heads=2, position="rotary", init_std=0.3)
PAIRS = (
    {"prompt": "a?", "chosen": "bc", "rejected": "bd"},
    {"prompt": [{"role": "user", "content": "e"}], "chosen": [{"role": "assistant", "content": "f"}], "rejected": "gg"},
)


def _data(tmp_path, *records) -> Preferences:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Preferences(Ranked((str(path),), validation=(str(path),)), SPEC, length=16)


def _batch(examples) -> dict[str, np.ndarray]:
    rows = [examples[i] for i in range(len(examples))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_equation_7(tmp_path):
    task = DPO(template=TEMPLATE, beta=0.3, sft_weight=0.5)
    made = task.prepare(_data(tmp_path, *PAIRS), CFG, seed=0)
    batch = _batch(made.validation.examples)
    said = [made.tokenizer.decode(batch["rejected_targets"][i][batch["rejected_weights"][i] > 0]) for i in range(2)]
    assert said == ["bd<|end|>", "gg<|end|>"]  # the whole reply counts, from where the assistant begins
    model, reference = (gpt.init(jax.random.key(i), CFG) for i in range(2))

    def log_likelihoods(params, name):
        logits = np.asarray(gpt.apply(params, CFG, batch[f"{name}_inputs"]), np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        picked = np.take_along_axis(logits, batch[f"{name}_targets"][..., None], -1)[..., 0]
        return (picked * batch[f"{name}_weights"]).sum(-1)

    chosen, rejected = (log_likelihoods(model, name) for name in ("chosen", "rejected"))
    margin = 0.3 * (chosen - log_likelihoods(reference, "chosen"))
    margin -= 0.3 * (rejected - log_likelihoods(reference, "rejected"))
    tokens = batch["chosen_weights"].sum(-1)
    wanted = np.log1p(np.exp(-margin)) - 0.5 * chosen / tokens
    weights = np.array([1.0, 0.0], np.float32)  # a row of padding counts nothing
    total, weight, sums = jax.jit(task.loss, static_argnums=1)(
        model, CFG, batch | {"weights": weights, "reference": Frozen(reference, CFG)}
    )
    assert weight == 1 and total == pytest.approx(wanted[0], rel=1e-5)
    means = task.report({name: (float(a), float(b)) for name, (a, b) in sums.items()}, {}, made.validation)
    assert means["reward_margin"] == pytest.approx(margin[0], rel=1e-4)
    assert means["reward_accuracy"] == float(margin[0] > 0)
    assert means["log_likelihood_chosen"] == pytest.approx(chosen[0], rel=1e-5)
    assert means["log_likelihood_rejected"] == pytest.approx(rejected[0], rel=1e-5)


def test_the_base_of_an_adapter_is_the_reference_without_a_copy(tmp_path):
    made = Experiment(
        model=CFG,
        data=_data(tmp_path, *PAIRS),
        task=DPO(template=TEMPLATE),
        adapter=Lora(rank=2, target="attention/"),
        train=Train(steps=2, batch_size=2),
        checkpoint=Checkpoint(best_metric="loss_nats_per_pair"),
        init_from="runs/chat",
    )
    mesh = collectives.mesh_of((1, 1, 1, 1))
    program, base = programs.make(made, mesh), gpt.init(jax.random.key(0), CFG)
    assert program.frozen == ()
    params = adapters.attach(base, program.declaration, jax.random.key(1))
    query = params["blocks"]["attention"]["query"]
    query["lora_b"] = jax.random.normal(jax.random.key(2), query["lora_b"].shape)
    batch = _batch(made.task.prepare(made.data, CFG, seed=0).validation.examples)
    with jax.set_mesh(mesh):
        found = jax.jit(program.loss)(params, batch, None)
        wanted = jax.jit(made.task.loss, static_argnums=1)(params, CFG, batch | {"reference": Frozen(base, CFG)})
    assert found[0] == pytest.approx(float(wanted[0]), rel=1e-6) and abs(found[0] / 2 - math.log(2)) > 0.01
    # Where the adapter is not all that is trained, the base is no longer in the state.
    for change in ({"adapter": Lora(rank=2, full=("final_norm/",))}, {"task": DPO(template=TEMPLATE, reference="a")}):
        assert programs.make(dataclasses.replace(made, **change), mesh).frozen[0].keys() == {"reference"}


def test_a_prompt_that_both_conversations_begin_with_is_written_once(tmp_path):
    """UltraFeedback's records state the prompt as a text, and again in both conversations."""
    asked = {"role": "user", "content": "a?"}
    whole = {name: [asked, {"role": "assistant", "content": PAIRS[0][name]}] for name in ("chosen", "rejected")}
    task = DPO(template=TEMPLATE)
    records = (PAIRS[0], {"prompt": "a?", **whole}, {"prompt": [asked], **whole}, whole)
    first, *others = (task.prepare(_data(tmp_path, one), CFG, seed=0).validation.examples[0] for one in records)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, first)


def test_bad_pairs_are_refused(tmp_path):
    for record, message in (
        ({"prompt": "a", "chosen": "b"}, "no 'rejected'; a record has"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equals the rejected"),
        ({"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}, "chosen reply has no token"),
        ({"prompt": "a" * 40, "chosen": "b", "rejected": "c"}, "longer than data.length"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            DPO(template=TEMPLATE).prepare(_data(tmp_path, record), CFG, seed=0)
        assert "\n" not in str(refused.value)
    for wrong in (dict(beta=0.0), dict(sft_weight=-1.0), dict(metrics=("exact_match",))):
        with pytest.raises(InputError, match="task"):
            DPO(**wrong)


@pytest.mark.slow
def test_a_run_from_a_chat_resumes_to_the_bit(tmp_path, capsys):
    """The reference is what the run starts from; what it prefers, it learns; an interrupted run is the whole one."""
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "bc"}]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    first = Experiment(
        model=CFG,
        data=Chats(Messages((str(chats),), validation=(str(chats),)), SPEC, length=16),
        task=Chat(template=TEMPLATE),
        optim=Optim(peak_lr=1e-2, warmup_steps=1, lr_schedule="constant"),
        train=Train(steps=2, batch_size=8),
        checkpoint=Checkpoint(every=0, best_metric="nats_per_assistant_token"),
        sample=Turns(max_new_tokens=0),
    )
    loop.run(first, tmp_path / "chat", load=restore.load)
    second = dataclasses.replace(
        first,
        data=_data(tmp_path, *PAIRS),
        task=DPO(template=TEMPLATE, sft_weight=0.1),
        train=Train(steps=6, batch_size=8, accumulate=1),
        checkpoint=Checkpoint(every=3, keep=3, best_metric="loss_nats_per_pair"),
        init_from=str(tmp_path / "chat"),
    )
    results = loop.run(second, tmp_path / "whole", load=restore.load)
    assert results.report["reward_accuracy"] == 1.0 and results.report["reward_margin"] > 0
    (tmp_path / "part").mkdir()
    half = dataclasses.replace(second, train=dataclasses.replace(second.train, steps=3))
    loop.run(half, tmp_path / "part", load=restore.load)
    loop.run(second, tmp_path / "part", load=restore.load)
    whole, part = (restore.load(tmp_path / name).params for name in ("whole", "part"))
    jax.tree.map(np.testing.assert_array_equal, whole, part)
    assert "is another model" not in capsys.readouterr().out
    other = dataclasses.replace(second, train=Train(steps=7, batch_size=8), init_from=str(tmp_path / "whole"))
    loop.run(other, tmp_path / "part", load=restore.load)
    assert "task.reference is another model than step 6 was trained with" in capsys.readouterr().out
    with pytest.raises(InputError, match="task.reference is empty"):
        loop.run(dataclasses.replace(second, init_from=""), tmp_path / "none", load=restore.load)
