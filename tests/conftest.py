"""What every test runs on: eight fake CPU devices, a compile cache kept between runs, fixed seeds, and no network."""

import gc
import os
import pathlib
import random
import socket

# As transformer_jax/__main__.py does, and for its reason: the processes that tests start would inherit the 1 of jax.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jaxlib
import jaxlib.version
import numpy as np
import pytest

# Compiling is most of the time here. XLA's passes, which decide what is computed and communicated, all run. How a
# fusion becomes machine code is left to XLA's older emitters, in one piece and without LLVM's optimisations: less than
# half of the time, for the same meaning. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as a user's process does. XLA ends a
# process that sets a flag unknown to it, and jaxlib 0.12 has no older emitters any more.
QUICK = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") not in ("0", "false")
EMITTERS = "--xla_cpu_parallel_codegen_split_count=1"
if jaxlib.version.__version_info__ < (0, 12):
    EMITTERS = f"--xla_cpu_use_fusion_emitters=false {EMITTERS}"
if QUICK and EMITTERS not in os.environ.get("XLA_FLAGS", ""):  # read when the first backend is made
    os.environ["XLA_FLAGS"] = f"{EMITTERS} {os.environ.get('XLA_FLAGS', '')}".strip()


def _configure(**settings) -> None:
    """Set jax options here, and in the environment for the processes that tests start."""
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def _compilations() -> pathlib.Path:
    """One directory per jaxlib, closed to other users: an entry is machine code that is run when its key matches."""
    user = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "transformer_jax"
    folder = pathlib.Path(os.environ.get("TRANSFORMER_JAX_CACHE") or user) / "test-compilations" / jaxlib.__version__
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


_configure(
    jax_platforms=os.environ.get("JAX_PLATFORMS", "cpu"),  # what is claimed to the bit is claimed for the CPU
    jax_compilation_cache_dir=str(_compilations()),
    jax_compilation_cache_max_size=2**30,  # a bound also makes several test processes lock what they share
    jax_persistent_cache_min_compile_time_secs=0.1,
    jax_persistent_cache_min_entry_size_bytes=0,
    jax_disable_most_optimizations=QUICK,
)
jax.config.update("jax_num_cpu_devices", 8)
os.environ["HF_HUB_OFFLINE"] = "1"
gc.set_threshold(50_000, 20, 50)  # tracing makes few cycles; looking for them takes a tenth of the time


def _refuse_outsiders() -> None:
    """A test that connects to another machine fails here too, not only where there is no network."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not address[0].startswith(("127.", "::1", "localhost")):
            raise AssertionError(f"a test opened a network connection to {address}; tests run without the network")
        return connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]


_refuse_outsiders()


# The files that take longest. They begin first, so that no process is left with one of them at the end.
LONGEST = (
    *("tests/test_hosts.py", "tests/test_experiment.py", "tests/pages/test_commands.py", "tests/models/test_vit.py"),
    *("tests/test_fuzz.py", "tests/test_meshes.py", "tests/test_beam.py", "tests/test_decode.py"),
    *("tests/train/test_loop.py", "tests/test_examples.py", "tests/models/test_seq2seq.py", "tests/runs/test_store.py"),
    *("tests/tasks/test_translation.py", "tests/runs/test_checkpoint.py", "tests/test_preflight.py"),
    *("tests/optim/test_optimizers.py", "tests/nn/test_attention.py", "tests/train/test_step.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.location[0], len(rank)))


@pytest.fixture(scope="session", autouse=True)
def _own_token_files(tmp_path_factory):
    """Token files and whatever else the product caches go to a folder of this session, never to the user's cache."""
    os.environ["TRANSFORMER_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


MAPS = 30_000  # of a process's memory; Linux allows 65,530, beyond which the next compilation is a segmentation fault


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs():
    """Every compiled program holds some maps of memory, and a test process compiles thousands of programs."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def _seeds():
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data beside the project; a machine without it skips the test."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data sets of ../shared/data, which are not on this machine")
    return folder


@pytest.fixture
def write_tfds(tmp_path):
    """write(name, splits, features) -> the folder of a TFDS store with this data set, written without TensorFlow.

    Arguments of write: name such as "squad/v1.1:3.0.0" (version 1.0.0 where none is given); splits {"train": [example,
    ...]}; features {"text": tfds.features.Text()}.
    """

    def write(name, splits, features) -> str:
        import tensorflow_datasets as tfds
        from array_record.python.array_record_module import ArrayRecordWriter
        from tensorflow_datasets.core import dataset_info, example_serializer

        store, (name, _, version) = tmp_path / "tfds", name.partition(":")
        (name, _, config), version = name.partition("/"), version or "1.0.0"
        folder, features = store / name / config / version, tfds.features.FeaturesDict(features)
        folder.mkdir(parents=True)
        identity = dataset_info.DatasetIdentity(
            name=name, config_name=config, version=tfds.core.Version(version), data_dir=str(folder), module_name="tests"
        )
        info = tfds.core.DatasetInfo(builder=identity, features=features)
        serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        written = []
        for split, examples in splits.items():
            records = [serializer.serialize_example(features.encode_example(example)) for example in examples]
            file = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
            for record in records:
                file.write(record)
            file.close()
            template = tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
            )
            written.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(records)],
                    num_bytes=sum(map(len, records)),
                    filename_template=template,
                )
            )
        info.set_file_format("array_record")
        info.set_splits(tfds.core.splits.SplitDict(written))
        info.write_to_directory(folder)
        return str(store)

    return write
