"""Odd files of users through every reader, as training and as `predict` call it: the same rows, or the same refusal.

    python tools/drills/odd_files.py [--files 2000] [--seed 0] [--commands 30]

File n is drawn from (seed, n): the format, and around the same rows an encoding, a byte-order mark, line ends, quoting,
blank lines, tabs, a header or none, compression, the case of its suffix, and now and then damage. Each is read by the
source that trains from it and by the function that `predict --file` calls. A file is

    same      both give the rows that were written
    refused   both refuse it with one line of the same text
    differs   anything else: a bug, printed with its recipe

--commands takes so many tables through the whole commands as well: `train` for one step, and `predict --file` of the
same table, which must write an answer for each row.
"""

import argparse
import bz2
import collections
import contextlib
import csv
import gzip
import io
import json
import lzma
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_jax.data import inputs, sources, tables
from transformer_jax.errors import InputError
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.tagging import tagged
from transformer_jax.tasks.translation import bitext

WORDS = [
    "plain",
    "Grüße",
    "世界",
    "नमस्ते",
    "🙂",
    "e\u0301",
    "x\u2028y",
    "a\u00a0b",
    '"quoted"',
    "it's",
    "a;b",
    "1,0",
    "#",
]
PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
MARKED = ("utf-8-sig", "utf-16", "utf-32")
SUFFIX = {"csv": ".csv", "tsv": ".tsv", "jsonl": ".jsonl", "jsonl text": ".jsonl", "squad": ".json"}
ENDS = ("\n", "\r\n", "\r")
KINDS = ("text", "jsonl text", "csv", "tsv", "jsonl", "pairs", "conll", "squad")
LABELS = ("bad", "good")


@dataclass(frozen=True)
class Odd:
    """A file, what is in it, and how it was made."""

    path: Path
    kind: str
    rows: Any
    """What a reader should give; None where the file is damaged."""
    recipe: str
    header: bool = True


def draw(folder: Path, seed: int, number: int, kinds: tuple[str, ...] = KINDS, labels: tuple[str, ...] = ()) -> Odd:
    """File `number` of a seed, written into the folder; with `labels` a table's label is one of them."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(kinds)
    header, quoting = rng.random() < 0.8, rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    separator = ";" if kind == "csv" and rng.random() < 0.05 else ","
    written, rows = _content(rng, kind, header, quoting, separator, labels)
    end = rng.choice(ENDS)
    if end == "\r" and kind == "csv" and quoting == csv.QUOTE_MINIMAL:
        end = "\n"  # Python would leave a "\n" within a text unquoted
    if not rng.randrange(4) and not written.endswith("\n\n"):  # else an empty last line would be gone
        written = written.removesuffix("\n") or written
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", *MARKED, "latin-1", "utf-16-le"))
    damage = rng.choice(("", "", "", "", "", "", "cut", "byte"))
    data = written.replace("\n", end).encode(encoding, "replace")
    packed = rng.choice(("", "", ".gz", ".bz2", ".xz"))
    data = _damaged(rng, PACK[packed](data) if packed else data, damage)
    suffix = SUFFIX.get(kind, ".txt")
    path = folder / f"{number}{rng.choice((suffix, suffix.upper()))}{packed}"
    path.write_bytes(data)
    whole = not damage and separator == "," and encoding not in ("latin-1", "utf-16-le")
    recipe = f"{kind}, {encoding}, {end!r}, {packed or 'plain'}, {damage or 'whole'}, header {header}, {separator}"
    return Odd(path, kind, rows if whole else None, recipe, header)


def _content(
    rng: random.Random, kind: str, header: bool, quoting: int, separator: str, labels: tuple[str, ...]
) -> tuple[str, Any]:
    """(the text of a file with "\\n" at its ends, the rows in it)."""

    def sentence() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))

    def blank() -> str:
        return "\n" * (rng.random() < 0.2)

    count = rng.randint(1, 8)
    texts = ["" if rng.random() < 0.1 else sentence() for _ in range(count)]
    others = [rng.choice(labels) if labels else sentence() for _ in range(count)]
    if kind in ("text", "pairs"):
        return "".join(f"{text}\n" for text in texts), texts
    if kind == "jsonl text":
        lines = (json.dumps({"text": text}, ensure_ascii=rng.random() < 0.5) for text in texts)
        return "".join(f"{blank()}{line}\n" for line in lines), texts
    if kind == "jsonl":
        objects = ({"n": 1, "text": a, "label": b} for a, b in zip(texts, others, strict=True))
        lines = (json.dumps(one, ensure_ascii=False) for one in objects)
        return "".join(f"{blank()}{line}\n" for line in lines), [*zip(texts, others, strict=True)]
    if kind == "tsv":
        head = " text\tlabel \n" if header else ""
        lines = (f"{blank()}{a}\t{b}\n" for a, b in zip(texts, others, strict=True))
        return blank() + head + "".join(lines), [*zip(texts, others, strict=True)]
    if kind == "csv":
        texts = [text.replace(" ", rng.choice((" ", "\n", ",", "\t"))) for text in texts]
        file = io.StringIO(newline="")
        writer = csv.writer(file, quoting=quoting, lineterminator="\n", delimiter=separator)  # type: ignore[arg-type]
        rows = [*zip(texts, others, strict=True)]
        for row in [("text", "label")] * header + rows:
            file.write(blank())
            writer.writerow(row)
        return file.getvalue(), rows
    if kind == "conll":
        words = [[f"w{i}", "Grüße", "世界", "a\u00a0b"][: rng.randint(1, 4)] for i in range(count)]
        gap = rng.choice((" ", "\t", "  ", " X "))
        start = "-DOCSTART- O\n\n" if gap != " X " and rng.random() < 0.5 else ""
        return start + "\n".join("".join(f"{word}{gap}O\n" for word in sentence) + blank() for sentence in words), [
            tuple(sentence) for sentence in words
        ]
    asked = [
        {"id": str(i), "question": a or "who?", "answers": [{"text": b[:1], "answer_start": 0}]}
        for i, (a, b) in enumerate(zip(texts, others, strict=True))
    ]
    paragraphs = [{"context": b, "qas": [one]} for one, b in zip(asked, others, strict=True)]
    tree = {"data": [{"paragraphs": paragraphs}]}
    return json.dumps(tree, ensure_ascii=False, indent=rng.choice((None, 1))), [
        (str(one["question"]), b) for one, b in zip(asked, others, strict=True)
    ]


def _damaged(rng: random.Random, data: bytes, how: str) -> bytes:
    if how == "cut":
        return data[: rng.randrange(1, max(len(data), 2))]
    if how == "byte" and data:
        at = rng.randrange(len(data))
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data


# ---- Reading -------------------------------------------------------------------------------------------------------


def as_training(odd: Odd) -> Any:
    """The rows as the source that trains from such a file gives them."""
    path = str(odd.path)
    if odd.kind == "text":
        return _lines("".join(text for _, text in sources.TextFiles((path,), validation=(path,)).documents("train")))
    if odd.kind == "jsonl text":
        return [text for _, text in sources.Records((path,), validation=(path,)).documents("train")]
    if odd.kind == "pairs":
        other = odd.path.with_suffix(".target")
        other.write_text("x\n" * sum(1 for _ in sources.text_files.lines(odd.path)), encoding="utf-8")
        return [pair.source for pair in bitext.Lines((path, str(other)), (path, str(other))).pairs("train")]
    if odd.kind == "conll":
        return [sentence.words for sentence in tagged.Conll(path, path).sentences("train") or []]
    if odd.kind == "squad":
        return [(one.question, one.context) for one in questions.SquadJson(path, path).questions("train") or []]
    text, label = ("text", "label") if odd.header or odd.kind == "jsonl" else ("0", "1")
    rows = [(row.text, row.label) for row in tables.Table((path,), (path,), text=text, label=label).rows("train")]
    pairs = [pair[:2] for pair in bitext.Columns((path,), (path,), source=text, target=label).pairs("train")]
    return rows if rows == pairs else f"a table gives {rows}, pairs {pairs}"


def as_predict(odd: Odd) -> Any:
    """The rows as `predict --file` reads them."""
    path = str(odd.path)
    if odd.kind == "conll":
        return [one.query for one in tagged.inputs(path)]
    if odd.kind == "squad":
        return [one.query for one in questions.inputs(path)]
    if odd.kind in ("text", "pairs"):
        return [one.query for one in inputs.lines(path)]
    if odd.kind == "jsonl text":
        return [one.query for one in inputs.table(path, ("text",))]
    columns = ("text", "label") if odd.header or odd.kind == "jsonl" else ("0", "1")
    return [one.query for one in inputs.table(path, columns)]


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def outcome(read: Callable[[Odd], Any], odd: Odd) -> tuple[str, Any]:
    """("rows", them), ("refused", the line), or what else a reader made of the file."""
    try:
        return "rows", read(odd)
    except InputError as error:
        return ("refused", str(error)) if "\n" not in str(error) else ("lines", str(error))
    except Exception as error:
        return "raised", f"{type(error).__name__}: {error}"


def verdict(odd: Odd) -> str:
    """same, refused or differs."""
    (how, trained), (again, predicted) = outcome(as_training, odd), outcome(as_predict, odd)
    if how == again == "refused":
        return "refused" if odd.rows is None else f"differs: a good file is refused: {trained}"
    if odd.kind == "squad" and (how, again) == ("refused", "rows") and "'answers'" in trained:
        return "refused"  # by training alone: predict needs no answers
    if (how, again) == ("rows", "rows") and trained == predicted and odd.rows in (None, trained):
        return "same"
    return f"differs: training {how} {trained!r:.300}, predict {again} {predicted!r:.300}, written {odd.rows!r:.300}"


# ---- Whole commands ------------------------------------------------------------------------------------------------

EXPERIMENT = """
from transformer_jax.data.tables import Table
from transformer_jax.data.tokenizers import TokenizerFile
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import bert
from transformer_jax.tasks.classification import Classification
from transformer_jax.tasks.classification.labelled import LabelledText

def experiment():
    model = dict(vocab_size=5, max_length=16, width=8, num_layers=1, num_heads=1, heads=("classification",))
    return Experiment(
        model=bert.Config(**model, num_labels=2),
        data=LabelledText(Table("train", "good.csv"), TokenizerFile("."), length=16),
        task=Classification(("bad", "good")),
        train=Train(steps=1, batch_size=2),
        evaluate=Evaluate(batch_size=2),
        checkpoint=Checkpoint(best_metric="accuracy", best="highest"),
    )
"""


def commands(folder: Path, seed: int, number: int) -> str:
    """Table `number` through both commands: "answered", "refused" by both, "empty" (training alone wants texts)."""
    odd = draw(folder, seed, number, ("csv", "tsv", "jsonl"), LABELS)
    (folder / "mine.py").write_text(EXPERIMENT)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    if not (folder / "first").exists():  # what is asked where no run could be made of the table
        (folder / "good.csv").write_text("text,label\na,good\nb,bad\n")
        assert _command(folder, ["train", "mine.py", "--workdir", "first", "--data.source.train", "good.csv"])[0]
    text, label = ("text", "label") if odd.header or odd.kind == "jsonl" else ("0", "1")
    run, out = folder / f"run{number}", folder / f"out{number}.jsonl"
    (folder / "good.csv").write_text("text,label\n" * (text != "0") + "a,good\nb,bad\n")
    columns = ["--data.source.train", str(odd.path), "--data.source.text", text, "--data.source.label", label]
    trained, why = _command(folder, ["train", "mine.py", "--workdir", str(run), *columns])
    if not trained and "empty text" not in why:
        asked, again = _command(folder, ["predict", str(folder / "first"), "--file", str(odd.path), "--text", text])
        same = not asked and (odd.rows is None or "train" in why)
        return "refused" if same else f"differs: training {why}, predict {again or 'answers'} ({odd.recipe})"
    model = run if trained else folder / "first"
    asked, again = _command(folder, ["predict", str(model), "--file", str(odd.path), "--text", text, "--out", str(out)])
    if not asked and not out.exists():  # where no text has an answer, the file says why and the command fails
        return f"differs: trained, and predict refuses: {again} ({odd.recipe})"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]
    aligned = [(row[text], row[label]) for row in rows] == as_predict(odd)
    kind = "answered" if trained else "empty"
    return kind if aligned else f"differs: {rows} ({odd.recipe})"


def _command(folder: Path, arguments: list[str]) -> tuple[bool, str]:
    """(whether it ended well, the last line of stderr, or the exit status)."""
    from transformer_jax.__main__ import main as command

    output = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
        code = command(arguments)
    return code == 0, output.getvalue().strip().rpartition("\n")[2] or f"exit status {code}"


def main(arguments: list[str]) -> int:
    """Prints the counts; 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=0)
    options = parser.parse_args(arguments)
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.files):
            odd = draw(Path(folder), options.seed, number)
            found = verdict(odd)
            counts[f"{odd.kind}: {found.partition(':')[0]}"] += 1
            if found.startswith("differs"):
                print(f"file {number} ({odd.recipe}): {found}")
        for number in range(options.commands):
            found = commands(Path(folder), options.seed, number)
            counts[f"commands: {found.partition(':')[0]}"] += 1
            if found.startswith("differs"):
                print(f"commands {number}: {found}")
    for name, count in sorted(counts.items()):
        print(f"{name:24} {count:6,}")
    return int(any(name.endswith("differs") for name in counts))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
