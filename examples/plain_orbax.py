"""A checkpoint's parameters read by Orbax alone: without transformer_jax, on any machine.

python plain_orbax.py runs/a/checkpoints/600
"""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

step = Path(sys.argv[1]).resolve()
reader = ocp.PyTreeCheckpointer()
shapes = reader.metadata(step / "params").item_metadata.tree  # nested dicts, as `gpt.init` returns them
as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)  # whatever devices wrote them
params = reader.restore(step / "params", restore_args=as_numpy)
for path, array in jax.tree_util.tree_leaves_with_path(params):
    print(jax.tree_util.keystr(path, simple=True, separator="/"), array.dtype, array.shape)
