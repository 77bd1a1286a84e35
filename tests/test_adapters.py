"""LoRA: what it computes, what it trains, what a checkpoint of it holds, and how it is refused."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tools.targets import collectives
from transformer_jax import adapters, kernels, optim, restore, tasks
from transformer_jax.adapters import Lora
from transformer_jax.cli import smaller
from transformer_jax.compress import Int8
from transformer_jax.compress.low_rank import LowRank
from transformer_jax.compress.pruning import Prune
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Experiment, Train
from transformer_jax.models import gpt
from transformer_jax.nn import layers
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint, saved
from transformer_jax.runs import frozen as frozen_lib
from transformer_jax.train import checks, loop
from transformer_jax.train import program as programs

MODEL = gpt.Config(
    vocab_size=257, max_length=16, width=16, num_layers=2, num_heads=2, tie_embeddings=False, scan_layers=False
)
RULE = Lora(rank=2, alpha=6.0, target="attention/|head/", full=("final_norm/",))


apply = jax.jit(gpt.apply, static_argnums=1)


def drawn(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# ----------------------------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", ["plain", "cpu", "decoding"])
def test_a_dense_layer_with_an_adapter_is_the_formula(dora, form):
    """Hu et al. 2021, equation 3; Liu et al. 2024, equation 5. In float64 NumPy."""
    p = {"kernel": drawn((6, 5), 0), "bias": drawn((5,), 1), "lora_a": drawn((6, 2), 2), "lora_b": drawn((2, 5), 3)}
    p |= {"lora_scale": jnp.float32(1.5)} | ({"lora_magnitude": drawn((5,), 4)} if dora else {})
    x = drawn((3, 1, 6), 5)
    w = {name: np.asarray(leaf, np.float64) for name, leaf in p.items()}
    matrix = w["kernel"] + 1.5 * w["lora_a"] @ w["lora_b"]
    if dora:
        matrix = w["lora_magnitude"] * matrix / np.linalg.norm(matrix, axis=0)
    expected = np.asarray(x, np.float64) @ matrix + w["bias"]
    if form == "decoding":
        p["transposed"] = p.pop("kernel").T
    with kernels.use("plain" if form == "plain" else "cpu"):
        np.testing.assert_allclose(layers.dense(p, x, out=None), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layers.matrix(p), matrix, rtol=1e-5, atol=1e-5)


def test_an_adapter_begins_as_the_model_and_merges_into_its_tree():
    params = gpt.init(jax.random.key(0), MODEL)
    declaration = adapters.declare(gpt.declare(MODEL), dataclasses.replace(RULE, dora=True))
    adapted = adapters.attach(params, declaration, jax.random.key(1))
    tokens = np.arange(8)[None]
    np.testing.assert_allclose(apply(adapted, MODEL, tokens), apply(params, MODEL, tokens), atol=1e-6)
    changed = jax.tree.map(lambda x: x + 0.1, adapted)
    merged = adapters.merge(changed)
    assert params_lib.flatten(merged).keys() == params_lib.flatten(params).keys()
    logits = apply(changed, MODEL, tokens)
    np.testing.assert_allclose(apply(merged, MODEL, tokens), logits, atol=1e-4)
    assert np.abs(logits - apply(params, MODEL, tokens)).max() > 0.1


def test_a_merged_adapter_is_taken_out_again():
    declaration = adapters.declare(gpt.declare(MODEL), RULE)
    adapted = jax.tree.map(lambda p: drawn(p.shape, 0), params_lib.abstract(declaration))
    undone = adapters.unmerge(adapters.merge(adapted), adapted)
    for path, leaf in params_lib.flatten(undone).items():
        np.testing.assert_allclose(leaf, params_lib.flatten(adapted)[path], atol=1e-5, err_msg=path)

    small = Int8("blocks/").apply(gpt.init(jax.random.key(0), MODEL))
    declaration = adapters.declare(Int8("blocks/").declare(gpt.declare(MODEL)), RULE)
    adapted = jax.tree.map(
        lambda x: x if x.dtype == jnp.int8 else x + 0.5, adapters.attach(small, declaration, jax.random.key(1))
    )
    query = adapters.unmerge(adapters.merge(adapted), adapted)["blocks"]["attention"]["query"]
    assert "scale" not in query and query["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(query["kernel"], layers.unpacked(adapted["blocks"]["attention"]["query"]), atol=1e-3)


def test_scales_ranks_and_initial_values():
    rule = Lora(rank=4, alpha=8, target=".", ranks=(("mlp/up", 2),), alphas=(("value", 3.0),), rank_stabilised=True)
    declaration = adapters.declare(gpt.declare(MODEL), rule)
    flat = params_lib.flatten(params_lib.init(jax.random.key(0), declaration))
    assert flat["blocks/mlp/up/lora_a"].shape == (2, 16, 2) and flat["blocks/mlp/up/lora_b"].shape == (2, 2, 64)
    np.testing.assert_allclose(flat["blocks/mlp/up/lora_scale"], 8 / 2**0.5)
    np.testing.assert_allclose(flat["blocks/attention/value/lora_scale"], 3 / 4**0.5)
    assert not flat["blocks/mlp/up/lora_b"].any()
    a = np.asarray(flat["blocks/mlp/down/lora_a"])  # uniform, at most 1 / sqrt(in)
    assert np.abs(a).max() <= 64**-0.5 and np.isclose(a.std(), (64 * 3) ** -0.5, rtol=0.1)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            {"target": "attention/qeury"},
            "'attention/qeury' matches nothing; the kernels are blocks/attention/key/kernel",
        ),
        ({"target": "embed"}, "matches nothing"),
        ({"full": ("classification/",)}, "adapter.full 'classification/' matches nothing; the parameters are"),
        ({"ranks": (("qeury", 4),)}, "adapter.ranks 'qeury' matches nothing"),
        ({"rank": 17}, "adapter.rank 17 is more than blocks/attention/query/kernel of shape [2, 16, 16]"),
        ({"full": ("attention/query/kernel",)}, "both match blocks/attention/query/kernel"),
        ({"rank": -1}, "adapter.rank is -1"),
        ({"alpha": 0.0}, "otherwise the adapter changes nothing"),
        ({"target": "(a+)+"}, "adapter.target"),
        ({"target": "("}, "no regular expression"),
    ],
)
def test_a_rule_is_refused(rule, words):
    with pytest.raises(InputError) as error:
        adapters.declare(gpt.declare(MODEL), Lora(**({"rank": 2} | rule)))
    assert words in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------- what it trains


def experiment(folder, **changes) -> Experiment:
    text = folder / "text.txt"
    text.write_text("a rose is a rose is a rose\n" * 30)
    data = corpus.TextCorpus(sources.TextFiles((str(text),)), tokenizers.Bytes(), length=16)
    made = Experiment(MODEL, data, tasks.CausalLM(), optim.AdamW(peak_lr=1e-2), Train(steps=2, batch_size=8))
    sample, saves = tasks.causal_lm.Sample(max_new_tokens=0), Checkpoint(every=2, keep_best=0)
    return dataclasses.replace(made, sample=sample, checkpoint=saves, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run, "base", and an adapter of it, "adapter", trained for four steps."""
    folder = tmp_path_factory.mktemp("runs")
    loop.run(experiment(folder), folder / "base", load=restore.load)
    loop.run(adapted(folder), folder / "adapter", load=restore.load)
    return folder


def adapted(folder, steps=4):
    return experiment(folder, init_from=str(folder / "base"), adapter=RULE, train=Train(steps=steps, batch_size=8))


def test_the_base_is_frozen_to_the_bit_and_in_no_checkpoint(runs):
    base, loaded = restore.load(runs / "base"), restore.load(runs / "adapter")
    before, after = params_lib.flatten(base.params), params_lib.flatten(loaded.params)
    frozen = [path for path in before if not path.startswith("final_norm")]
    assert all(np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes() for path in frozen)
    assert all(np.abs(after[path]).max() > 0 for path in after if path.endswith("lora_b"))
    assert np.abs(after["final_norm/scale"] - before["final_norm/scale"]).max() > 0

    step = runs / "adapter" / "checkpoints" / "4"
    trained = adapters.declare(gpt.declare(MODEL), RULE)
    trained, _ = params_lib.split(trained, trained)
    target = params_lib.abstract(trained)
    checkpoint.restore_params(step, target)  # raises where the step holds another leaf
    assert params_lib.count(trained) < 0.15 * params_lib.count(gpt.declare(MODEL))
    program = programs.make(adapted(runs), collectives.mesh_of((1, 1, 1, 1)))
    moments = [x for x in jax.tree.leaves(program.state.opt_state) if x.shape]
    assert sum(x.size for x in moments) == 2 * params_lib.count(trained)


def test_it_resumes_to_the_bit(runs, tmp_path):
    shutil.copytree(runs / "adapter", tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "4")
    (tmp_path / "a" / "results.json").unlink()
    loop.run(adapted(runs), tmp_path / "a", load=restore.load)
    whole, resumed = restore.load(runs / "adapter").params, restore.load(tmp_path / "a").params
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_the_base_is_found_beside_the_run_or_where_it_is_named(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "copy")
    (tmp_path / "copy" / "base").rename(tmp_path / "copy" / "elsewhere")
    meta = saved.read_meta(tmp_path / "copy" / "adapter" / "checkpoints" / "4")["base"]
    gone = meta | {"path": str(tmp_path / "gone" / "base"), "absolute": str(tmp_path / "gone" / "base")}
    step = tmp_path / "copy" / "adapter" / "checkpoints" / "4"
    with pytest.raises(InputError, match="name its folder: --base DIR"):
        frozen_lib.folder(gone, step)
    assert frozen_lib.folder(gone, runs / "adapter" / "checkpoints" / "4") == str(runs / "base")
    loaded = restore.load(tmp_path / "copy" / "adapter", base=tmp_path / "copy" / "elsewhere")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, restore.load(runs / "adapter").params)


def test_another_base_is_refused(runs, tmp_path):
    loop.run(experiment(tmp_path, seed=1), tmp_path / "other", load=restore.load)
    for load in (
        lambda: restore.load(runs / "adapter", base=tmp_path / "other"),
        lambda: loop.run(
            dataclasses.replace(adapted(runs, steps=5), init_from=str(tmp_path / "other")),
            shutil.copytree(runs / "adapter", tmp_path / "adapter"),
            load=restore.load,
        ),
    ):
        with pytest.raises(InputError, match="is not the model that this adapter was trained on") as error:
            load()
        assert "\n" not in str(error.value)


def test_a_run_in_eight_bits_is_loaded_and_reported(runs, tmp_path):
    lines = smaller.create(tmp_path / "small", runs / "adapter", Int8("blocks/"))
    assert [line.partition(":")[0] for line in lines] == ["before", "after"]
    loaded, before = restore.load(tmp_path / "small"), adapters.merge(restore.load(runs / "adapter").params)
    assert loaded.step == 4 and loaded.adapter is None and loaded.tokenizer is not None
    assert loaded.params["blocks"]["mlp"]["up"]["kernel"].dtype == jnp.int8
    tokens = np.arange(8)[None]
    np.testing.assert_allclose(apply(loaded.params, MODEL, tokens), apply(before, MODEL, tokens), atol=0.02)
    with pytest.raises(InputError, match="matches nothing"):
        smaller.create(tmp_path / "other", runs / "adapter", Int8("qeury"))
    assert not (tmp_path / "other").exists()


def test_smaller_runs_are_loaded_and_reported(runs, tmp_path):
    before = restore.load(runs / "base")
    for kind, rule in (("low-rank", LowRank(share=0.4)), ("heads", smaller.Heads(1)), ("prune", Prune(share=0.25))):
        first, second = smaller.create(tmp_path / kind, runs / "base", rule)
        assert first.startswith("before: kernels ") and second.startswith("after: kernels ")
        loaded = restore.load(tmp_path / kind)
        fewer = params_lib.count(loaded.family.declare(loaded.config)) < params_lib.count(gpt.declare(MODEL))
        assert ("zeros)" in second, "low_a" in loaded.params["blocks"]["mlp"]["up"], fewer) == (
            kind == "prune",
            kind == "low-rank",
            kind == "heads",
        )
        assert apply(loaded.params, loaded.config, np.arange(8)[None]).shape == (1, 8, 257)
    assert before.config.num_heads == 2 and loaded.config == before.config


@pytest.mark.slow
def test_factors_are_trained_further(runs, tmp_path):
    made = experiment(runs, init_from=str(runs / "base"), compress=LowRank(share=0.4), train=Train(2, batch_size=8))
    loop.run(made, tmp_path / "run", load=restore.load)
    found, began = restore.load(tmp_path / "run").params, LowRank(share=0.4).apply(restore.load(runs / "base").params)
    change = found["blocks"]["mlp"]["up"]["low_a"] - began["blocks"]["mlp"]["up"]["low_a"]
    assert 0 < np.abs(change).max() < 0.1


@pytest.mark.slow
def test_an_adapter_beside_a_base_of_eight_bits_trains_and_resumes(runs, tmp_path):
    made = dataclasses.replace(adapted(runs, steps=2), compress=Int8("blocks/"))
    loop.run(made, tmp_path / "run", load=restore.load)
    loop.run(dataclasses.replace(made, train=Train(steps=4, batch_size=8)), tmp_path / "run", load=restore.load)
    loaded = restore.load(tmp_path / "run")
    base = Int8("blocks/").apply(restore.load(runs / "base").params)
    kernel = loaded.params["blocks"]["attention"]["query"]
    np.testing.assert_array_equal(kernel["kernel"], base["blocks"]["attention"]["query"]["kernel"])
    assert kernel["kernel"].dtype == jnp.int8 and np.abs(kernel["lora_b"]).max() > 0


def test_eight_bits_are_not_trained(tmp_path):
    with pytest.raises(InputError, match="kernels of eight bits are not trained"):
        programs.make(experiment(tmp_path, compress=Int8("blocks/")), collectives.mesh_of((1, 1, 1, 1)))


def test_an_adapter_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="name its folder with --init-from"):
        loop.run(experiment(tmp_path, adapter=RULE), tmp_path / "run", load=restore.load)
    assert not (tmp_path / "run").exists()


def test_a_kernel_that_the_model_multiplies_by_itself_is_refused():
    def loss(params, batch, key):  # a family that multiplies by a kernel itself
        return jnp.sum(layers.dense(params["a"], batch, out=None) @ params["b"]["kernel"]), 1.0, {}

    declaration = {name: layers.declare_dense(4, 4, (None, None), bias=False, std=0.1) for name in ("a", "b")}
    for target, is_read in (("a/", True), ("b/", False)):
        params = params_lib.abstract(adapters.declare(declaration, Lora(rank=1, target=target)))
        small = params_lib.abstract(Int8(target).declare(declaration))
        if is_read:
            checks.check_dense(loss, params, jnp.ones((1, 2, 4)))
            checks.check_dense(loss, small, jnp.ones((1, 2, 4)))
        else:
            with pytest.raises(InputError, match="the loss does not depend on b/lora_a"):
                checks.check_dense(loss, params, jnp.ones((1, 2, 4)))
            with pytest.raises(InputError, match="b/scale, so that kernel is computed without its scales"):
                checks.check_dense(loss, small, jnp.ones((1, 2, 4)))


@pytest.mark.parametrize("mesh", ["data2-fsdp2-tensor2", pytest.param("fsdp8", marks=pytest.mark.slow)])
def test_on_eight_devices_it_is_what_it_is_on_one(mesh):
    made = collectives.experiments()["gpt"]
    rule = Lora(rank=2, target=".", dora=True)
    made = dataclasses.replace(made, adapter=rule, model=dataclasses.replace(made.model, tie_embeddings=False))
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 80, (8, 16)).astype(np.int32) for name in ("inputs", "targets")}
    batch["weights"] = np.ones((8, 16), np.float32)
    results = []
    for sizes in ((1, 1, 1, 1), collectives.MESHES[mesh]):
        program, step = collectives.compile_step(made, sizes)
        values = jax.tree.map(lambda p: 0.2 * np.asarray(drawn(p.shape, 1)), params_lib.abstract(program.declaration))
        with jax.set_mesh(collectives.mesh_of(sizes)):
            state = program.create(values)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, program.batch)
            state, metrics = step(state, jax.device_put(batch, shardings), jax.random.key(1))
        results.append((float(metrics["loss"]), params_lib.flatten(jax.device_get(state.params))))
        for path, leaf in params_lib.flatten(state.base).items():
            np.testing.assert_array_equal(leaf, params_lib.flatten(values)[path])
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for path, leaf in results[0][1].items():
        np.testing.assert_allclose(leaf, results[1][1][path], rtol=1e-5, atol=1e-5, err_msg=path)
