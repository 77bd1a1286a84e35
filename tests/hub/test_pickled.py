"""Weights that torch.save wrote are read to the bit, by opcodes alone; a pickle that could do anything is refused.

The files are made by tools/fixtures/make_hf_encoders.py from the fixture BertForMaskedLM.
"""

import io
import json
import pickle
import re
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer_jax import hub
from transformer_jax.errors import InputError
from transformer_jax.hub import pickled

FIXTURES = Path(__file__).parents[1] / "data" / "hf"


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_the_parameters_are_those_of_the_safetensors_file(kind):
    config, params, _ = hub.load(FIXTURES / "torch" / kind)
    expected_config, expected, _ = hub.load(FIXTURES / "encoders" / "BertForMaskedLM")
    assert config == expected_config
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_shards_and_their_index(tmp_path):
    shutil.copytree(FIXTURES / "torch" / "zip", tmp_path / "a")
    shard = "pytorch_model-00001-of-00001.bin"
    (tmp_path / "a" / "pytorch_model.bin").rename(tmp_path / "a" / shard)
    with pickled.tensors(tmp_path / "a" / shard) as tensors:
        index = {"weight_map": dict.fromkeys(tensors, shard)}
    (tmp_path / "a" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    expected = hub.load(FIXTURES / "encoders" / "BertForMaskedLM")[1]
    jax.tree.map(np.testing.assert_array_equal, hub.load(tmp_path / "a")[1], expected)


# ---- Pickles written by hand -----------------------------------------------------------------------------------------

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"  # 6 floats


def tensor(offset=0, shape=(2, 3), strides=(3, 1), storage=STORAGE) -> bytes:
    def numbers(values) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        TENSOR
        + storage
        + b"J"
        + struct.pack("<i", offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89"
        + hooks
        + b"tR"
    )


def holding(value: bytes) -> bytes:
    """{"w": value}."""
    return b"\x80\x02}(X\x01\x00\x00\x00w" + value + b"u."


def write(path: Path, described: bytes, *, data: bytes = np.arange(6, dtype=np.float32).tobytes(), **entries) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": described, "data/0": data, **entries}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def test_a_transposed_view_into_a_storage(tmp_path):
    with pickled.tensors(write(tmp_path / "a.bin", holding(tensor(1, (2, 2), (1, 3))))) as tensors:
        assert tensors["w"].get_shape() == [2, 2] and tensors["w"].get_dtype() == "F32"
        np.testing.assert_array_equal(tensors["w"][:], [[1, 4], [2, 5]])
        np.testing.assert_array_equal(tensors["w"][..., 1:], [[4], [5]])


class Harm:
    def __reduce__(self):
        return print, ("harm",)


HOSTILE = {
    "os.system": (holding(b"cos\nsystem\n(X\x02\x00\x00\x00idtR"), "names 'os.system', which describes no tensor"),
    "eval": (holding(b"cbuiltins\neval\n(X\x01\x00\x00\x001tR"), "names 'builtins.eval'"),
    "python": (holding(pickle.dumps(Harm(), 2)[2:-1]), "names '__builtin__.print'"),
    "protocol 4": (pickle.dumps({"w": Harm()}, 4), "MEMOIZE, which describes no tensor"),
    "instance": (holding(b"(ios\nsystem\n"), "instruction INST"),
    "object": (holding(b"(cos\nsystem\no"), "names 'os.system'"),
    "extension": (holding(b"\x82\x01"), "instruction EXT1"),
    "persistent": (holding(b"Pstorage\n"), "instruction PERSID"),
    "new": (holding(b"ctorch\nFloatStorage\n)\x81"), "instruction NEWOBJ"),
    "bytes": (holding(b"U\x01a"), "instruction SHORT_BINSTRING"),
    "a storage called": (holding(b"ctorch\nFloatStorage\n)R"), "calls 'torch.FloatStorage'"),
    "a dict of items": (holding(b"ccollections\nOrderedDict\n(]tR"), "calls 'collections.OrderedDict'"),
    "a list as key": (b"\x80\x02}(]K\x01u.", "keys that are no names"),
    "no dict": (b"\x80\x02]." , "holds no dict of tensors"),
    "no tensor": (holding(b"K\x01"), "holds under 'w' no tensor"),
    "itself": (b"\x80\x02}q\x00(X\x01\x00\x00\x00wh\x00u.", "holds under 'w' no tensor"),
    "a storage of strings": (holding(tensor(storage=STORAGE.replace(b"storagec", b"elsewhec"))), "unknown kind"),
    "deep": (holding(b"(" * 100_000 + b"t" * 100_000), "holds under 'w' no tensor"),
}  # fmt: skip
BROKEN = {
    "empty": b"",
    "no end": holding(tensor())[:-1],
    "an empty stack": b"\x80\x02R.",
    "no mark": b"\x80\x02}u.",
    "an unknown opcode": b"\x80\x02\xff.",
    "memory that was not put": b"\x80\x02hA.",
    "a huge string": b"\x80\x02X\xff\xff\xff\x7fa.",
    "beyond its storage": holding(tensor(shape=(2, 4))),
    "strides beyond": holding(tensor(strides=(4, 1))),
    "an offset beyond": holding(tensor(offset=1)),
    "negative": holding(tensor(offset=-1)),
    "overlapping": holding(tensor(shape=(2**30, 2**30), strides=(0, 0))),
    "a dict for a shape": holding(TENSOR + STORAGE + b"K\x00}}\x89}tR"),
    "strides for fewer dimensions": holding(tensor(strides=(1,))),
}


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error, pickled.tensors(path) as tensors:
        [tensor[:] for tensor in tensors.values()]
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_describes_no_tensor_is_refused_and_does_nothing(tmp_path, name, capfd):
    described, says = HOSTILE[name]
    modules = set(sys.modules)
    assert says in refused(write(tmp_path / "a.bin", described))
    assert set(sys.modules) == modules and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pickle_is_one_line(tmp_path, name):
    assert "not a complete file of torch.save" in refused(write(tmp_path / "a.bin", BROKEN[name]))


def test_broken_files_are_one_line(tmp_path):
    good, path = holding(tensor()), tmp_path / "a.bin"
    assert "has no data.pkl" in refused(write(path, good, **{"other/data.pkl": good}))
    assert "another byte order" in refused(write(path, good, byteorder=b"big"))
    assert "has 20 bytes of 24" in refused(write(path, good, data=bytes(20)))
    assert "more than 24 bytes" in refused(write(path, good, data=bytes(28)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", good + bytes(2**20))
    assert "'data.pkl' that is compressed" in refused(path)
    whole = (FIXTURES / "torch" / "legacy" / "pytorch_model.bin").read_bytes()
    for cut in (whole[:-4], whole[: len(whole) // 2], whole[:3000], whole[:20], b"", b"text"):
        path.write_bytes(cut)
        assert "file of torch.save" in refused(path)
    path.write_bytes(re.sub(rb"(little_endianq.)\x88", b"\\1\x89", whole))
    assert "another byte order" in refused(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    shutil.copy(FIXTURES / "torch" / "zip" / "config.json", tmp_path)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="Git LFS pointer"):
        hub.load(tmp_path)


def test_the_checksum_of_a_storage_counts(tmp_path):
    data = bytearray((FIXTURES / "torch" / "zip" / "pytorch_model.bin").read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    data[entry.header_offset + 500] ^= 1
    (tmp_path / "a.bin").write_bytes(bytes(data))
    assert "Bad CRC-32" in refused(tmp_path / "a.bin")
