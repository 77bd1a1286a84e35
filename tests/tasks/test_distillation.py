"""Distillation against NumPy in float64: the softened loss, the states' distance, the layers a student starts from."""

import jax
import numpy as np
import pytest

from transformer_jax import config_json, contracts
from transformer_jax.contracts import Frozen
from transformer_jax.errors import InputError
from transformer_jax.models import bert
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks import Classification, Distillation

LABELS = ("a", "b", "c")
OF = Classification(LABELS)
STUDENT = bert.Config(
    vocab_size=20, max_length=8, width=16, num_layers=1, num_heads=2, mlp_width=16, heads=("classification",),
    num_labels=3, init_std=0.5, dropout=0.0, scan_layers=False,
)  # fmt: skip
TEACHER = bert.Config(**{**vars(STUDENT), "num_layers": 2})
BATCH = {
    "tokens": np.arange(32, dtype=np.int32).reshape(4, 8) % 20,
    "lengths": np.array([8, 5, 3, 8], np.int32),
    "labels": np.array([0, 1, 2, 0], np.int32),
    "weights": np.array([1, 1, 1, 0], np.float32),
}


@pytest.fixture(scope="module")
def params():
    init = jax.jit(bert.init, static_argnums=1)
    return init(jax.random.key(0), STUDENT), init(jax.random.key(1), TEACHER)


def test_loss(params):
    student, teacher = params
    task = Distillation(OF, teacher="t", temperature=3.0, hard=0.25, states=0.5)
    total, weight, sums = jax.jit(task.loss, static_argnums=1)(
        student, STUDENT, BATCH | {"teacher": Frozen(teacher, TEACHER)}
    )
    outputs = [
        [np.asarray(x, np.float64) for x in OF.logits_and_states(p, cfg, BATCH)]
        for p, cfg in ((student, STUDENT), (teacher, TEACHER))
    ]
    (mine, states, mask), (theirs, wanted, _) = outputs

    def softened(x):
        return np.exp(x / 3 - np.log(np.exp(x / 3).sum(-1, keepdims=True)))

    kl = (softened(theirs) * np.log(softened(theirs) / softened(mine))).sum(-1)
    nats = -np.log((np.exp(mine) / np.exp(mine).sum(-1, keepdims=True))[np.arange(4), BATCH["labels"]])
    cosine = (states * wanted).sum(-1) / np.linalg.norm(states, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert mask.sum() == 24
    distance = ((1 - cosine) * mask).sum() / 24
    expected = 0.25 * nats[:3].sum() + 0.75 * 9 * kl[:3].sum() + 0.5 * 3 * distance
    assert weight == 3 and total == pytest.approx(expected, rel=1e-4)
    assert sums["soft_loss"][0] == pytest.approx(9 * kl[:3].sum(), rel=1e-4)
    assert sums["agreement"][0] == (mine.argmax(-1) == theirs.argmax(-1))[:3].sum()
    assert sums["accuracy"][1] == 3  # the task's own numbers are there as well


def test_a_student_starts_from_every_second_layer(params):
    _, teacher = params
    four = teacher | {"blocks": jax.tree.map(lambda x: np.concatenate([x, -x]), teacher["blocks"])}
    task = Distillation(OF, teacher="t", start="layers")
    made = task.initial(teacher, {"teacher": Frozen(four, None)})
    for path in ("attention", "mlp"):
        for mine, theirs in zip(
            jax.tree.leaves(made["blocks"][path]), jax.tree.leaves(four["blocks"][path]), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs[np.array([0, 2])])
    np.testing.assert_array_equal(made["embed"]["token"]["embedding"], four["embed"]["token"]["embedding"])
    assert Distillation(OF, teacher="t").initial(teacher, {"teacher": Frozen(four, None)}) is teacher
    wide = params_lib.abstract(bert.declare(bert.Config(**{**vars(STUDENT), "mlp_width": 32})))
    with pytest.raises(InputError, match="may differ in the number of layers alone"):
        task.initial(wide, {"teacher": Frozen(four, None)})


def test_everything_else_is_the_tasks_own():
    """What a later task may define reaches the task as well: nothing of the contract is left at its default."""
    task = Distillation(OF, teacher="t")
    assert task.unit == OF.unit and task.reads_text and task.sized(STUDENT).num_labels == 3
    for name in contracts.defaults(contracts.Task):
        assert name in vars(Distillation), name
    assert config_json._Reader({}).value(config_json.to_json(task), contracts.Task, "x") == task
    for wrong in (dict(temperature=0.0), dict(hard=1.5), dict(states=-1.0), dict(start="half")):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Distillation(OF, **wrong)


def test_another_teacher_is_refused():
    def traced(task, **other):
        cfg = bert.Config(**{**vars(STUDENT), **other})
        batch = BATCH | {"teacher": Frozen(params_lib.abstract(bert.declare(cfg)), cfg)}
        jax.eval_shape(
            lambda *args: task.loss(args[0], STUDENT, args[1]), params_lib.abstract(bert.declare(STUDENT)), batch
        )

    with pytest.raises(InputError, match="has 2 outputs, the student 3"):
        traced(Distillation(OF, teacher="t"), num_labels=2)
    with pytest.raises(InputError, match="width 32 and the student's 16"):
        traced(Distillation(OF, teacher="t", states=1.0), width=32)
