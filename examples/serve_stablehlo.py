"""A model as one file of StableHLO and parameters: exported once, served in a process without this package.

    python serve_stablehlo.py export hf://org/name model.npz      # or runs/a, or a Hugging Face folder
    python serve_stablehlo.py run model.npz 15 496 67             # ids of a text -> the most probable id at each

The batch and the length of a text are decided when the function is called. `load` needs JAX, NumPy and flatbuffers
alone. Other runtimes (IREE, PJRT, XLA in C++) take the text of `jax.export.deserialize(...).mlir_module()`.
"""

import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

PLATFORMS = ("cpu", "cuda", "tpu")


def export(source: str, target: str) -> None:
    """Writes what a model computes as a file.

    Args:
      source: a run, a Hugging Face folder, or its name on the Hub.
      target: the .npz file.
    """
    import transformer_jax
    from transformer_jax import experiment, kernels

    loaded = transformer_jax.load(source)
    config = experiment.computed_in(loaded.config, "float32")
    function, shapes, dtype = FUNCTIONS[loaded.family.__name__.rpartition(".")[2]](loaded.family, config)
    lengths = [f"{size} <= {config.max_length}" for size in "TS" if any(size in shape for shape in shapes)]
    scope = jax.export.SymbolicScope(lengths)
    inputs = [jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), dtype) for shape in shapes]
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), loaded.params)
    with kernels.use("plain"):  # the same operations on every platform
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(params, *inputs)
    leaves = {f"{i:06d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(loaded.params))}
    with open(target, "wb") as file:
        np.savez(file, function=np.frombuffer(exported.serialize(), np.uint8), **leaves)


# What is served of each family: a function of (params, *inputs), the shapes of the inputs, and their dtype.


def _gpt(gpt, cfg):
    return lambda params, tokens_BT: gpt.apply(params, cfg, tokens_BT), ["B, T"], jnp.int32


def _bert(bert, cfg):
    """The logits of the first head: of the classes of each text, or of each token."""
    head = {"classification": bert.classify, "tokens": bert.tag, "mlm": bert.mlm}[
        next(name for name in cfg.heads if name in ("classification", "tokens", "mlm"))
    ]

    def function(params, tokens_BT, lengths_B):
        return head(params, cfg, bert.apply(params, cfg, tokens_BT, lengths=lengths_B))

    return function, ["B, T", "B"], jnp.int32


def _seq2seq(seq2seq, cfg):
    return lambda params, s_BS, t_BT: seq2seq.apply(params, cfg, s_BS, t_BT), ["B, S", "B, T"], jnp.int32


def _vit(vit, cfg):
    shape = f"B, {cfg.image_size}, {cfg.image_size}, {cfg.channels}"
    return lambda params, images_BYXC: vit.apply(params, cfg, images_BYXC), [shape], jnp.float32


FUNCTIONS = {"gpt": _gpt, "bert": _bert, "seq2seq": _seq2seq, "vit": _vit}


def load(path: str):
    """The function of a file that `export` wrote, from its inputs to logits.

    Args:
      path: the .npz file.
    """
    with np.load(path) as held:
        exported = jax.export.deserialize(bytearray(held["function"].tobytes()))
        leaves = [jnp.asarray(held[name]) for name in sorted(held.files) if name != "function"]
    arguments, _ = jax.tree.unflatten(exported.in_tree, [*leaves, *exported.in_avals[len(leaves) :]])
    call = jax.jit(exported.call)
    return lambda *inputs: call(arguments[0], *inputs)


def main(command: str, *rest: str) -> None:
    if command == "export":
        export(*rest)
    else:
        path, *ids = rest
        tokens_BT = np.array([[int(id) for id in ids]], np.int32)
        print(np.asarray(load(path)(tokens_BT))[0].argmax(-1).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
