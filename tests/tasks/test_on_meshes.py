"""A chat, preferences and distillation on eight devices: one step is that of a single device, within 1e-5."""

from typing import Any

import jax
import numpy as np
import pytest

from tools.targets import collectives
from transformer_jax import models
from transformer_jax.contracts import Frozen
from transformer_jax.data.chat_templates import Template
from transformer_jax.data.conversations import Messages
from transformer_jax.data.tokenizers import Bytes, TrainBPE
from transformer_jax.experiment import Checkpoint, Experiment, Train
from transformer_jax.models import bert, gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.tasks import Classification, Distillation
from transformer_jax.tasks.chat import Chat, Chats
from transformer_jax.tasks.classification.labelled import LabelledText
from transformer_jax.tasks.classification.stdlib_topics import StdlibTopics
from transformer_jax.tasks.preferences import DPO, Preferences
from transformer_jax.tasks.preferences.pairs import Ranked
from transformer_jax.train import program as programs

IDS = 264  # token ids, a multiple of the sizes of the meshes
SIZE: Any = {"vocab_size": IDS, "max_length": 16, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32}
TEMPLATE = Template("<|user|>", "<|assistant|>", "<|end|>")
SPEC = TrainBPE(IDS, special=("<|end|>", "<|user|>", "<|assistant|>"))
TRAINING: Any = {
    "optim": Optim(peak_lr=1e-3, clip_norm=1.0),
    "train": Train(steps=10, batch_size=8),
}
EXPERIMENTS = {
    "chat": Experiment(
        model=gpt.Config(**SIZE, position="rotary"),
        data=Chats(Messages(("chats.jsonl",)), SPEC, length=16),
        task=Chat(template=TEMPLATE),
        checkpoint=Checkpoint(best_metric="nats_per_assistant_token"),
        **TRAINING,
    ),
    "dpo": Experiment(
        model=gpt.Config(**SIZE, position="rotary"),
        data=Preferences(Ranked(("pairs.jsonl",)), SPEC, length=16),
        task=DPO(template=TEMPLATE, reference="runs/chat", sft_weight=0.5),
        checkpoint=Checkpoint(best_metric="loss_nats_per_pair"),
        **TRAINING,
    ),
    "distillation": Experiment(
        model=bert.Config(**SIZE, heads=("classification",), num_labels=8, dropout=0.0),
        data=LabelledText(StdlibTopics(), Bytes(), length=16),
        task=Distillation(Classification(tuple("abcdefgh")), "runs/teacher", hard=0.5, states=0.5),
        checkpoint=Checkpoint(best_metric="f1_macro", best="highest"),
        **TRAINING,
    ),
}


def drawn(tree: Any, seed: int, deviation: float) -> Any:
    """Random values in place of the shapes of `tree`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, deviation, x.shape).astype(np.float32), tree)


def step_of(name: str, sizes: tuple[int, ...]) -> tuple[float, dict[str, Any]]:
    """(mean loss, parameters after one step) on a mesh, from the same parameters and rows."""
    made, mesh = EXPERIMENTS[name], collectives.mesh_of(sizes)
    program, rng = programs.make(made, mesh), np.random.default_rng(0)
    most = {"lengths": 16, "labels": 8, "segments": 2}
    rows = {
        key: rng.integers(1, most.get(key, IDS), x.shape).astype(x.dtype)
        if np.issubdtype(x.dtype, np.integer)
        else (rng.random(x.shape) < 0.7).astype(x.dtype)
        for key, x in program.batch.items()
    }
    frozen = {
        key: Frozen(drawn(params_lib.abstract(models.family(cfg).declare(cfg)), 1, 0.3), cfg)
        for key, (_, cfg) in made.task.frozen(program.model).items()
    }
    with jax.set_mesh(mesh):
        arguments = (program.state, program.batch, jax.random.key(0), *program.frozen)
        compiled = program.step.lower(*arguments).compile(collectives.QUICK)
        further = [jax.device_put(frozen, jax.tree.map(lambda x: x.sharding, one)) for one in program.frozen]
        places = jax.tree.map(lambda leaf: leaf.sharding, program.batch)
        state = program.create(drawn(params_lib.abstract(program.declaration), 0, 0.2))
        state, metrics = compiled(state, jax.device_put(rows, places), jax.random.key(0), *further)
    return float(metrics["loss"]), params_lib.flatten(state.params)


@pytest.mark.parametrize(
    "name", ["chat", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "distillation"))]
)
def test_eight_devices_take_the_step_of_one(name):
    expected, found = step_of(name, (1, 1, 1, 1)), step_of(name, collectives.MESHES["data2-fsdp2-tensor2"])
    assert np.isfinite(expected[0]) and found[0] == pytest.approx(expected[0], rel=1e-5)
    for path, wanted in expected[1].items():
        np.testing.assert_allclose(found[1][path], wanted, rtol=1e-5, atol=2e-5, err_msg=path)
