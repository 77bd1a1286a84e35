"""Serving: a model as one StableHLO file, read in a process that cannot import the package."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer_jax
from transformer_jax import kernels

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "examples" / "serve_stablehlo.py"
SNAPSHOTS = ROOT / "tests" / "data" / "hf"
SERVED = """
import importlib.util, sys
import numpy as np

class Refused:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "transformer_jax":
            raise ImportError("transformer_jax is not installed here")

sys.meta_path.insert(0, Refused())
spec = importlib.util.spec_from_file_location("serve", sys.argv[1])
serve = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve)
function = serve.load(sys.argv[2])
with np.load(sys.argv[3]) as inputs:
    np.savez(sys.argv[4], *[function(*[inputs[f"{i}_{j}"] for j in range(int(inputs["arity"]))]) for i in range(2)])
"""


def served(snapshot: str, folder: Path, *calls: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """What another process computes of two calls with inputs of other sizes."""
    pytest.importorskip("flatbuffers", reason="jax.export serialises with flatbuffers")
    serve = _module()
    serve.export(str(SNAPSHOTS / snapshot), str(folder / "model.npz"))
    inputs = {f"{i}_{j}": value for i, call in enumerate(calls) for j, value in enumerate(call)}
    np.savez(folder / "inputs.npz", arity=len(calls[0]), **inputs)  # type: ignore[arg-type]
    arguments = [PROGRAM, folder / "model.npz", folder / "inputs.npz", folder / "outputs.npz"]
    subprocess.run([sys.executable, "-c", SERVED, *map(str, arguments)], check=True, cwd=folder)
    with np.load(folder / "outputs.npz") as outputs:
        return [outputs[name] for name in outputs.files]


def _module():
    import importlib.util

    spec = importlib.util.spec_from_file_location("serve_stablehlo", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(snapshot: str, folder: Path, apply, *calls: tuple[np.ndarray, ...]) -> None:
    loaded = transformer_jax.load(SNAPSHOTS / snapshot)
    for call, found in zip(calls, served(snapshot, folder, *calls), strict=True):
        with kernels.use("plain"):
            wanted = jax.jit(lambda params, *inputs: apply(loaded, params, *inputs))(loaded.params, *call)
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 60, shape).astype(np.int32)


def test_a_decoder_is_served_without_the_package(tmp_path):
    apply = lambda loaded, params, tokens: loaded.family.apply(params, loaded.config, tokens)  # noqa: E731
    compare("gpt2", tmp_path, apply, (ids(1, 8),), (ids(2, 15),))


@pytest.mark.slow
def test_an_encoder_is_served_without_the_package(tmp_path):
    def apply(loaded, params, tokens, lengths):
        family, config = loaded.family, loaded.config
        return family.classify(params, config, family.apply(params, config, tokens, lengths=lengths))

    short = (ids(3, 9), np.array([9, 4, 2], np.int32))
    compare("encoders/BertForSequenceClassification", tmp_path, apply, (ids(1, 8), np.array([8], np.int32)), short)


@pytest.mark.slow
def test_an_encoder_decoder_is_served_without_the_package(tmp_path):
    apply = lambda loaded, params, s, t: loaded.family.apply(params, loaded.config, s, t)  # noqa: E731
    compare("seq2seq/t5", tmp_path, apply, (ids(1, 8), ids(1, 3)), (ids(2, 5), ids(2, 6)))


@pytest.mark.slow
def test_a_vision_transformer_is_served_without_the_package(tmp_path):
    config = transformer_jax.load(SNAPSHOTS / "vision/ViTForImageClassification").config
    images = np.random.default_rng(0).random((3, config.image_size, config.image_size, config.channels), np.float32)
    apply = lambda loaded, params, images: loaded.family.apply(params, loaded.config, images)  # noqa: E731
    compare("vision/ViTForImageClassification", tmp_path, apply, (images[:1],), (images,))
