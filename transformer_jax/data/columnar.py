"""Records of Parquet and Arrow files, and the folders of Hugging Face's `save_to_disk`, read with pyarrow.

    .parquet     by row groups: the footer, then the wanted columns of one group at a time
    .arrow       by record batches, whether the file is Arrow's file format or its stream, as `save_to_disk` writes

A record is {column: value}: strings, bytes, numbers, lists, and dicts for structs. The numbers of a ClassLabel, which
Hugging Face's `datasets` notes in the schema, become its names. Little of a large file is in memory.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from transformer_jax import extras, files
from transformer_jax.data import remote
from transformer_jax.errors import InputError

SUFFIXES = (".parquet", ".arrow")
ROWS = 256  # the most rows that are Python values at the same time
CHUNK = 1 << 23  # bytes of a column that are read at a time
STATE = "state.json"  # in a folder of `save_to_disk`, it names the files in order


def rows(
    file: remote.File, columns: Collection[str] | None = None, groups: Sequence[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row, from 1; {column: value}) for each record of a file.

    Args:
      file: a .parquet or .arrow file.
      columns: the columns to read, where the file has them all; None: all.
      groups: the row groups of a Parquet file to read; None: all.

    Raises:
      InputError: the file is damaged, or is of neither format.
    """
    number = 0
    batches: Iterator[Any]
    with remote.opened(file, block=0) as raw, _explained(file):
        if _is_parquet(file):
            parquet = _parquet(raw)
            number = sum(parquet.metadata.row_group(i).num_rows for i in range(groups[0] if groups else 0))
            schema, names = parquet.schema_arrow, _wanted(parquet.schema_arrow.names, columns)
            batches = (
                batch  # one row group at a time: a batch of several would need all of them in memory
                for group in (range(parquet.num_row_groups) if groups is None else groups)
                for batch in parquet.iter_batches(ROWS, row_groups=[group], columns=names, use_threads=False)
            )
        else:
            schema, batches, names = _arrow(raw, columns)
        named = _class_names(schema)
        for batch in batches:
            for first in range(0, batch.num_rows, ROWS):
                part = batch.slice(first, ROWS)
                held = {
                    name: named.get(name, list)(part.column(i).to_pylist())
                    for i, name in enumerate(part.schema.names)
                    if names is None or name in names
                }
                for values in zip(*held.values(), strict=True):
                    number += 1
                    yield number, dict(zip(held, values, strict=True))


def row_groups(file: remote.File) -> list[int]:
    """The bytes of each row group of a Parquet file, uncompressed.

    Args:
      file: only its footer is read.

    Raises:
      InputError: it is not a Parquet file.
    """
    with remote.opened(file, block=0) as raw, _explained(file):
        facts = _parquet(raw).metadata
        return [facts.row_group(i).total_byte_size for i in range(facts.num_row_groups)]


def saved_to_disk(state: bytes, where: str) -> list[str]:
    """The names of the data files that the state.json of a folder of `save_to_disk` lists, in order.

    Args:
      state: the content of the file.
      where: its name, for messages.

    Raises:
      InputError: it is not such a file.
    """
    tree = files.parse_json(state, where)
    try:
        return [str(entry["filename"]) for entry in tree["_data_files"]]
    except (KeyError, TypeError):
        raise InputError(f"{where} is not the state.json of a data set of Hugging Face; write it again") from None


def _is_parquet(file: remote.File) -> bool:
    return str(file).lower().endswith(".parquet")


def _parquet(raw: Any) -> Any:
    extras.need("pyarrow", "Parquet files")
    from pyarrow import parquet

    return parquet.ParquetFile(raw, buffer_size=CHUNK, pre_buffer=False, page_checksum_verification=True)


def _arrow(raw: Any, columns: Collection[str] | None) -> tuple[Any, Iterator[Any], list[str] | None]:
    """(schema, record batches, columns to keep) of an Arrow file or stream."""
    extras.need("pyarrow", "Arrow files")
    import pyarrow as pa

    is_file = raw.read(6) == b"ARROW1"
    raw.seek(0)
    reader = pa.ipc.open_file(raw) if is_file else pa.ipc.open_stream(raw)
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
    return reader.schema, batches, _wanted(reader.schema.names, columns)


def _wanted(names: list[str], columns: Collection[str] | None) -> list[str] | None:
    """The columns to read: None for all, also where one is missing, so that the error can name those that there are."""
    tops = [name if name in names else name.partition(".")[0] for name in columns or ()]
    return list(dict.fromkeys(tops)) if tops and set(tops) <= set(names) else None


def _class_names(schema: Any) -> dict[str, Callable[[list[Any]], list[Any]]]:
    """{column: a function that gives its class numbers their names}, of the columns that are ClassLabels."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    found: dict[str, Callable[[list[Any]], list[Any]]] = {}
    for column, feature in features.items():
        inner = feature[0] if isinstance(feature, list) and feature else feature
        inner = inner.get("feature", inner) if isinstance(inner, dict) else inner
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and isinstance(inner.get("names"), list):
            found[column] = _namer([str(name) for name in inner["names"]])
    return found


def _namer(names: list[str]) -> Callable[[list[Any]], list[Any]]:
    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(one) for one in value]
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else value

    return lambda values: [name(value) for value in values]


@contextlib.contextmanager
def _explained(file: remote.File) -> Iterator[None]:
    """Raises an `InputError` of one line in place of pyarrow's exceptions."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:  # all of pyarrow's are of these
        if isinstance(error, InputError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        kind = "Parquet" if _is_parquet(file) else "Arrow"
        raise InputError(f"{file}: not a whole {kind} file ({reason}); fetch or write it again") from None
