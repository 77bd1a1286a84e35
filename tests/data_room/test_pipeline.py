"""Batches: a pure function of the row, over hosts, epochs, resumes and failures."""

import itertools
import re
import subprocess
import sys
import threading
import time

import grain
import numpy as np
import pytest

from transformer_jax.data import corpus, pipeline, sources, tokenizers, tokens
from transformer_jax.errors import InputError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    documents = sources.in_memory([("a", "some text to take windows of, a few hundred bytes long\n" * 8)])
    return tokens.prepare(documents, tokenizers.ByteTokenizer(), tmp_path_factory.mktemp("tokens"))


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all((a[k] == b[k]).all() and a[k].dtype == b[k].dtype for k in a)


def take(n, *args, **kwargs):
    iterator = pipeline.batches(*args, **kwargs)
    made = list(itertools.islice(iterator, n))
    iterator.close()
    return made


@pytest.mark.parametrize("sampling", ["epochs", "random"])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resuming_is_skipping(file, sampling, prefetch):
    windows = corpus.training_windows(file, 16, sampling, seed=0)  # 27 windows: batch 5 crosses the epoch's border
    whole = take(9, windows, 0, 5)
    again = corpus.training_windows(file, 16, sampling, seed=0)
    for consumed in (1, 5, 6):
        resumed = take(9 - consumed, again, consumed * 5, 5, prefetch=prefetch)
        assert all(equal(a, b) for a, b in zip(whole[consumed:], resumed, strict=True))
    # With another batch size a run goes on from the rows consumed.
    assert equal(take(1, windows, 5, 10)[0], {k: np.concatenate([whole[1][k], whole[2][k]]) for k in whole[1]})


@pytest.mark.parametrize("hosts", [2, 3, 6])
def test_the_hosts_parts_in_order_are_the_batch(file, hosts):
    windows = corpus.training_windows(file, 16, "epochs", seed=0)
    parts = [take(6, windows, 12, 6, local_rows=range(6 * p // hosts, 6 * (p + 1) // hosts)) for p in range(hosts)]
    for k, batch in enumerate(take(6, windows, 12, 6)):
        assert equal(batch, {name: np.concatenate([part[k][name] for part in parts]) for name in batch})


def test_a_host_may_have_rows_that_are_no_neighbours(file):
    """As on a torus of TPUs."""
    windows = corpus.training_windows(file, 16, "epochs", seed=0)
    (part,), (whole,) = take(1, windows, 12, 6, local_rows=[0, 1, 4]), take(1, windows, 12, 6)
    assert equal(part, {name: x[[0, 1, 4]] for name, x in whole.items()})


def test_a_grain_dataset_gives_what_its_rows_are():
    dataset = (
        grain.MapDataset.range(10)
        .shuffle(seed=1)
        .repeat()
        .random_map(lambda x, rng: {"x": np.int32(x), "noise": rng.random(3)}, seed=2)
    )
    for k, batch in enumerate(take(4, dataset, 3, 4)):  # row 11 and on are the next epoch
        rows = [dataset[3 + k * 4 + b] for b in range(4)]
        np.testing.assert_array_equal(batch["x"], [row["x"] for row in rows])
        np.testing.assert_array_equal(batch["noise"], np.stack([row["noise"] for row in rows]))


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_finite_set_ends_with_a_full_batch_padded_with_weight_zero(file, hosts, stacked):
    windows = corpus.validation_windows(file, 16)
    dataset = windows if stacked else grain.MapDataset.source(windows)
    assert len(windows) % 8 == 4  # so that with 4 hosts two of them have nothing but padding
    shares = [range(8 * p // hosts, 8 * (p + 1) // hosts) for p in range(hosts)]
    parts = [list(pipeline.batches(dataset, 0, 8, local_rows=share)) for share in shares]
    whole = [{k: np.concatenate([part[i][k] for part in parts]) for k in parts[0][i]} for i in range(len(parts[0]))]
    assert len(whole) == -(-len(windows) // 8)
    assert all(batch["inputs"].shape == (8, 16) for batch in whole)
    assert sum(batch["weights"].sum() for batch in whole) == len(file.tokens) - 1
    rows = np.concatenate([batch["inputs"] for batch in whole])
    np.testing.assert_array_equal(rows[: len(windows)], windows.stacked(range(len(windows)))["inputs"])
    np.testing.assert_array_equal(rows[len(windows) :], 0)


class Breaking:
    """Row 9 raises."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return sys.maxsize

    def __getitem__(self, row):
        if row == 9:
            raise self.error
        return {"x": np.array(row)}


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_exception_in_the_thread_arrives_named_after_the_good_batches(prefetch):
    started = time.monotonic()
    iterator = pipeline.batches(Breaking(KeyError("gone")), 0, 4, prefetch=prefetch)
    assert next(iterator)["x"].tolist() == [0, 1, 2, 3]
    assert next(iterator)["x"].tolist() == [4, 5, 6, 7]
    with pytest.raises(RuntimeError, match="data rows 8-11 could not be made: KeyError: 'gone'") as caught:
        next(iterator)
    assert isinstance(caught.value.__cause__, KeyError)
    assert time.monotonic() - started < 3
    with pytest.raises(InputError, match="data rows 8-11: bad text"):
        take(3, Breaking(InputError("bad text")), 0, 4, prefetch=prefetch)


HANGING = """
import sys, time
from transformer_jax.data import pipeline
pipeline.NOTICE, pipeline.TIMEOUT, pipeline.ENDING = 0.2, 0.9, 0.1

class Hanging:
    def __len__(self):
        return sys.maxsize
    def __getitem__(self, row):
        if row == 8:
            time.sleep(1000)
        return {"x": row}

batches = pipeline.batches(Hanging(), 0, 4)
for _ in range(3):
    next(batches)
"""


def test_a_hung_source_is_named_while_it_hangs_and_cannot_keep_the_program_alive():
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60)
    *said, error = [line for line in ended.stderr.splitlines() if re.match(r"(\S+\.RunError: )?no batch", line)]
    at = r"data rows 8-11, at <string>:11 __getitem__ < pipeline.py:\d+ "
    assert [bool(re.match(rf"no batch for \d s: {at}.*; the run ends after 1 s", line)) for line in said] == [True] * 2
    assert re.match(rf"\S+\.RunError: no batch for \d s, the data source hangs: {at}", error)
    assert ended.returncode == 1


def test_closing_ends_the_thread(file):
    before = threading.active_count()
    iterator = pipeline.batches(corpus.training_windows(file, 16, "epochs", seed=0), 0, 4, prefetch=1)
    next(iterator)
    assert threading.active_count() == before + 1
    iterator.close()
    assert threading.active_count() == before


def test_a_program_may_end_with_batches_under_way():
    """The thread is stopped before the interpreter goes: torn out of Grain's C++ it aborts the process."""
    program = (
        "import grain, numpy as np; from transformer_jax.data import pipeline\n"
        "data = grain.MapDataset.range(100).shuffle(seed=0).repeat().map(lambda x: {'x': np.array(x)})\n"
        "batches = pipeline.batches(data, 0, 50, prefetch=1000); next(batches)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_bad_sizes_are_named(file):
    windows = corpus.training_windows(file, 16, "epochs", seed=0)
    with pytest.raises(InputError, match="batch size 0 must be 1 or more"):
        pipeline.batches(windows, 0, 0)
    with pytest.raises(RuntimeError, match='without "weights" cannot be padded'):
        list(pipeline.batches(grain.MapDataset.range(3).map(lambda x: {"x": np.array(x)}), 0, 2))


def test_a_small_batch_is_quick(file):
    """nanoGPT's 12 windows of 64: far under a step's 35 ms (0.1 ms measured; the bound allows for a busy machine)."""
    iterator = pipeline.batches(corpus.training_windows(file, 64, "random", seed=0), 0, 12, prefetch=0)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        next(iterator)
        times.append(time.perf_counter() - started)
    assert min(times) < 1e-3


# ---- Orders --------------------------------------------------------------------------------------------------------


def orders(rule, rows=97, seeds=10, epochs=5):
    """{(seed, epoch): the order of that epoch}."""
    made = {seed: pipeline.epochs(rows, seed, rule) for seed in range(seeds)}
    return {
        (seed, epoch): tuple(made[seed][i] for i in range(epoch * rows, (epoch + 1) * rows))
        for seed in range(seeds)
        for epoch in range(epochs)
    }


@pytest.mark.parametrize("rule", [1, 2])
def test_each_epoch_has_each_example_once(rule):
    assert all(sorted(order) == list(range(97)) for order in orders(rule).values())


def test_no_two_seeds_share_an_order():
    made = orders(2)
    assert len(set(made.values())) == len(made) == 50


def test_a_run_keeps_the_rule_that_it_began_with(file):
    """Of rule 1 the second epoch of a seed is the first of the next; its orders are those of the versions before."""
    old = orders(1)
    assert old[0, 1] == old[1, 0]
    assert old[3, 0][:8] == (4, 7, 27, 57, 67, 55, 42, 78)
    assert orders(2)[3, 0][:8] == (19, 52, 83, 35, 92, 73, 85, 30)
    with pipeline.order_rule(1):
        assert tuple(pipeline.epochs(97, 3)[i] for i in range(97)) == old[3, 0]
        before = corpus.training_windows(file, 16, "epochs", seed=0)
    after = corpus.training_windows(file, 16, "epochs", seed=0)
    assert [before.order[i] for i in range(54)] != [after.order[i] for i in range(54)]
    with pytest.raises(InputError, match=r"follows rule 3, but this version knows 1 and 2"):
        pipeline.epochs(97, 3, 3)
