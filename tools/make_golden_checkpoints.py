"""Golden checkpoints: a small one per family, in the format of today, which every later version must restore.

    tools/run tools.make_golden_checkpoints            # writes tests/data/golden/format-N/{gpt,bert,seq2seq,vit}/

Run it once when `checkpoint.FORMAT` is raised, and commit what it wrote. A folder that is there is left alone: it
stands for the runs that people have on their disks. Each has a step with optimiser state (of the GPT also an average),
and `expected.npz`: the inputs, the logits, and the SHA-256 of every leaf of what a resumed run reads.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import config_json, models, optim, sharding, tasks
from transformer_jax.data import corpus, image_sources, images, preprocess, tokenizers
from transformer_jax.experiment import Ema, Experiment
from transformer_jax.models import bert, gpt, seq2seq, vit
from transformer_jax.runs import checkpoint, identity
from transformer_jax.runs.writer import Writer
from transformer_jax.tasks.translation import bitext, parallel
from transformer_jax.train import state as state_lib

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"
STEP = 7
TOKENS = jnp.arange(16).reshape(2, 8) % 11


def experiments_by_family() -> dict[str, Experiment]:
    small: Any = dict(width=8, num_layers=2, num_heads=2)
    text = corpus.TextCorpus(tokenizer=tokenizers.Bytes(), length=8)
    pairs = parallel.ParallelText(
        bitext.Columns(("pairs.tsv",), ("pairs.tsv",)), tokenizers.Bytes(), source_length=8, target_length=8
    )
    ids: Any = dict(eos_id=1, decoder_start_id=0, pad_id=0)
    translation = tasks.Translation(extra_tokens=8)
    picture = vit.Config(image_size=8, patch_size=4, num_classes=3, **small)
    labelled = tasks.ImageClassification(
        labels=("ant", "bee", "cow"), preprocess=preprocess.Preprocess(size=8, resize=8)
    )
    made = {
        "gpt": Experiment(gpt.Config(vocab_size=11, max_length=8, **small), text, tasks.CausalLM(), ema=Ema(decay=0.9)),
        "bert": Experiment(bert.Config(vocab_size=11, max_length=8, **small), text, tasks.MaskedLM()),
        "seq2seq": Experiment(seq2seq.Config(vocab_size=11, max_length=8, **ids, **small), pairs, translation),
        "vit": Experiment(picture, images.ImageSet(image_sources.Folder("images")), labelled),
    }
    return {
        name: dataclasses.replace(experiment, sample=experiment.task.default_sample())
        for name, experiment in made.items()
    }


@functools.partial(jax.jit, static_argnums=1)
def logits(params: Any, config: Any) -> jax.Array:
    """What the model computes of fixed inputs: [2, T, V], or [2, K] of images."""
    match config:
        case bert.Config():
            return bert.mlm(params, config, bert.apply(params, config, TOKENS))
        case seq2seq.Config():
            return seq2seq.apply(params, config, TOKENS, TOKENS[:, ::-1])
        case vit.Config():
            return vit.apply(params, config, jnp.sin(jnp.arange(2.0 * 8 * 8 * 3)).reshape(2, 8, 8, 3))
        case _:
            return gpt.apply(params, config, TOKENS)


def drawn(tree: Any, seed: int) -> Any:
    """The tree with numbers that no initialiser gives, so that no leaf can stand in for another."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) / 4, x.dtype), tree)


def digests(tree: Any) -> dict[str, str]:
    """SHA-256 of each leaf's bytes, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): hashlib.sha256(np.asarray(x).tobytes()).hexdigest()
        for path, x in leaves
    }


def abstract(experiment: Experiment) -> state_lib.TrainState:
    """The shapes of the run's state, on one device."""
    declaration = models.family(experiment.model).declare(experiment.model)
    optimizer = optim.make(experiment.optim, 10, declaration)
    one_device = sharding.make_mesh(devices=jax.devices()[:1])
    return state_lib.abstract(declaration, optimizer, one_device, ema=experiment.ema.decay > 0)


def main() -> None:
    for name, experiment in experiments_by_family().items():
        folder = GOLDEN / f"format-{checkpoint.FORMAT}" / name
        if folder.exists():
            print(f"{folder} is there")
            continue
        state = dataclasses.replace(drawn(abstract(experiment), seed=0), step=jnp.int32(STEP))
        config = config_json.to_json(experiment)
        folder.mkdir(parents=True)
        run = identity.run_id(folder)
        with Writer(folder / "checkpoints", family=name, config=config, run=run) as writer:
            writer.save(state, rows=8 * STEP, metric=1.5)
        evaluated = state.params if state.ema is None else state.ema
        np.savez_compressed(
            folder / "expected.npz",
            logits=logits(evaluated, dataclasses.replace(experiment.model, dtype="float32")),
            leaves=np.array(sorted(digests(state).items())),
        )
        print(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()):,} bytes")


if __name__ == "__main__":
    main()
