"""`score`: k-shot evaluation of a language model on a local task."""

from transformer_jax import overrides, restore
from transformer_jax.cli import process
from transformer_jax.cli.arguments import PROGRAM, of_base, path, positional, verified, with_types


def main(arguments: list[str]) -> int:
    """Score a language model on a local task, with k solved examples in the prompt and nothing trained.

        transformer-jax score PATH TASK.jsonl [--shots 0 4] [--base DIR] [--FIELD VALUE ...]

    PATH is a run, one of its checkpoints or a Hugging Face folder. A record of the task has a "question" and "choices",
    of which the likeliest is chosen, and an "answer"; or no choices: the answer is generated, to the end of the line.

        {"question": "The capital of Peru is", "choices": ["Quito", "Lima"], "answer": "Lima"}

    Reported are acc, acc_norm (by the bytes of the choices) or exact_match, for each number of shots.
    `score PATH TASK.jsonl --help-fields` lists the fields.
    """
    types, arguments = with_types(arguments)
    where, file, rest = positional(main, arguments, 2)
    verify, rest = verified(rest)
    base, rest = of_base(rest)
    rest = ["--help" if argument == "--help-fields" else argument for argument in rest]
    from transformer_jax.tasks import few_shot

    program = f"{PROGRAM} score {where} {file}"
    options = overrides.override(few_shot.FewShot(), rest, description="Score.", program=program)
    items = few_shot.read(file)
    pool = few_shot.read(options.examples) if options.examples else items
    process.keep_compilations()
    from transformer_jax import observe
    from transformer_jax.errors import InputError
    from transformer_jax.runs import workdir as workdirs

    loaded = restore.load(workdirs.chosen(path(where)), verify=verify, types=types, base=base)
    if loaded.tokenizer is None:
        raise InputError(f"{where} has no tokenizer, so a text means nothing to it; add its tokenizer.json")
    items = items[: options.limit or None]
    with observe.counting("prompts") as count:
        scores = few_shot.evaluate(loaded, items, pool, options, progress=count)
    print(f"{where}, {file}, {len(items):,} questions\n{observe.table(scores)}")
    return 0
