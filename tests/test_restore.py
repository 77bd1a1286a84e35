"""load(path): a workdir, one step, or a snapshot folder becomes a model that computes the same numbers."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import transformer_jax
from transformer_jax import config_json, optim, restore, sharding
from transformer_jax import experiment as experiments
from transformer_jax.data import corpus, tokenizers
from transformer_jax.errors import InputError
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.runs import checkpoint
from transformer_jax.runs.writer import Writer
from transformer_jax.tasks import causal_lm
from transformer_jax.train import state as state_lib

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = ROOT / "tests" / "data" / "hf" / "gpt2"
MODEL = gpt.Config(vocab_size=256, max_length=16, width=64, num_layers=2, num_heads=2, scan_layers=False)
EXPERIMENT = experiments.Experiment(
    model=MODEL,
    data=corpus.TextCorpus(tokenizer=tokenizers.Bytes(), length=16),
    task=causal_lm.CausalLM(label_smoothing=0.1),
)
TOKENS = np.arange(8)[None]


def write_workdir(folder: Path, *steps: int, ema: bool = False, experiment=EXPERIMENT) -> Path:
    """What a run leaves behind: config.json, the tokenizer, and a checkpoint at each step (params differ by step)."""
    folder.mkdir(exist_ok=True)
    config_json.save(experiment, folder / "config.json")
    tokenizers.build(tokenizers.Bytes(), []).save(folder / "tokenizer")
    optimizer = optim.make(experiment.optim, 10, gpt.declare(experiment.model))
    config = config_json.to_json(experiment)
    with Writer(folder / "checkpoints", family="gpt", config=config, keep=5) as writer:
        for step in steps:
            state = state_lib.create(init(step), optimizer, ema=ema)
            state = dataclasses.replace(state, step=jnp.int32(step), ema=init(step + 100) if ema else None)
            writer.save(state, rows=step)
    return folder


def init(step: int):
    return gpt.init(jax.random.key(step), MODEL)


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with checkpoints at steps 9 and 10. Tests that spoil it work on a copy."""
    return write_workdir(tmp_path_factory.mktemp("run"), 9, 10)


def refused(path, **options) -> str:
    with pytest.raises(InputError) as error:
        restore.load(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_workdir_gives_its_newest_step(workdir):
    loaded = transformer_jax.load(workdir)
    assert (loaded.family, loaded.step) == (gpt, 10)
    assert loaded.config == dataclasses.replace(MODEL, dtype="float32")  # on a CPU, by the default policy
    assert loaded.task == causal_lm.CausalLM(label_smoothing=0.1)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("naïve")) == "naïve"
    assert_identical(loaded.params, init(10))
    assert {leaf.sharding for leaf in jax.tree.leaves(loaded.params)} == {SingleDeviceSharding(jax.devices()[0])}
    logits = loaded.family.apply(loaded.params, loaded.config, TOKENS)
    np.testing.assert_array_equal(logits, gpt.apply(init(10), MODEL, TOKENS))


def test_the_parameters_alone_are_read(workdir):
    """Of parameters and two moments, a third is read."""
    loaded = restore.load(workdir)
    size = 4 * params_lib.count(gpt.declare(MODEL))
    assert 0.8 * size < loaded.bytes_read < 1.15 * size


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("blocks/mlp", lambda path: path.startswith("blocks/mlp/")),
        ("embed/", lambda path: path.startswith("embed/")),
        (lambda path: path.endswith("/bias"), lambda path: path.endswith("/bias")),
    ],
)
def test_a_part_is_read_alone(workdir, only, wanted):
    """From a workdir, from a step, and from a snapshot, where the tensors of other parts are not read."""
    for path in (workdir, workdir / "checkpoints" / "9", SNAPSHOT):
        whole = restore.load(path)
        flat = {name: leaf for name, leaf in params_lib.flatten(whole.params).items() if wanted(name)}
        loaded = restore.load(path, only=only, verify=False)
        found = params_lib.flatten(loaded.params)
        assert found.keys() == flat.keys() and loaded.config == whole.config
        for name, leaf in found.items():
            np.testing.assert_array_equal(leaf, flat[name], err_msg=name)
        share = sum(leaf.nbytes for leaf in flat.values()) / sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params))
        assert loaded.bytes_read < (share + 0.15) * whole.bytes_read
        if path == SNAPSHOT:
            assert loaded.bytes_read == sum(leaf.nbytes for leaf in flat.values())


def test_a_part_that_is_none_is_refused(workdir):
    for path in (workdir, SNAPSHOT):
        with pytest.raises(
            InputError, match=r"only='mpl' names no parameter of this model; its parts are blocks, embed"
        ):
            restore.load(path, only="mpl")


def test_a_step_needs_nothing_around_it(workdir, tmp_path):
    assert_identical(restore.load(workdir / "checkpoints" / "9").params, init(9))
    assert restore.load(workdir / "checkpoints" / "9").tokenizer is not None  # found in the workdir
    alone = shutil.copytree(workdir / "checkpoints" / "9", tmp_path / "elsewhere" / "9")
    loaded = restore.load(alone)
    assert_identical(loaded.params, init(9))
    assert (loaded.step, loaded.tokenizer, loaded.task) == (9, None, causal_lm.CausalLM(label_smoothing=0.1))


def test_the_average_is_loaded_where_the_run_kept_one(tmp_path):
    loaded = restore.load(write_workdir(tmp_path / "run", 3, ema=True))
    assert_identical(loaded.params, init(103))


def test_dtype_and_precision(workdir, tmp_path):
    half = restore.load(workdir, dtype=jnp.bfloat16)
    assert half.config.dtype == "bfloat16"
    assert_identical(half.params, jax.tree.map(lambda p: p.astype(jnp.bfloat16), init(10)))
    stated = dataclasses.replace(EXPERIMENT, precision=experiments.Precision(compute="bfloat16"))
    loaded = restore.load(write_workdir(tmp_path / "run", 1, experiment=stated))
    assert loaded.config.dtype == "bfloat16"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"float32"}
    assert refused(workdir, dtype=jnp.int8) == "dtype is int8; it must be one of float32, bfloat16, float16"


def test_another_stored_dtype_is_refused_at_every_entry_and_cast_only_when_asked(tmp_path):
    """Orbax would cast silently: a float32 model from bfloat16 parameters, a bfloat16 run on float32 moments."""
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), init(1))
    optimizer = optim.make(EXPERIMENT.optim, 10, gpt.declare(MODEL))
    with Writer(tmp_path / "run/checkpoints", family="gpt", config=config_json.to_json(EXPERIMENT)) as writer:
        writer.save(state_lib.create(half, optimizer), rows=0)
    step, mesh = tmp_path / "run/checkpoints/0", sharding.make_mesh(devices=jax.devices()[:1])
    wanted = state_lib.abstract(gpt.declare(MODEL), optimizer, mesh)
    entries = {
        "restore_state": lambda: checkpoint.restore_state(step, wanted),
        "restore_params": lambda: checkpoint.restore_params(step, wanted.params),
        "load of a workdir": lambda: restore.load(tmp_path / "run"),
        "load of a step": lambda: restore.load(step),
    }
    for name, entry in entries.items():
        with pytest.raises(InputError, match=r"bfloat16\[.*\] there, but float32\[.*nothing is cast unless dtype="):
            print(name, entry())
    whole = jax.tree.map(lambda p: p.astype(jnp.float32), half)
    assert_identical(restore.load(tmp_path / "run", dtype="float32").params, whole)
    assert_identical(checkpoint.restore_params(step, wanted.params, dtype="float32")[0], whole)


def test_placement(workdir):
    """A mesh, one sharding, a tree of them: for a checkpoint and for a snapshot."""
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    everywhere = NamedSharding(mesh, PartitionSpec())
    for path in (workdir, SNAPSHOT):
        want = restore.load(path)
        places = params_lib.shardings(want.family.declare(want.config), mesh)
        for given, expected in [(mesh, places), (places, places), (everywhere, None)]:
            loaded = restore.load(path, sharding=given)
            assert_identical(loaded.params, want.params)
            found = jax.tree.map(lambda leaf: leaf.sharding, loaded.params)
            assert found == (expected or jax.tree.map(lambda leaf: everywhere, loaded.params))


def test_a_snapshot_computes_what_transformers_does():
    loaded = restore.load(SNAPSHOT)
    assert (loaded.family, loaded.step, loaded.task) == (gpt, None, causal_lm.CausalLM(stop_ids=(287,)))
    size = (SNAPSHOT / "model.safetensors").stat().st_size
    assert 0.8 * size < loaded.bytes_read < size, "the tensors, without the file's header"
    assert loaded.tokenizer is not None
    assert loaded.config.dtype == "float32"
    expected = np.load(SNAPSHOT / "expected.npz")
    logits = loaded.family.apply(loaded.params, loaded.config, expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-5)
    assert restore.load(SNAPSHOT, dtype="bfloat16").params["embed"]["token"]["embedding"].dtype == jnp.bfloat16


def test_what_is_not_a_model_is_refused(workdir, tmp_path):
    assert refused(tmp_path / "gpt2") == (
        f"{tmp_path / 'gpt2'} does not exist; give a workdir, a step's folder or a local Hugging Face snapshot folder"
    )
    assert "is a file" in refused(workdir / "config.json")
    assert refused(tmp_path) == (
        f"{tmp_path} is neither a workdir (no checkpoints/ in it), nor a step's folder (no meta/), nor a Hugging Face "
        "snapshot (no config.json with a model_type)"
    )
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp").mkdir(parents=True)
    assert refused(tmp_path) == f"{tmp_path / 'checkpoints'} holds no complete step yet; train until the first save"


def edit_meta(step: Path, **changes) -> None:
    path = step / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_config_that_does_not_fit_the_arrays_is_refused(workdir, tmp_path):
    step = shutil.copytree(workdir / "checkpoints" / "9", tmp_path / "9")
    other = dataclasses.replace(EXPERIMENT, model=dataclasses.replace(MODEL, num_layers=3))
    edit_meta(step, config=config_json.to_json(other))
    message = refused(step, verify=False)
    assert message.startswith(
        f"{step / 'params'}: leaf blocks/attention/key/bias is float32[2,64] there, but the model"
    )
    assert "float32[3,64]" in message


def test_a_config_names_only_types_of_this_package(workdir, tmp_path):
    step = shutil.copytree(workdir / "checkpoints" / "9", tmp_path / "9")
    config = config_json.to_json(EXPERIMENT)
    edit_meta(step, config=config | {"model": {"type": "os.system", "vocab_size": 1}})
    assert "'os.system' is not one of" in refused(step, verify=False)
    edit_meta(step, family="bert")
    assert refused(step, verify=False).startswith(f"{step / 'meta'}")


def test_loading_imports_no_tensorflow_and_no_torch(workdir):
    code = (
        "import sys, transformer_jax; transformer_jax.load(sys.argv[1]); "
        "print(*{'torch', 'transformers', 'tensorflow', 'tensorflow_datasets', 'grain'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(workdir)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    assert done.stderr == ""
