"""A training loop of one's own: GPT on the standard library's source, with checkpoints, resume to the bit, evaluation.

    python own_loop.py checkpoints 200     # the same command with more steps resumes

The pieces are those of `transformer-jax train`, without its workdir, lock, signals and observers.
"""

import sys
from pathlib import Path

import jax

from transformer_jax import config_json, sharding
from transformer_jax.data import corpus, pipeline, tokenizers
from transformer_jax.experiment import Experiment, Train
from transformer_jax.models import gpt
from transformer_jax.optim import AdamW
from transformer_jax.runs import checkpoint, saved
from transformer_jax.runs.writer import Writer
from transformer_jax.tasks.causal_lm import CausalLM
from transformer_jax.train import batch, evaluate, program, state

EXPERIMENT = Experiment(
    model=gpt.Config(vocab_size=257, max_length=64, width=64, num_layers=2, num_heads=4),
    data=corpus.TextCorpus(tokenizer=tokenizers.Bytes(), length=64),
    task=CausalLM(),
    optim=AdamW(peak_lr=3e-3, warmup_steps=20, lr_schedule="constant"),
    train=Train(batch_size=16),
)


def main(folder: Path, steps: int, experiment: Experiment = EXPERIMENT, every: int = 100) -> dict[str, float]:
    """Trains up to `steps`, from the newest checkpoint if there is one, and returns the validation numbers."""
    task, data, size = experiment.task, experiment.data, experiment.train.batch_size
    mesh = sharding.make_mesh()
    made = program.make(experiment, mesh)
    prepared = task.prepare(data, made.model, seed=experiment.seed)
    evaluator = evaluate.make(task, data, made.model, mesh, batch_size=size)
    init_key, train_key = jax.random.split(jax.random.key(experiment.seed))
    newest = saved.newest(folder)
    if newest is None:
        now = state.init(init_key, made.declaration, made.optimizer, mesh)
    else:
        now, _ = checkpoint.restore_state(folder / str(newest), made.state)
    shardings = {name: leaf.sharding for name, leaf in made.batch.items()}
    batches = pipeline.batches(prepared.train, (newest or 0) * size, size)
    with jax.set_mesh(mesh), Writer(folder, family="gpt", config=config_json.to_json(experiment)) as writer:
        for step in range((newest or 0) + 1, steps + 1):
            now, metrics = made.step(now, batch.place(next(batches), shardings), train_key)
            if step % every == 0 or step == steps:
                report, _ = evaluator.numbers(now.params, prepared.validation)
                print(f"step {step}: loss {metrics['loss']:.3f}, {report['bits_per_byte']:.3f} bits per byte")
                writer.save(now, rows=step * size)
    return evaluator.numbers(now.params, prepared.validation)[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
