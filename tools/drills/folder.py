"""What a checkpoint of a drill holds, as SHA-256; by a process of its own, because the drills touch no device."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from pathlib import Path
from tools.drills.folder import _print
_print(Path(sys.argv[1]), int(sys.argv[2]))
"""


def fingerprint(workdir: Path, step: int) -> dict[str, str]:
    """SHA-256 of each item's arrays, and of the next batch; the step and the rows."""
    words = [sys.executable, "-c", CODE, str(workdir), str(step)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    if done.returncode:
        raise RuntimeError(f"{workdir} cannot be read: {done.stderr[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _print(workdir: Path, step: int) -> None:
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from transformer_jax import config_json
    from transformer_jax.data import pipeline, tokenizers
    from transformer_jax.nn import params as params_lib
    from transformer_jax.runs import saved

    folder = workdir / "checkpoints" / str(step)
    saved.check_files(folder)
    meta = saved.read_meta(folder)
    found = {"step": str(meta["step"]), "rows": str(meta["rows"])}

    def digest(arrays: dict[str, np.ndarray]) -> str:
        whole = hashlib.sha256()
        for name, array in sorted(arrays.items()):
            whole.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()[:16]

    checkpointer, here = ocp.StandardCheckpointer(), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    for item in ("params", "optimizer", "ema"):
        if (folder / item).is_dir():
            path = folder.absolute() / item
            stored = checkpointer.metadata(path).item_metadata.tree
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), stored)
            tree = checkpointer.restore(path, shapes)
            found[item] = digest({name: np.asarray(x) for name, x in params_lib.flatten(tree).items()})
    experiment = config_json.load(workdir / "config.json")
    tokenizer = tokenizers.load(workdir / "tokenizer") if (workdir / "tokenizer").is_dir() else None
    prepared = experiment.task.prepare(
        experiment.data, experiment.model, seed=experiment.seed, workdir_tokenizer=tokenizer
    )
    batch = next(pipeline.batches(prepared.train, meta["rows"], experiment.train.batch_size))
    found["next batch"] = digest({name: np.asarray(x) for name, x in batch.items()})
    print(json.dumps(found))
