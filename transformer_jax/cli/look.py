"""`look`: what a model looks at, as a page."""

from pathlib import Path

from transformer_jax.cli.arguments import PROGRAM, of_base, path, positional, verified, with_types
from transformer_jax.errors import InputError


def main(arguments: list[str]) -> int:
    """Write a page of what a model looks at for one input: its attention, and what the answer depends on.

        transformer-jax look RUN INPUT [--out FILE.html]

    RUN is a run, one of its checkpoints or a Hugging Face folder. INPUT is a text, a text with masks, a sentence to
    translate, or an image's file. The page is one HTML file without scripts that needs no network; its pictures are
    written beside it as PNGs, FILE_*.png.

    It shows every layer and head, rollout, attention times gradient, the logit lens and the importance of heads; of a
    translation its alignment; of an image the patches.

        transformer-jax look runs/mlm-stdlib "for i in <mask>(len(items)):"
        transformer-jax look runs/translation-cldr "May 7, 2026" --out alignment.html
    """
    types, arguments = with_types(arguments)
    where, rest = positional(main, arguments, 1)
    base, rest = of_base(rest)
    verify, rest = verified(rest)
    if not rest or rest[0].startswith("--") or len(rest) not in (1, 3) or (len(rest) == 3 and rest[1] != "--out"):
        raise InputError(f"the command is: {PROGRAM} look RUN INPUT [--out FILE.html]")
    out = Path(rest[2] if len(rest) == 3 else "look.html")
    if out.suffix.lower() != ".html" or not out.parent.is_dir():
        raise InputError(f"--out {out}: give the name of a file that ends in .html, in a folder that exists")
    from transformer_jax import files, restore
    from transformer_jax.looking import page as looking_page
    from transformer_jax.runs import workdir as workdirs

    loaded = restore.load(workdirs.chosen(path(where, verify=verify)), verify=verify, types=types, base=base)
    if loaded.tokenizer is None and (loaded.task is None or loaded.task.reads_text):
        raise InputError(f"{where} has no tokenizer, so a text means nothing to it; add its tokenizer.json")
    made = looking_page.look(loaded, rest[0])
    text = made.html()
    files.write(out, text)
    for name, data in made.pictures.items():
        with files.replacing(out.with_name(f"{out.stem}_{name}")) as part:
            part.write_bytes(data)
    print(f"{out}: {len(text.encode()) / 1000:,.0f} KB, and {len(made.pictures)} pictures beside it")
    return 0
