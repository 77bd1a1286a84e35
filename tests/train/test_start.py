"""Starting from another run's encoder: the trunk arrives to the bit, each head says where it is from."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from transformer_jax import sharding
from transformer_jax.data import corpus, sources, tables, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Experiment
from transformer_jax.models import bert, gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks.causal_lm import CausalLM
from transformer_jax.tasks.classification import Classification, labelled
from transformer_jax.tasks.text import TextTask
from transformer_jax.train import start

PRETRAINED = bert.Config(vocab_size=20, max_length=32, width=8, num_layers=2, num_heads=2, heads=("mlm", "pair"))
MODEL = dataclasses.replace(
    PRETRAINED, vocab_size=99, max_length=16, width=16, heads=("pair", "classification"), num_labels=3, dropout=0.0
)


@dataclasses.dataclass(frozen=True)
class AnyModels(CausalLM):
    """A task that asks nothing of its model but its positions."""

    def check(self, model_cfg, data):
        TextTask.check(self, model_cfg, data)


EXPERIMENT = Experiment(MODEL, corpus.TextCorpus(sources.Embedded(), length=16), AnyModels(), init_from="runs/mlm")
KEY = jax.random.key(7)


def moved(experiment=EXPERIMENT, pretrained=PRETRAINED, labels=()):
    said: list[str] = []
    adopted = start.adopt(experiment, pretrained, said.append)
    found = bert.init(jax.random.key(1), pretrained)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = start.transfer(found, bert.declare(adopted.model), adopted, KEY, mesh, said.append, labels=labels)
    return adopted.model, found, made, "\n".join(said)


def test_the_trunk_is_theirs_and_the_heads_are_said():
    model, found, made, said = moved()
    assert (model.width, model.vocab_size, model.num_labels, model.dropout) == (8, 20, 3, 0.0)
    assert params_lib.flatten(made).keys() == params_lib.flatten(bert.declare(model)).keys()
    for part in ("embed", "blocks", "pair", "pooler"):
        jax.tree.map(np.testing.assert_array_equal, made[part], found[part])
    scratch = bert.init(KEY, model)
    same = partial(np.testing.assert_allclose, rtol=1e-6)  # one was drawn under jit
    jax.tree.map(same, made["classification"], scratch["classification"])
    assert "model.width is 8 as in runs/mlm, not 16" in said
    assert "head 'classification': initialised from scratch (runs/mlm has none)" in said
    assert "head 'mlm' of runs/mlm: dropped" in said
    assert "head 'pair': as in runs/mlm; to initialise it from scratch, give --fresh pair" in said


def test_fresh_is_by_name():
    _, found, made, said = moved(dataclasses.replace(EXPERIMENT, fresh=("pair",)))
    assert (np.asarray(made["pair"]["kernel"]) != found["pair"]["kernel"]).any()
    assert "head 'pair': initialised from scratch (asked for with --fresh)" in said
    with pytest.raises(InputError, match="fresh has 'blocks', which is no head of this model; its heads: pooler, pair"):
        moved(dataclasses.replace(EXPERIMENT, fresh=("blocks",)))


def test_another_number_of_labels_offers_a_fresh_head():
    """Acceptance 8 of the encoders."""
    other = dataclasses.replace(PRETRAINED, heads=("classification",), num_labels=2)
    with pytest.raises(
        InputError, match=r"its head 'classification' has .*; .*from scratch, give --fresh classification$"
    ):
        moved(pretrained=other)
    with pytest.raises(InputError, match=r"give --fresh pair classification$"):  # the flag is given once
        moved(dataclasses.replace(EXPERIMENT, fresh=("pair",)), other)
    _, _, made, _ = moved(dataclasses.replace(EXPERIMENT, fresh=("pair", "classification")), other)
    assert made["classification"]["kernel"].shape == (8, 3)


def test_another_family_and_too_few_positions_are_refused():
    with pytest.raises(InputError, match="init_from runs/mlm is a gpt, the experiment's model is a bert"):
        start.adopt(EXPERIMENT, gpt.Config(vocab_size=20), print)
    with pytest.raises(InputError, match=r"data.length = 16 is longer than model.max_length = 8"):
        start.adopt(EXPERIMENT, dataclasses.replace(PRETRAINED, max_length=8), print)


def test_a_head_is_compared_by_its_labels():
    """By name and not by position: rows of the same names are moved, others are refused; LABEL_0 is no name."""
    pretrained = dataclasses.replace(MODEL, heads=("classification",))
    task = Classification(labels=("bad", "fair", "good"))
    data = labelled.LabelledText(tables.Table(("a.tsv",)), tokenizers.Bytes(), length=8)
    experiment = Experiment(pretrained, data, task, init_from="runs/other")
    _, found, made, said = moved(experiment, pretrained, ("good", "bad", "fair"))
    for leaf in ("kernel", "bias"):
        theirs, ours = found["classification"][leaf], made["classification"][leaf]
        np.testing.assert_array_equal(ours, np.asarray(theirs)[..., [1, 2, 0]])
    assert "its labels are moved from the order good, bad, fair to bad, fair, good" in said
    with pytest.raises(InputError, match=r"head 'classification' tells apart cat, .* give --fresh classification$"):
        moved(experiment, pretrained, ("cat", "dog", "cow"))
    _, found, made, _ = moved(experiment, pretrained, ("LABEL_0", "LABEL_1", "LABEL_2"))
    np.testing.assert_array_equal(made["classification"]["kernel"], found["classification"]["kernel"])
