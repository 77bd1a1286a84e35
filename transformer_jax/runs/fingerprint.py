"""What all hosts of a run must have alike: the code, the versions, the experiment and the data.

Hosts that differ in one of these would not fail: they would train an unintended mixture. So each makes short
facts of them, and `hosts.agree` compares these before anything is written.
"""

import hashlib
import platform
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

import transformer_jax
from transformer_jax import config_json
from transformer_jax.contracts import Prepared
from transformer_jax.experiment import Experiment

EXAMPLES = 64  # examples, evenly spaced, by which a set's content is identified


def program(experiment: Experiment, saved_step: int | None, done: int | None) -> dict[str, Any]:
    """Facts of what is to be run: every field of the experiment, the versions, and what each host sees in the workdir.

    Args:
      experiment: what is run.
      saved_step: the newest step in the workdir.
      done: the step of the results there.
    """
    versions = {
        "transformer_jax": f"{transformer_jax.__version__}, source {source_hash()[:12]}",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    seen = {"newest step in the workdir": saved_step, "step of the results in the workdir": done}
    return versions | seen | _fields(config_json.to_json(experiment))


def data(prepared: Prepared) -> dict[str, Any]:
    """Facts of the data `prepared`: `Prepared.facts`, the tokenizer, and a hash of `EXAMPLES` examples of each set.

    The first training examples are a random sample of the set, as the order is. Where a set is a token file or parallel
    text, the hash covers the whole text besides (`Prepared.identity`).
    """
    train = _hash(prepared.train, range(EXAMPLES))
    finite = {"validation": prepared.validation, "test": prepared.test}
    hashes = {
        name: _hash(part.examples, np.unique(np.linspace(0, len(part.examples) - 1, EXAMPLES).astype(int)).tolist())
        for name, part in finite.items()
        if part is not None
    }
    tokenizer = getattr(prepared.tokenizer, "fingerprint", None)
    whole = {"hash of the whole text": prepared.identity}
    samples = {f"hash of {name} examples": digest for name, digest in ({"training": train} | hashes).items()}
    return whole | samples | {"tokenizer": tokenizer} | dict(prepared.facts)


def identity(prepared: Prepared) -> str:
    """A digest by which a step states the data `prepared` that it was trained with: of the whole text where that is
    known, else of the first examples of the training set."""
    known = prepared.identity or _hash_rows(prepared.train, range(EXAMPLES // 4))
    tokenizer = getattr(prepared.tokenizer, "fingerprint", "")
    return hashlib.sha256(f"{known} {tokenizer}".encode()).hexdigest()[:16]


@cache
def source_hash() -> str:
    """A hash of the package's Python files."""
    root, digest = Path(transformer_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _hash(examples: Any, rows: Any) -> str:
    return _hash_rows(examples, rows, f"{len(examples)}")


def _hash_rows(examples: Any, rows: Any, head: str = "") -> str:
    digest = hashlib.sha256(head.encode())
    for row in rows:
        for name, value in sorted(examples[row].items()):
            digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def _fields(tree: Any, path: str = "") -> dict[str, Any]:
    """{"model.num_layers": 2, ...}"""
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        name: x for key, child in tree.items() for name, x in _fields(child, f"{path}.{key}" if path else key).items()
    }
