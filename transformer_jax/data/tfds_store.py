"""Reading the prepared data sets of TensorFlow Datasets (TFDS) without TensorFlow.

A data set is a folder DATA_DIR/NAME[/CONFIG]/VERSION. In array_record format, any example can be read by its number.
The older default format, TFRecord, needs TensorFlow: such a data set must be converted once.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import extras
from transformer_jax.errors import InputError, first_line
from transformer_jax.files import read_json

MOST_BYTES = 2**26  # the largest JSON file of a store
BATCH = 256  # examples that are read together
OWN_FEATURES = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")


def open_split(
    name: str, split: str, data_dir: str = "", *, decoders: Any = None
) -> tuple[Any, str, list[tuple[str, Path]]]:
    """(random-access examples, "name/config/version", the files that they are read from) of a split.

    Args:
      name: the name of the data set, such as "glue/mrpc".
      split: such as "train" or "train[:90%]".
      data_dir: the store; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      decoders: TFDS decoders by feature; None: the default ones.

    Raises:
      InputError: the data set, its split or a readable format is missing; the message says how to get it.
    """
    extras.need("tensorflow_datasets", f"TFDS data set {name!r}")
    import tensorflow_datasets as tfds

    store = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(store).expanduser()
    base = name.split("/")[0].split(":")[0]
    # If the data set is not in the store, TFDS would look for the builder's code and use the network.
    if base in ("", ".", "..") or not (root / base).is_dir():
        here = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) if root.is_dir() else ""
        raise InputError(
            f"TFDS data set {name!r} is not in {root} ({f'it has {here}' if here else 'empty or absent'}); prepare it "
            f"with TensorFlow, `tfds build {name} --data_dir {store} --file_format array_record`, or without it where "
            "its builder allows (docs/tasks/index.md), or set TFDS_DATA_DIR or data_dir to its folder"
        )
    for path in (root / base).rglob("*.json"):
        _refuse_foreign(read_json(path, MOST_BYTES, inside=root), path)
    found = sorted(p.parent.relative_to(root).as_posix() for p in root.glob(f"{base}/**/dataset_info.json"))
    prepared = f"prepared there: {', '.join(found) or 'nothing'}; another version is named as NAME/CONFIG:VERSION"
    try:
        builder = tfds.builder(name, data_dir=str(root))
        info = builder.info
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        raise InputError(
            f"TFDS data set {name!r} cannot be opened in {root} ({first_line(error)}); {prepared}"
        ) from None
    if not info.splits:
        raise InputError(f"TFDS data set {name!r}: there is no {builder.data_path}; {prepared}")
    if not (formats := {f.value for f in info.available_file_formats()} & {"array_record", "parquet"}):
        raise InputError(
            f"TFDS data set {name!r} at {builder.data_path} is in {info.file_format.value} format, which only "
            "TensorFlow reads; convert it once, on a machine with TensorFlow: "
            "`python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={builder.data_path} --out_file_format=array_record`"
        )
    try:
        source = builder.as_data_source(split, decoders=decoders)
    except (ValueError, KeyError) as error:
        sizes = ", ".join(f"{key} ({value.num_examples})" for key, value in info.splits.items())
        raise InputError(
            f"TFDS data set {info.full_name} has no examples in split {split!r}; it has {sizes} ({first_line(error)})"
        ) from None
    folder = Path(builder.data_path)
    files = [(p.name, p) for p in sorted(folder.iterdir()) if any(f".{kind}" in p.name for kind in formats)]
    return source, info.full_name, files


def _refuse_foreign(tree: Any, path: Path) -> None:
    """Refuses a JSON file that names a class outside TFDS: TFDS would import its module and run a stranger's code."""
    if isinstance(tree, list):
        for value in tree:
            _refuse_foreign(value, path)
    if isinstance(tree, dict):
        for key, value in tree.items():
            names_class = key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str)
            if names_class and "." in value and not OWN_FEATURES.fullmatch(value):
                raise InputError(
                    f"{path} names the class {value[:80]!r}, which is not part of TFDS; code in a store is never run"
                )
            _refuse_foreign(value, path)


def examples(source: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (its name for messages, example) for every example of a split, read in batches.

    Args:
      source: the examples of `open_split`.
      name: the name of the split, such as "TFDS glue/mrpc/2.0.0:train".
    """
    for first in range(0, len(source), BATCH):
        numbers = range(first, min(first + BATCH, len(source)))
        for number, example in zip(numbers, source.__getitems__(list(numbers)), strict=True):
            yield f"{name}:{number}", example


def need_features(features: Any, full_name: str, flags: Mapping[str, str]) -> None:
    """Refuses a data set without certain features.

    Args:
      features: the features of the data set, by name.
      full_name: the full name of the data set, for messages.
      flags: {field of the source: the feature that it names}.

    Raises:
      InputError: a feature is missing.
    """
    for flag, feature in flags.items():
        if feature not in features:
            raise InputError(
                f"TFDS {full_name}: no feature {feature!r}; it has {', '.join(sorted(features))}; choose with "
                f"--data.source.{flag.replace('_', '-')}"
            )


def class_name(names: Sequence[str], number: int, where: str) -> str:
    """The name of a class of a ClassLabel.

    Args:
      names: the names of the classes.
      number: the number of the class.
      where: names the example in messages.

    Raises:
      InputError: the number is out of range.
    """
    if not 0 <= number < len(names):
        raise InputError(
            f"{where}: label {number} is not one of the set's {len(names)}; its labels are not public, or the store is "
            "damaged"
        )
    return names[number]


def text_of(example: dict[str, Any], field: str, where: str) -> str:
    """The text of an example, decoded from the bytes that TFDS stores.

    Args:
      example: its features by name.
      field: the feature that holds the text.
      where: names the example in messages.

    Raises:
      InputError: no such feature, or no text in it.
    """
    if field not in example:
        raise InputError(f"{where}: no feature {field!r}; it has {', '.join(example)}; choose with field=...")
    value = example[field]
    value = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise InputError(f"{where}: feature {field!r} holds {type(value).__name__}, not text")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: feature {field!r} is not UTF-8 ({error})") from None
