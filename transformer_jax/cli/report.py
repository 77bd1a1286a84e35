"""`report`: the page of a run, in one file."""

from pathlib import Path

from transformer_jax.cli.arguments import path, positional
from transformer_jax.errors import InputError


def main(arguments: list[str]) -> int:
    """Write the page of a run: what it was, its curves, numbers, samples and pictures, and how to continue.

        transformer-jax report RUN [--out FILE]

    RUN is a workdir, here or in a bucket; the run may still train. A run writes WORKDIR/report.html when it ends; this
    command writes it as it is now, or into FILE. The page is one HTML file of at most 2 MB that needs no network and
    has no script.

        transformer-jax report runs/a
        transformer-jax report gs://BUCKET/RUN --out run.html
    """
    where, rest = positional(main, arguments, 1)
    if rest and (len(rest) != 2 or rest[0] != "--out" or rest[1].startswith("--")):
        raise InputError(f"unexpected argument {rest[0]!r}; the command is: transformer-jax report RUN [--out FILE]")
    from transformer_jax import files
    from transformer_jax.observe import report
    from transformer_jax.runs import store

    run = path(where)
    text = report.made(run)
    if not rest and store.remote(run):
        out = run / report.PAGE
        store.put(out, text.encode())
    else:
        out = Path(rest[1]) if rest else run / report.PAGE
        try:
            files.write(out, text)
        except OSError as error:
            raise InputError(f"{out} cannot be written ({error.strerror}); name another file with --out") from None
    print(f"{out}: {len(text.encode()) / 1000:,.0f} KB")
    return 0
