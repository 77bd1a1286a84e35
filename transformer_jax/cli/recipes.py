"""`recipes`: the recipes that ship with the package, and a copy of one to edit."""

from pathlib import Path

from transformer_jax import files, shipped
from transformer_jax.cli.arguments import PROGRAM, positional
from transformer_jax.errors import InputError


def main(arguments: list[str]) -> int:
    """List the recipes, or copy one to edit.

        transformer-jax recipes
        transformer-jax recipes copy NAME FILE

    `transformer-jax train NAME` trains one. FILE, a new file that ends in .py, is trained by
    `transformer-jax train FILE`.

        transformer-jax recipes copy vit.digits mine.py
    """
    if not arguments:
        names = shipped.names()
        width = max(map(len, names), default=0)
        print("\n".join(f"{name:<{width}}  {shipped.summary(name)}" for name in names))
        print(f"\nTrain one: {PROGRAM} train NAME. Get one to edit: {PROGRAM} recipes copy NAME mine.py")
        return 0
    action, *rest = positional(main, arguments, 1)
    if action != "copy":
        raise InputError(f"recipes {action!r}: the only action is copy: {PROGRAM} recipes copy NAME FILE")
    name, target = positional(main, rest[0], 2, exactly=True)
    text, path = shipped.file(name).read_text(encoding="utf-8"), Path(target)
    if path.suffix != ".py":
        raise InputError(f"{target} does not end in .py; name a Python file, such as mine.py")
    if path.exists():
        raise InputError(f"{target} exists; nothing is overwritten, so name another file")
    if not path.parent.is_dir():
        raise InputError(f"{target}: there is no folder {path.parent}; make it first")
    files.write(path, text)
    print(f"{target} is {name}; try: {PROGRAM} train {target} --train.steps 30")
    return 0
