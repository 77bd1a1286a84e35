"""Variant effects by masked marginals, and the peptides of modlAMP read as data."""

import importlib.metadata
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from transformer_jax.data import sources
from transformer_jax.data.tokenizers import Residues
from transformer_jax.errors import InputError
from transformer_jax.models import bert
from transformer_jax.tasks.classification.peptides import Peptides
from transformer_jax.tasks.masked_lm import variants


def test_masked_marginals_by_definition():
    cfg = bert.Config(
        vocab_size=33, max_length=12, width=12, num_layers=1, num_heads=2, num_types=0, position="rotary",
        norm_order="pre", embedding_norm=False, zeroed_token=32, heads=("mlm",), init_std=0.5,
    )  # fmt: skip
    params, esm, sequence = bert.init(jax.random.key(0), cfg), Residues().build([]), "MKVLA"
    found = variants.masked_marginals(params, cfg, esm, sequence)
    whole = np.concatenate([[0], esm.encode(sequence), [2]]).astype(np.int32)
    tokens = np.tile(whole, (5, 1))
    tokens[np.arange(5), np.arange(5) + 1] = 32
    log_p = jax.jit(lambda p, x: jax.nn.log_softmax(bert.mlm(p, cfg, bert.apply(p, cfg, x))))(params, tokens)
    np.testing.assert_allclose(found, np.asarray(log_p)[np.arange(5), np.arange(5) + 1], atol=2e-5)
    effects = variants.effects(params, cfg, esm, sequence, ["K2R", "K2R:A5G", "M1M"])
    k2r = found[1, esm.encode("R")[0]] - found[1, esm.encode("K")[0]]
    a5g = found[4, esm.encode("G")[0]] - found[4, esm.encode("A")[0]]
    np.testing.assert_allclose(effects, [k2r, k2r + a5g, 0], atol=1e-6)
    for given, message in (
        ("A2G", "the sequence has 'K' there"),
        ("A9G", "ends at position 5"),
        ("nonsense", "'nonsense' is not a variant"),
    ):
        with pytest.raises(InputError, match=message):
            variants.effects(params, cfg, esm, sequence, [given])
    with pytest.raises(InputError, match="not a token for each of its 3 letters"):
        variants.masked_marginals(params, cfg, esm, "MJ1")


def test_peptides_are_read_as_data(tmp_path, monkeypatch):
    """Twice the same counts once, both labels not at all; a package that is missing is named in a line."""
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("ACDEFGHIK"), 12)) for _ in range(300)]
    rows = [f"{one}, {i % 2}" for i, one in enumerate(letters)] + [f"{letters[0]},0", f"{letters[1]},0"]
    path = tmp_path / "AMPvsUniProt.csv"
    path.write_text("\n".join(["302,1,UniProt,AMP", *rows, ""]))
    found = SimpleNamespace(locate_file=lambda name: path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    sides = {side: {row.text: row.label for row in Peptides().rows(side)} for side in ("train", "validation", "test")}
    assert sum(map(len, sides.values())) == len(set().union(*sides.values())) == 299
    assert letters[1] not in set().union(*sides.values())
    assert 40 < len(sides["test"]) < 85
    assert {label for side in sides.values() for label in side.values()} == {"other", "antimicrobial"}
    assert sum(side.get(letters[3]) == "antimicrobial" for side in sides.values()) == 1
    assert set(dict(sources.whole(Peptides().documents("train"))).values()) == set(sides["train"])
    assert 0 <= Peptides().baselines()["baseline_roc_auc_of_1_to_3_mers"] <= 1
    path.write_text("1,1,a,b\nACD,x\n")
    with pytest.raises(InputError, match=r"AMPvsUniProt.csv:2: .* is not a peptide and 0 or 1"):
        Peptides().rows("train")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(InputError, match="pip install --no-deps modlamp==4.3.3") as raised:
        Peptides().rows("train")
    assert "\n" not in str(raised.value)
