"""A data set that every machine has: the documented functions of the standard library, and what their text says."""

import ast
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformer_jax.data import sources
from transformer_jax.tasks.contrastive.paired import Pair, Pairs, Side, Source, Table

LINES = 30  # the most lines of a function's code


@dataclass(frozen=True)
class StdlibFunctions(Source):
    """The first paragraph of a function's docstring, and its code without the docstring.

    A file of the library is on one side only, so that the validation set asks for functions of files that were not
    seen. Of functions with equal docstrings or equal code the first is kept. The text differs between Python versions.
    """

    def of_files(self, files: tuple[str, ...]) -> Table:
        return Table(files, files)

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side.

        Args:
          side: "train" or "validation".
        """
        documents = sources.Embedded().documents("train" if side == "train" else "validation")
        held: list[Pair] = []
        seen: set[str] = set()
        for name, text in documents:
            for pair in functions(text, name):
                if not seen & {str(pair.left), pair.right}:
                    seen |= {str(pair.left), pair.right}
                    held.append(pair)
        return Pairs(f"functions of the standard library ({side})", held)

    def baselines(self, train: Pairs, validation: Pairs) -> dict[str, float]:
        """The recall of BM25 by the words of the docstring in those of the code, identifiers split."""
        queries = [words(str(pair.left)) for pair in validation.held]
        scores = bm25(queries, [words(pair.right) for pair in validation.held])
        ranks = [sum(score >= row[i] for score in row) for i, row in enumerate(scores)]
        return {f"baseline_recall_at_{k}_bm25": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 10)}


def functions(text: str, where: str) -> Iterator[Pair]:
    """The documented functions of a module, each as (first paragraph of its docstring, its code without it).

    Args:
      text: the text of the module; one that this Python cannot parse has none.
      where: the name of its file.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        if len(paragraph.split()) < 3:
            continue
        first, end = node.body[0].lineno - 1, node.body[0].end_lineno or 0
        code = [*lines[node.lineno - 1 : first], *lines[end : node.end_lineno]][:LINES]
        yield Pair(paragraph, "\n".join(line for line in code if line.strip()), (), f"{where}:{node.lineno}")


def words(text: str) -> list[str]:
    """The words of `text` in lower case, with identifiers split: "readLine_all" -> read, line, all."""
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", text)]


def bm25(
    queries: Sequence[list[str]], texts: Sequence[list[str]], k1: float = 1.5, b: float = 0.75
) -> list[list[float]]:
    """The score of every text for each query, [queries, texts] (Robertson and Zaragoza 2009, equation 3.15).

    Args:
      queries: words.
      texts: words.
      k1: how soon more of a word counts no more.
      b: how much long texts are discounted.
    """
    counts, mean = [Counter(text) for text in texts], sum(map(len, texts)) / len(texts)
    present = Counter(word for count in counts for word in count)
    idf = {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in present.items()}
    parts = [
        {word: idf[word] * n * (k1 + 1) / (n + k1 * (1 - b + b * len(text) / mean)) for word, n in count.items()}
        for count, text in zip(counts, texts, strict=True)
    ]
    return [[sum(part.get(word, 0.0) for word in set(query)) for part in parts] for query in queries]
