"""Distillation against NumPy in float64: the softened loss, the states' distance, the layers a student starts from."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import adapters, compress, config_json, contracts, sharding
from transformer_jax.adapters import Lora
from transformer_jax.compress import Int8
from transformer_jax.contracts import Frozen
from transformer_jax.data.tokenizers import Bytes
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.models import bert
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks import Classification, Distillation
from transformer_jax.tasks.classification.labelled import LabelledText
from transformer_jax.tasks.classification.stdlib_topics import StdlibTopics
from transformer_jax.train import further as further_lib

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
    deep = bert.Config(**{**vars(STUDENT), "num_layers": 4})
    task = Distillation(OF, teacher="t", start="layers")
    made = task.initial(teacher, {"teacher": Frozen(four, deep)})
    for path in ("attention", "mlp"):
        for mine, theirs in zip(
            jax.tree.leaves(made["blocks"][path]), jax.tree.leaves(four["blocks"][path]), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs[np.array([0, 2])])
    np.testing.assert_array_equal(made["embed"]["token"]["embedding"], four["embed"]["token"]["embedding"])
    assert Distillation(OF, teacher="t").initial(teacher, {"teacher": Frozen(four, deep)}) is teacher
    wide = params_lib.abstract(bert.declare(bert.Config(**{**vars(STUDENT), "mlp_width": 32})))
    with pytest.raises(InputError, match="may differ in the number of layers alone"):
        task.initial(wide, {"teacher": Frozen(four, deep)})


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


def loaded(params, **changes):
    """What a run loads of a teacher with these parameters."""
    found = SimpleNamespace(**{"params": params, "config": TEACHER, "task": OF, "tokenizer": None} | changes)
    asked = SimpleNamespace(task=Distillation(OF, teacher="t"), init_from="")
    return further_lib.load(asked, STUDENT, None, lambda path, **options: found)[0]


def test_a_teacher_is_its_familys_own_tree(params):
    """With an adapter or of eight bits, it is what it computes: a student may start from its layers."""
    _, teacher = params
    declaration = adapters.declare(bert.declare(TEACHER), Lora(rank=1, target="query/"))
    adapted = jax.tree.map(lambda x: x + 0.1, adapters.attach(teacher, declaration, jax.random.key(2)))
    small = Int8("blocks/").apply(teacher)
    for given, wanted in ((adapted, adapters.merge(adapted)), (small, compress.unpack(small))):
        jax.tree.map(np.testing.assert_array_equal, loaded(given)["teacher"].params, wanted)
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), loaded(given)["teacher"])
        assert further_lib.digests({"teacher": half}) == further_lib.digests(loaded(given))
    assert further_lib.digests(loaded(adapted)) != further_lib.digests(loaded(small))


def test_a_student_is_evaluated_without_its_teacher():
    data = LabelledText(StdlibTopics(), Bytes(), length=8)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    for task, reads in ((Distillation(OF, teacher="t"), False), (Asks(OF, teacher="t"), True), (OF, False)):
        asked = Experiment(STUDENT, data, task)
        assert further_lib.evaluate_reads(asked, STUDENT, mesh) is reads


@dataclass(frozen=True)
class Asks(Distillation):
    """It reports the loss beside the teacher too."""

    def evaluate(self, params, model_cfg, batch):
        return self.loss(params, model_cfg, batch)[2], {}


def test_a_teacher_of_other_labels_or_texts_is_refused(params):
    _, teacher = params
    assert loaded(teacher, task=Classification(("LABEL_0", "LABEL_1", "LABEL_2")))  # they name nothing
    with pytest.raises(InputError, match="task.teacher t has the labels b, a, c, and the task has a, b, c"):
        loaded(teacher, task=Classification(("b", "a", "c")))
    own = SimpleNamespace(fingerprint="a", encode=lambda text: np.frombuffer(text.encode(), np.uint8))
    same = SimpleNamespace(fingerprint="b", encode=own.encode)
    other = SimpleNamespace(fingerprint="c", encode=lambda text: own.encode(text)[::-1])
    for tokenizers in ({"teacher": own}, {"teacher": same}, {"teacher": None}, {}):
        further_lib.check_tokenizers(tokenizers, own)
    with pytest.raises(InputError, match="task.teacher has another tokenizer than this run"):
        further_lib.check_tokenizers({"teacher": other}, own)
