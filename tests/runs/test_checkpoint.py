"""Checkpoints: what is saved comes back to the bit, on any mesh; what does not match is refused in one line."""

import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax import files, losses, optim, sharding
from transformer_jax.errors import InputError, RunError
from transformer_jax.models import gpt
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.runs import checkpoint, saved
from transformer_jax.runs import writer as writers
from transformer_jax.train import state as state_lib
from transformer_jax.train import step as step_lib

ROOT = Path(__file__).resolve().parents[2]
MATRIX = {"a": params_lib.Param((2048, 1024), (None, None), params_lib.zeros)}
DECLARATION = {
    "embed": {"embedding": params_lib.Param((64, 256), ("vocab", "embed"), params_lib.normal(0.02))},
    "blocks": params_lib.stack({"kernel": params_lib.Param((256, 256), ("embed", "mlp"), params_lib.normal(0.02))}, 2),
}
PARAMETER_BYTES = 4 * params_lib.count(DECLARATION)
OPTIMIZER = optim.make(Optim(), 10, DECLARATION)
# When one file fails, TensorStore's other operations report to an event loop that Orbax has closed.
AFTER_A_FAILURE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ONE_DEVICE = sharding.make_mesh(devices=jax.devices()[:1])


def make_state(step: int = 0, *, ema: bool = False, mesh=ONE_DEVICE):
    """A state whose every leaf is different and none is zero."""
    state = state_lib.init(jax.random.key(0), DECLARATION, OPTIMIZER, mesh, ema=ema)
    keys = iter(jax.random.split(jax.random.key(step), len(jax.tree.leaves(state))))

    def fill(leaf):
        random = jax.random.normal(next(keys), leaf.shape) * 10
        return jax.device_put(random.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, state).replace(step=jax.device_put(jnp.int32(step), state.step.sharding))


def target(*, ema: bool = False, mesh=ONE_DEVICE):
    return state_lib.abstract(DECLARATION, OPTIMIZER, mesh, ema=ema)


def writer(folder, **options):
    return writers.Writer(folder, family="toy", config={"type": "toy"}, **options)


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A checkpoints folder that holds step 3, with an average. Tests that spoil it work on a copy."""
    folder = tmp_path_factory.mktemp("saved")
    with writer(folder) as w:
        w.save(make_state(3, ema=True), rows=96, metric=1.5)
    return folder


# ------------------------------------------------------------------------------------------------------- round trips


def test_a_state_comes_back_to_the_bit(stored):
    state, meta = checkpoint.restore_state(stored / "3", target(ema=True))
    assert_identical(state, make_state(3, ema=True))
    facts = {name: meta[name] for name in ("format", "step", "rows", "family", "config", "metric")}
    assert facts == {"format": 3, "step": 3, "rows": 96, "family": "toy", "config": {"type": "toy"}, "metric": 1.5}
    assert meta["dtypes"] == {"params": ["float32"], "optimizer": ["float32", "int32"], "ema": ["float32"]}


def test_orbax_keeps_its_log_to_itself(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="absl")
    with writer(tmp_path, keep_best=1) as w:
        w.save(make_state(1), rows=1)
    checkpoint.restore_state(tmp_path / "1", target())
    assert [record for record in caplog.records if record.name == "absl"] == []


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["data", "all"])
def test_a_state_comes_back_on_another_mesh(stored, mesh, tmp_path):
    there = sharding.make_mesh(**mesh)
    wanted = target(ema=True, mesh=there)
    state, _ = checkpoint.restore_state(stored / "3", wanted)
    assert_identical(state, make_state(3, ema=True))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, wanted)

    with writer(tmp_path) as w:  # and back
        w.save(state, rows=96)
    assert_identical(checkpoint.restore_state(tmp_path / "3", target(ema=True))[0], make_state(3, ema=True))


def test_parameters_alone_are_read(stored):
    params, bytes_read = checkpoint.restore_params(stored / "3", target().params, ema=False)
    assert_identical(params, make_state(3, ema=True).params)
    assert 0.8 * PARAMETER_BYTES < bytes_read < 1.1 * PARAMETER_BYTES  # a sixth part of the folder is not this
    everything = sum(f.stat().st_size for f in (stored / "3").rglob("*") if f.is_file())
    assert bytes_read < 0.3 * everything


def test_the_average_is_read_where_there_is_one(stored, tmp_path):
    params, bytes_read = checkpoint.restore_params(stored / "3", target().params)
    assert_identical(params, make_state(3, ema=True).ema)
    assert bytes_read < 1.1 * PARAMETER_BYTES
    with writer(tmp_path) as w:
        w.save(make_state(1), rows=1)
    assert_identical(checkpoint.restore_params(tmp_path / "1", target().params)[0], make_state(1).params)


def test_a_dtype_that_is_asked_for_is_cast_to(stored):
    params, _ = checkpoint.restore_params(stored / "3", target().params, ema=False, dtype=jnp.bfloat16)
    assert_identical(params, jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_state(3, ema=True).params))


def test_stopped_and_resumed_is_uninterrupted(tmp_path):
    """A GPT with dropout, accumulation and an average: 3 steps, save, 3 more = restore, 3 more."""
    cfg = gpt.Config(vocab_size=13, max_length=8, width=8, num_layers=1, num_heads=2, dropout=0.2, scan_layers=False)
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    declaration, key = gpt.declare(cfg), jax.random.key(1)
    places = NamedSharding(mesh, PartitionSpec("data"))

    def loss(params, batch, key):
        logits = gpt.apply(params, cfg, batch["inputs"], key=key)
        return *losses.cross_entropy(logits, batch["targets"])[:2], {}

    def batch(step):
        tokens = np.random.default_rng(step).integers(0, 13, (8, 9))
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}

    optimizer = optim.make(Optim(peak_lr=1e-2), 6, declaration)
    learning_rate = Optim(peak_lr=1e-2).schedule(6)
    step = step_lib.make_step(loss, optimizer, learning_rate, accumulate=2, ema_decay=0.9)
    shardings = state_lib.state_shardings(declaration, optimizer, mesh, ema=True)
    with jax.set_mesh(mesh), writer(tmp_path) as w:
        run = step_lib.jit_step(step, shardings, places)
        state = state_lib.init(jax.random.key(0), declaration, optimizer, mesh, ema=True)
        for n in range(6):
            if n == 3:
                w.save(state, rows=8 * 3)  # and the next step overwrites these buffers at once
            state, _ = run(state, batch(n), key)
    with jax.set_mesh(mesh):
        wanted = state_lib.abstract(declaration, optimizer, mesh, ema=True)
        again, meta = checkpoint.restore_state(tmp_path / "3", wanted)
        assert meta["rows"] == 24
        for n in range(3, 6):
            again, _ = run(again, batch(n), key)
    assert run._cache_size() == 1
    assert_identical(again, state)


def test_what_was_saved_is_not_what_comes_after(tmp_path):
    """The step after a save overwrites the saved state's buffers: large ones too were copied before save returned."""
    add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = state_lib.create({"a": jnp.zeros((2048, 1024))}, optimizer := optim.make(Optim(), 10, MATRIX))
    with writer(tmp_path) as w:
        w.save(state, rows=0)
        for _ in range(5):
            state = add(state)
    place = NamedSharding(ONE_DEVICE, PartitionSpec())
    shapes = jax.eval_shape(lambda: state_lib.create({"a": jnp.zeros((2048, 1024))}, optimizer))
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    restored, _ = checkpoint.restore_state(tmp_path / "0", wanted)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(restored))
    assert all(np.all(np.asarray(leaf) == 5) for leaf in jax.tree.leaves(state))


# ----------------------------------------------------------------------------------------------- what stays on the disk


def test_the_newest_and_the_best_are_kept(tmp_path):
    with writer(tmp_path, keep=2, keep_best=1) as w:
        for step, metric in [(1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, float("nan"))]:
            w.save(make_state(step), rows=step, metric=metric)
        w.save(make_state(5), rows=5)  # there already: nothing happens
    assert saved.steps(tmp_path) == [2, 4, 5]
    assert saved.latest_step(tmp_path) == 5
    with writer(tmp_path, keep=1, keep_best=1) as w:  # a resumed run still knows which was best
        w.save(make_state(6), rows=6, metric=1.5)
    assert saved.steps(tmp_path) == [2, 6]


def test_no_folder_holds_no_step(tmp_path):
    assert saved.latest_step(tmp_path / "nothing") is None
    assert saved.steps(tmp_path) == []


KILLED = """
import os, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from transformer_jax import optim
from transformer_jax.nn.params import Param, zeros
from transformer_jax.runs import writer
from transformer_jax.train import state
params = {"a": jax.random.normal(jax.random.key(0), (4096, 2048))}
s = state.create(params, optim.make(optim.Optim(), 10, {"a": Param((4096, 2048), (None, None), zeros)}))
writer.Writer(Path(sys.argv[1]), family="toy", config={}).save(s, rows=0)
while not any(Path(sys.argv[1]).iterdir()):
    time.sleep(0.001)
os._exit(9)  # as a SIGKILL would: while the arrays are being written
"""


def test_a_killed_save_is_ignored_and_cleaned(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and left[0].startswith("0.part"), left  # a temporary folder, not step 0
    assert saved.latest_step(tmp_path) is None and saved.newest(tmp_path) is None
    (tmp_path / "0.part.1.json").touch()  # one of several processes had digested its files
    (tmp_path / "5.orbax-checkpoint-tmp-12").mkdir()  # of format 1
    shutil.copytree(tmp_path / left[0], tmp_path / "3.deleting")
    (tmp_path / "notes.txt").touch()
    said: list[str] = []
    with writer(tmp_path, say=said.append) as w:
        w.save(make_state(1), rows=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "notes.txt"]
    assert len(said) == 4 and f"{left[0]}: left by an interrupted save; removed" in said


def test_ctrl_c_during_a_save_comes_after_it(tmp_path, monkeypatch):
    state, sent, sync = make_state(0), threading.Event(), files.sync_tree

    def sync_late(folder):  # the save outlasts the signal, however fast the disk and slow the timer is
        assert sent.wait(60)
        sync(folder)

    monkeypatch.setattr(files, "sync_tree", sync_late)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with writer(tmp_path) as w:
        w.save(state, rows=0)

        def interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            sent.set()

        threading.Timer(0.1, interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            w.wait()
        assert saved.steps(tmp_path) == [0]
        w.save(state.replace(step=jnp.int32(1)), rows=1)
    signal.signal(signal.SIGINT, before)
    assert saved.steps(tmp_path) == [0, 1]


@contextlib.contextmanager
def full_disk():
    """A limit on the size of files stands for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@AFTER_A_FAILURE
def test_a_save_that_fails_is_tried_again_and_then_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "PAUSES", (0.0, 0.0))
    said: list[str] = []
    with pytest.raises(RunError) as error, writer(tmp_path, say=said.append) as w:
        w.save(make_state(1), rows=1)
        assert not w.wait() and said == []
        with full_disk():
            w.save(make_state(2), rows=2)
            assert w.wait(), "it asks for another try"
        w.save(make_state(3), rows=3)
        assert not w.wait() and not w.check(), "there is room again"
        assert saved.steps(tmp_path) == [1, 3]
        with full_disk():
            for step in (4, 5, 6):
                w.save(make_state(step), rows=step)
                w.wait()
    assert [line.partition(": ")[0] for line in said] == [f"saving step {n} to {tmp_path} failed" for n in (2, 4, 5)]
    assert said[0].endswith("; trying again in 0 s (try 2 of 3)")
    assert str(error.value).startswith(f"saving step 6 to {tmp_path} failed: ") and "\n" not in str(error.value)
    assert str(error.value).endswith(
        "the newest step there is 3; make room or mend the disk, and give the command again"
    )
    assert saved.steps(tmp_path) == [1, 3], "what was there is as it was"
    assert_identical(checkpoint.restore_state(tmp_path / "3", target())[0], make_state(3))


@AFTER_A_FAILURE
def test_a_failure_is_seen_without_waiting_for_it(tmp_path):
    """Leaving the block raises it too: what was to be there is not."""
    said: list[str] = []
    with pytest.raises(RunError, match="saving step 2 to"), full_disk(), writer(tmp_path, say=said.append) as w:
        w.save(make_state(2), rows=2)
        while not said:
            w.check()
            time.sleep(0.01)
        assert not w.check(), "the time to try again has not come"


# ----------------------------------------------------------------------------------------------------------- strictness


def refused(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(**leaves):
    """The parameters' target with leaves replaced; None takes one away."""
    tree = target().params
    flat = params_lib.flatten(tree) | {name.replace("__", "/"): leaf for name, leaf in leaves.items()}
    nested: dict = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        if leaf is not None:
            node[last] = leaf
    return nested


def leaf(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(ONE_DEVICE, PartitionSpec()))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (changed(head__kernel=leaf(256, 64)), "leaf head/kernel is missing there; the model wants float32[256,64]"),
        (changed(blocks__kernel=None), "leaf blocks/kernel float32[2,256,256] is extra; the model has no such leaf"),
        (
            changed(blocks__kernel=leaf(4, 256, 256)),
            "leaf blocks/kernel is float32[2,256,256] there, but the model wants float32[4,256,256]",
        ),
        (
            changed(blocks__kernel=leaf(2, 256, 256, dtype=jnp.bfloat16)),
            "leaf blocks/kernel is float32[2,256,256] there, but bfloat16[2,256,256] is wanted; nothing is cast unless "
            "dtype= asks for it",
        ),
        (
            changed(blocks__kernel=leaf(1), embed__embedding=leaf(1), x=leaf(1)),
            "leaf blocks/kernel is float32[2,256,256] there, but the model wants float32[1] (and 2 more such leaves)",
        ),
    ],
    ids=["missing", "extra", "shape", "dtype", "several"],
)
def test_a_leaf_that_does_not_fit_is_named(stored, tree, message):
    assert refused(checkpoint.restore_params, stored / "3", tree, ema=False) == f"{stored / '3' / 'params'}: {message}"


def test_moments_are_compared_as_well(stored):
    wanted = target(ema=True)
    wanted = wanted.replace(opt_state=wanted.opt_state._replace(mu=changed(blocks__kernel=leaf(7))))
    message = refused(checkpoint.restore_state, stored / "3", wanted)
    assert message.startswith(f"{stored / '3' / 'optimizer'}: leaf state/mu/blocks/kernel is float32[2,256,256] there")


def test_an_average_that_the_state_does_not_hold_is_left_out_and_a_missing_one_refused(stored, tmp_path):
    """Schedule-free stores the weights to evaluate in the average's place, and a state has no use for them."""
    state, _ = checkpoint.restore_state(stored / "3", target())
    assert state.ema is None
    with writer(tmp_path) as w:
        w.save(make_state(1), rows=1)
    assert refused(checkpoint.restore_state, tmp_path / "1", target(ema=True)) == (
        f"the run has 'ema' but {tmp_path / '1'} has not; resume with the same experiment (--ema.decay)"
    )


def test_moments_of_frozen_parameters_are_left_out(stored):
    """Older versions wrote them; what else is extra is refused still."""
    frozen = optim.make(Optim(groups=(("embed", 0.0),)), 10, DECLARATION)
    wanted = state_lib.abstract(DECLARATION, frozen, ONE_DEVICE, ema=True)
    state, _ = checkpoint.restore_state(stored / "3", wanted)
    before = make_state(3, ema=True)
    assert isinstance(state.opt_state.mu["embed"]["embedding"], optax.MaskedNode)
    assert_identical(state.params, before.params)
    np.testing.assert_array_equal(state.opt_state.nu["blocks"]["kernel"], before.opt_state.nu["blocks"]["kernel"])
    lacking = wanted.replace(opt_state=wanted.opt_state._replace(count=None))
    assert "leaf state/count int32[] is extra" in refused(checkpoint.restore_state, stored / "3", lacking)


def test_a_meta_that_cannot_be_trusted_is_refused(stored, tmp_path):
    step = shutil.copytree(stored / "3", tmp_path / "3")
    path = step / "meta" / "metadata"
    meta = json.loads(path.read_text())
    for changes, message in [
        ({"format": 99}, "format 99 is not 1 or 2 or 3, which this version reads; upgrade transformer_jax"),
        ({"rows": "many"}, "'rows' is 'many', which is not of type int"),
        ({"step": True}, "'step' is True, which is not of type int"),
    ]:
        path.write_text(json.dumps(meta | changes))
        assert refused(checkpoint.restore_state, step, target(ema=True), verify=False) == f"{path}: {message}"
    for text in ("{", "[]", "[" * 100_000, ""):
        path.write_text(text)
        assert str(path) in refused(saved.read_meta, step)
    path.unlink()
    assert "No such file" in refused(saved.read_meta, step)


@AFTER_A_FAILURE
def test_a_damaged_item_is_named_even_without_its_manifest(stored, tmp_path):
    step = shutil.copytree(stored / "3", tmp_path / "3")
    item = step / "params"

    def message() -> str:
        return refused(checkpoint.restore_params, step, target().params, ema=False, verify=False)

    (item / "_METADATA").write_text("{")
    assert message().startswith(f"{item} cannot be read: ")
    shutil.copy(stored / "3" / "params" / "_METADATA", item / "_METADATA")
    for file in item.rglob("d/*"):
        file.write_bytes(b"")
    assert message().startswith(f"{item} cannot be read: ")
    shutil.rmtree(item)
    assert message() == f"{item} does not exist, so {step} is not a complete step; give another step"
