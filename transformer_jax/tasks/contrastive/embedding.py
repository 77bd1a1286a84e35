"""Embeddings of texts and pictures by a trained model, and the items of a search.

    embedder = Embedder(loaded.params, loaded.config, loaded.tokenizer, loaded.task.preprocess)
    texts_NF = embedder.texts(["a bicycle", "a house"], "right")
    pictures_NF = embedder.images([Path("photo.jpg")])

N items, F width of the embeddings, T length.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import models
from transformer_jax.data import image_files, text_files
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.tasks.contrastive import paired

ROWS = 32  # the rows of a batch
STEP = 16  # a batch's length is a multiple of it, so that few shapes are compiled


@dataclass(frozen=True, eq=False)
class Embedder:
    """A model with its tokenizer and the preprocessing of its pictures."""

    params: Any
    model: Any
    tokenizer: Any
    preprocess: Preprocess

    def texts(self, texts: Sequence[str], side: str) -> np.ndarray:
        """The embeddings float32 [N, F] of texts; longer texts than the model's are truncated.

        Args:
          texts: N of them.
          side: "left" or "right", which the model reads them as.
        """
        model = self.model
        encoded = paired.encode(texts, self.tokenizer, model.max_length)
        found = []
        for numbers in _batches(len(texts)):
            tokens_BT, lengths_B = encoded.rows(numbers)
            whole = getattr(model, "reads_padding", False)
            T = model.max_length if whole else min(-(-lengths_B.max() // STEP) * STEP, model.max_length)
            found.append(self._embed(side, tokens_BT[:, :T], lengths_B))
        return np.concatenate(found)[: len(texts)]

    def images(self, pictures: Sequence[paired.Left]) -> np.ndarray:
        """The embeddings float32 [N, F] of pictures.

        Args:
          pictures: N paths, or pixels uint8.

        Raises:
          InputError: one cannot be decoded.
        """
        mean_C, std_C = (np.array(x, np.float32) for x in (self.preprocess.mean, self.preprocess.std))
        found = []
        for numbers in _batches(len(pictures)):
            pixels = {i: paired.pixels(pictures[i], self.preprocess) for i in dict.fromkeys(numbers.tolist())}
            images = np.stack([pixels[i] for i in numbers.tolist()]).astype(np.float32) / 255.0
            found.append(self._embed("left", (images - mean_C) / std_C, None))
        return np.concatenate(found)[: len(pictures)]

    def _embed(self, side: str, inputs: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
        return np.asarray(self._functions[side](self.params, jnp.asarray(inputs), lengths))

    @cached_property
    def _functions(self) -> dict[str, Callable[..., jax.Array]]:
        family, model = models.family(self.model), self.model

        def make(side: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
            return jax.jit(lambda params, inputs, lengths: side(params, model, inputs, lengths=lengths))

        return {"left": make(family.left), "right": make(family.right)}


def _batches(count: int) -> Iterator[np.ndarray]:
    """The numbers of the rows of each batch: one row, or ROWS with the last row repeated at the end."""
    if count == 1:
        yield np.zeros(1, np.int64)
        return
    for start in range(0, count, ROWS):
        yield np.minimum(np.arange(start, start + ROWS), count - 1)


def is_picture(text: str) -> bool:
    """Whether an input, `text`, names the file of a picture."""
    return Path(text).suffix.lower() in image_files.SUFFIXES


def items(where: str, embedder: Embedder) -> tuple[list[str], np.ndarray]:
    """(names, embeddings float32 [N, F]) of what is searched.

    Args:
      where: a folder of pictures, for a model that reads them; a folder of text files; or a file with a text per line.
      embedder: the embedder of the model.

    Raises:
      InputError: there is nothing to search.
    """
    path = Path(where).expanduser()
    if not path.exists():
        raise InputError(f"--search {where} does not exist; give a folder, or a file with a text on each line")
    if path.is_dir() and embedder.model.image is not None:
        found, _ = image_files.below(path)
        names = [str(one) for one in found]
        made = embedder.images(found) if found else None
    else:
        names = _documents(path) if path.is_dir() else [line for line in text_files.lines(path) if line.strip()]
        texts = [Path(name).read_text("utf-8", "replace") for name in names] if path.is_dir() else names
        made = embedder.texts(texts, "right") if names else None
    if made is None:
        raise InputError(f"--search {where} holds nothing that this model reads")
    return names, made


def _documents(folder: Path) -> list[str]:
    return [str(p) for p in sorted(folder.rglob("[!.]*")) if p.is_file() and p.stat().st_size and _is_text(p)]


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" not in file.read(4096)


def grouped(inputs: Iterator[str]) -> Iterator[list[str]]:
    """The `inputs` in lists of at most ROWS."""
    while group := list(itertools.islice(inputs, ROWS)):
        yield group
