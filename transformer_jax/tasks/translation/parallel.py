"""Parallel text as random-access examples for encoder-decoders: each row has several pairs, one per segment.

An example:

    {"source": int32[S], "source_segments": int32[S],
     "inputs": int32[T], "targets": int32[T], "target_segments": int32[T], "weights": float32[T]}

Pair k of a row is segment k on both sides, counted from 1; 0 is padding. The decoder's inputs are the start token and
the targets of each pair, shifted by one. The weights of targets are 1, end-of-text tokens included.

With one sentence per row, most tokens would be padding. So whole pairs are packed into rows of S source and T target
tokens (`objectives.packing`), once. The rows are reshuffled every epoch, but keep their pairs. Texts are tokenised once
into token files (`data.tokens`), one for each side.

Training pairs are filtered by length, as in the recipes of fairseq and Moses. Validation and test sets are complete:
every source is translated, and pairs longer than a row are truncated only for the loss.

Letters: P pairs, B rows, Q pairs of the rows of a batch, S source slots, T target slots.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transformer_jax import files, objectives
from transformer_jax.data import mixtures, pipeline, records, sources, tokenizers, tokens
from transformer_jax.data.tables import Side
from transformer_jax.errors import InputError
from transformer_jax.objectives import packing
from transformer_jax.tasks.translation import bitext
from transformer_jax.tasks.translation.special import Framing, framing


@dataclass(frozen=True)
class ParallelText:
    """The data of a translation or summarisation experiment: the pairs, the tokenizer, the rows, the filters."""

    source: bitext.Source
    """The pairs."""
    tokenizer: tokenizers.Spec
    """Encodes their texts. It is trained on both sides together."""
    source_length: int = 128
    """S, source tokens in a row, special ones included."""
    target_length: int = 128
    """T, target tokens in a row, special ones included."""
    max_tokens: int = 250
    """Training pairs with more tokens on a side are dropped (fairseq's WMT recipe); 0: those longer than a row."""
    max_ratio: float = 9.0
    """Training pairs with a side more than this many times as long as the other are dropped (Moses' default; fairseq's
    recipes for WMT use 1.5, which drops many short pairs of distant languages); 0: none."""
    too_long: Literal["drop", "cut"] = "drop"
    """`drop`: pairs with a longer text are dropped; `cut`: the text is truncated, as for articles to summarise."""
    empty: Literal["refuse", "skip"] = "refuse"
    """refuse: a pair with an empty side is an error; skip: it is skipped and counted."""

    def __post_init__(self) -> None:
        for name in ("source_length", "target_length"):
            if getattr(self, name) < 4:
                raise InputError(f"data.{name} = {getattr(self, name)} must be at least 4; up to 2 of them are special")
        if self.max_tokens < 0:
            raise InputError(f"data.max_tokens = {self.max_tokens} must be 1 or more, or 0 for the length of a row")
        if self.max_ratio and not self.max_ratio >= 1:
            raise InputError(f"data.max_ratio = {self.max_ratio} must be 1 or more, or 0 for no filter")
        if self.too_long not in ("drop", "cut"):
            raise InputError(f"data.too_long = {self.too_long!r} must be 'drop' or 'cut'")
        if self.empty not in ("refuse", "skip"):
            raise InputError(f"data.empty = {self.empty!r} must be 'refuse' or 'skip'")

    @property
    def length(self) -> int:
        """The length of the longest sequence, in tokens."""
        return max(self.source_length, self.target_length)


@dataclass(frozen=True, eq=False)
class Held:
    """A finite set: packed rows for the loss, and the texts of each pair, in order, for translation."""

    rows: "Rows"
    sources: list[str]
    """Without the prefix."""
    references: list[str]
    names: tuple[str, ...] = ()
    """The names of the parts of a mixture."""
    parts: Sequence[int] = ()
    """The part of each pair."""


@dataclass(frozen=True, eq=False)
class Parallel:
    """The prepared sides of a ParallelText. The training rows are an endless, shuffled sequence."""

    tokenizer: tokenizers.Tokenizer
    train: "Rows"
    validation: Held
    test: Held | None
    facts: dict[str, Any]
    """Counts of pairs and of pairs that each filter dropped, and shares of padding."""
    identity: str
    """A hash of the pairs of all sides."""


def prepare(
    data: ParallelText,
    model_cfg: Any,
    *,
    seed: int,
    prefix: str = "",
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Parallel:
    """The filtered and packed examples of every side; texts are tokenised on first use.

    Args:
      data: the pairs, the tokenizer, the rows and the filters.
      model_cfg: an encoder-decoder, for its special ids.
      seed: the seed of the order of training rows.
      prefix: text before every source, such as T5's "translate English to German: ".
      tokenizer: the one of the run or checkpoint that is continued; None: `data.tokenizer` is built.

    Raises:
      InputError: a bad file or pair, a tokenizer that does not suit the model, or filters that drop every pair.
    """
    sides: tuple[Side, ...] = ("train", "validation", "test") if data.source.has_test else ("train", "validation")
    cache = tokens.cache_dir()
    found = {side: data.source.pairs(side) for side in sides}
    counts = {side: _counts(pairs, cache) for side, pairs in found.items()}
    _check(counts, found, data.empty)  # before a tokenizer is trained
    skipped = {side: records.counted(count["skipped"]) for side, count in counts.items() if count["skipped"]}
    both = _documents(found["train"], ("source", "target"))
    tokenizer = tokenizers.build(data.tokenizer, both, cache, given=tokenizer)
    frame = framing(tokenizer, model_cfg)
    texts = {side: _tokenised(pairs, tokenizer, prefix, cache) for side, pairs in found.items()}

    train, filtered = _training_rows(*texts["train"], frame, data, seed, found["train"])
    facts: dict[str, Any] = {
        "vocabulary": tokenizer.vocab_size,
        "training_pairs": len(train.packing.pieces),
        "training_pairs_dropped_empty": counts["train"]["empty"],
        **{f"training_pairs_{what}": count for what, count in filtered.items()},
        "training_rows": len(train.packing),
        "training_target_tokens": int(train.sizes_P2[train.packing.pieces, 1].sum()),
        **{f"padding_share_{name}": share for name, share in train.padding_shares().items()},
        **{f"{side}_skipped": what for side, what in skipped.items()},
    }
    held = {}
    for side in sides[1:]:
        held[side], truncated = _held(found[side], *texts[side], frame, data)
        facts[f"{side}_pairs"] = len(held[side].sources)
        facts[f"{side}_pairs_skipped_empty"] = counts[side]["empty"]
        facts[f"{side}_pairs_truncated_for_the_loss"] = truncated
    identity = hashlib.sha256("".join(text.content for side in texts.values() for text in side).encode()).hexdigest()
    return Parallel(tokenizer, train, held["validation"], held.get("test"), facts, identity)


# ---- Rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Texts:
    """One side of all pairs as tokens, without special ones."""

    tokens: np.ndarray
    """The tokens of all texts, concatenated, from a token file."""
    begins_P: np.ndarray
    """int64: the position of each text's first token."""
    sizes_P: np.ndarray
    """int64: the number of tokens of each text."""
    content: str
    """A hash of the texts."""

    def __getitem__(self, pair: int) -> np.ndarray:
        return self.tokens[self.begins_P[pair] :][: self.sizes_P[pair]]


@dataclass(frozen=True, eq=False)
class Rows(pipeline.StackedExamples):
    """Random-access examples: `rows[i]` is example i."""

    source: Texts
    target: Texts
    framing: Framing
    packing: packing.Packing
    """The pairs of each row."""
    order: Sequence[int]
    """Example -> row."""
    source_length: int
    target_length: int

    def stacked(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Examples with the leading dimension B."""
        pairs_of_row = [self.packing[self.order[i]] for i in numbers]
        count_B = np.array([len(pairs) for pairs in pairs_of_row])
        pairs_Q = np.concatenate(pairs_of_row)
        source_BS, source_segments_BS, _ = _fill(
            self.source, self.framing.source_around, pairs_Q, count_B, self.source_length
        )
        targets_BT, target_segments_BT, first_Q = _fill(
            self.target, self.framing.target_around, pairs_Q, count_B, self.target_length
        )
        inputs_BT = np.zeros_like(targets_BT)
        inputs_BT[:, 1:] = np.where(target_segments_BT[:, 1:] > 0, targets_BT[:, :-1], 0)
        inputs_BT.reshape(-1)[first_Q] = self.framing.start[0]
        return {
            "source": source_BS,
            "source_segments": source_segments_BS,
            "inputs": inputs_BT,
            "targets": targets_BT,
            "target_segments": target_segments_BT,
            "weights": (target_segments_BT > 0).astype(np.float32),
        }

    @property
    def sizes_P2(self) -> np.ndarray:
        """int64 [P, 2]: the tokens of each pair's source and target, special ones included."""
        return _framed_sizes(self.source, self.target, self.framing)

    def padding_shares(self) -> dict[str, float]:
        """The shares of padding: {"source", "target", "both"}."""
        filled_2 = self.sizes_P2[self.packing.pieces].sum(axis=0)
        slots_2 = len(self.packing) * np.array([self.source_length, self.target_length])
        source, target = (1 - filled_2 / slots_2).tolist()
        return {"source": source, "target": target, "both": 1 - float(filled_2.sum() / slots_2.sum())}


def _fill(
    texts: Texts, around: tuple[list[int], list[int]], pairs_Q: np.ndarray, count_B: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One side of a batch: (tokens, segments) int32 [B, length], and the flat position of each pair's first token."""
    before, after = around
    B, Q = len(count_B), len(pairs_Q)
    body_Q = texts.sizes_P[pairs_Q]
    size_Q = body_Q + len(before) + len(after)
    row_Q = np.repeat(np.arange(B), count_B)
    start_B = np.cumsum(count_B) - count_B  # each row's first pair among the Q
    filled_Q = np.cumsum(size_Q) - size_Q
    first_Q = row_Q * length + filled_Q - filled_Q[start_B][row_Q]

    flat, segments = np.zeros(B * length, np.int32), np.zeros(B * length, np.int32)
    segments[_ranges(first_Q, size_Q)] = np.repeat(np.arange(Q) - start_B[row_Q] + 1, size_Q)
    flat[_ranges(first_Q + len(before), body_Q)] = texts.tokens[_ranges(texts.begins_P[pairs_Q], body_Q)]
    for i, id in enumerate(before):
        flat[first_Q + i] = id
    for i, id in enumerate(after):
        flat[first_Q + len(before) + body_Q + i] = id
    return flat.reshape(B, length), segments.reshape(B, length), first_Q


def _ranges(start_Q: np.ndarray, size_Q: np.ndarray) -> np.ndarray:
    """The ranges start, ..., start + size - 1, concatenated."""
    return np.arange(size_Q.sum()) + np.repeat(start_Q - (np.cumsum(size_Q) - size_Q), size_Q)


def _framed_sizes(source: Texts, target: Texts, frame: Framing) -> np.ndarray:
    return np.stack([source.sizes_P, target.sizes_P], axis=1) + _special(frame)


def _special(frame: Framing) -> np.ndarray:
    """The numbers of special tokens around a source and a target."""
    return np.array([len(before) + len(after) for before, after in (frame.source_around, frame.target_around)])


# ---- Filters and packing -------------------------------------------------------------------------------------------


def _training_rows(
    source: Texts, target: Texts, frame: Framing, data: ParallelText, seed: int, pairs: bitext.Pairs
) -> tuple[Rows, dict[str, int]]:
    """(endless rows of the pairs that pass the filters, counts of the others)."""
    sizes_P2 = np.stack([source.sizes_P, target.sizes_P], axis=1)
    room_2 = (data.source_length, data.target_length)
    most_2 = np.minimum(room_2 - _special(frame), data.max_tokens or room_2)
    too_long_P = (sizes_P2 > most_2).any(axis=1)
    shorter_P, longer_P = sizes_P2.min(axis=1), sizes_P2.max(axis=1)
    fails = {"without_tokens": shorter_P < 1}  # a normaliser may remove a whole text
    if data.too_long == "drop":
        fails["too_long"] = too_long_P
    fails["by_ratio"] = longer_P > (data.max_ratio or np.inf) * np.maximum(shorter_P, 1)
    kept_P, counts = np.ones(len(sizes_P2), bool), {}
    for reason, fails_P in fails.items():  # a pair counts for the first filter that drops it
        counts[f"dropped_{reason}"] = int((kept_P & fails_P).sum())
        kept_P &= ~fails_P
    counts["truncated"] = int((kept_P & too_long_P).sum())
    if not kept_P.any():
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items() if count)
        raise InputError(
            f"the filters drop all {len(kept_P):,} training pairs ({reasons}); raise data.max_tokens, data.max_ratio, "
            "data.source_length or data.target_length"
        )
    source, target = _truncated(source, most_2[0]), _truncated(target, most_2[1])
    sizes_P2 = _framed_sizes(source, target, frame)
    parts_P = np.array([pair.part for pair in pairs if not _empty_side(pair)]) if pairs.names else np.zeros(len(kept_P))
    packed, rows = [], []
    for part in range(len(pairs.names) or 1):
        shuffled = objectives.generator(seed, part).permutation(np.flatnonzero(kept_P & (parts_P == part)))
        if not len(shuffled):
            raise InputError(f"the filters drop all training pairs of {pairs.names[part]}")
        one = packing.pack_pairs(sizes_P2[shuffled], room_2)
        packed.append(packing.Packing(shuffled[one.pieces], one.starts))
        rows.append(len(one))
    order = mixtures.Order(tuple(rows), pairs.rates, seed) if pairs.names else pipeline.epochs(rows[0], seed)
    counts |= {f"of_{name}_rows": count for name, count in zip(pairs.names, rows, strict=False)}
    return Rows(source, target, frame, packing.joined(packed), order, *room_2), counts


def _held(pairs: bitext.Pairs, source: Texts, target: Texts, frame: Framing, data: ParallelText) -> tuple[Held, int]:
    """(all pairs of a finite set, how many of them are truncated in its rows)."""
    room_2 = (data.source_length, data.target_length)
    most_2 = room_2 - _special(frame)
    too_long = int(((source.sizes_P > most_2[0]) | (target.sizes_P > most_2[1])).sum())
    source, target = _truncated(source, most_2[0]), _truncated(target, most_2[1])
    packed = packing.pack_pairs(_framed_sizes(source, target, frame), room_2)
    texts = [pair for pair in pairs if not _empty_side(pair)]
    rows = Rows(source, target, frame, packed, range(len(packed)), *room_2)
    both = [pair.source for pair in texts], [pair.target for pair in texts]
    return Held(rows, *both, pairs.names, [pair.part for pair in texts]), too_long


def _truncated(texts: Texts, most: int) -> Texts:
    return dataclasses.replace(texts, sizes_P=np.minimum(texts.sizes_P, most))


# ---- Texts to tokens -----------------------------------------------------------------------------------------------


def _counts(pairs: bitext.Pairs, cache: Path) -> dict[str, Any]:
    """{"pairs": count, "empty": count of pairs with an empty side, "where": the first of these, "skipped": {...}}.

    It reads all pairs, which takes minutes for millions, so the result is cached.
    """
    kept = cache / "pairs" / hashlib.sha256(f"3 {pairs.identity()}".encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, ValueError):
        return json.loads(kept.read_bytes())
    total, empty, where = 0, 0, []
    for pair in pairs:
        total += 1
        if side := _empty_side(pair):
            empty += 1
            where += [f"{pair.where} ({side})"] if empty <= records.FEW else []
    found = {"pairs": total, "empty": empty, "where": where, "skipped": dict(pairs.skipped)}
    with contextlib.suppress(OSError):  # without a cache, the next run reads all pairs again
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        files.write(kept, json.dumps(found))
    return found


def _check(counts: Mapping[Side, dict[str, Any]], found: Mapping[Side, bitext.Pairs], empty: str) -> None:
    """Refuses a side without pairs, and pairs with an empty side; one message counts them all."""
    for side, count in counts.items():
        if count["pairs"] == count["empty"]:
            but = " but empty ones" if count["pairs"] else ""
            raise InputError(f"{found[side].origin}: no pairs{but}; add some, or name another file")
    total = sum(count["empty"] for count in counts.values())
    if total and empty == "refuse":
        are = f"{total:,} pairs have" if total > 1 else "a pair has"
        places = records.places([place for count in counts.values() for place in count["where"]], total)
        raise InputError(
            f"{are} an empty side: {places}; complete or remove the pair, or skip such pairs with --data.empty skip"
        )


def _empty_side(pair: bitext.Pair) -> str | None:
    if pair.source.strip():
        return None if pair.target.strip() else "target"
    return "source"


def _documents(
    pairs: bitext.Pairs, which: tuple[Literal["source", "target"], ...], prefix: str = ""
) -> sources.Documents:
    """The texts of the pairs as documents; `prefix` precedes the sources."""

    def read() -> Iterator[tuple[str, str]]:
        for pair in pairs:
            if not _empty_side(pair):
                if "source" in which:
                    yield f"{pair.where} (source)", prefix + pair.source
                if "target" in which:
                    yield f"{pair.where} (target)", pair.target

    return sources.Documents(
        origin=f"{pairs.origin} ({' and '.join(which)})",
        read=read,
        identity=lambda: f"{pairs.identity()} {which} {prefix!r}",
        nbytes=pairs.nbytes * len(which) // 2,
    )


def _tokenised(pairs: bitext.Pairs, tokenizer: tokenizers.Tokenizer, prefix: str, cache: Path) -> tuple[Texts, Texts]:
    """Sources and targets from token files."""
    source = tokens.prepare(_documents(pairs, ("source",), prefix), tokenizer, cache)
    target = tokens.prepare(_documents(pairs, ("target",)), tokenizer.target, cache)
    if len(source.starts) != len(target.starts):
        raise ValueError(f"{pairs.origin}: {len(source.starts)} sources and {len(target.starts)} targets")
    return _texts(source, tokenizer), _texts(target, tokenizer.target)


def _texts(file: tokens.TokenFile, tokenizer: tokenizers.Tokenizer) -> Texts:
    """The texts of a token file, without the special tokens around each."""
    head, tail = tokens.frame(tokenizer)
    begins_P = file.starts + len(head)
    sizes_P = np.append(file.starts[1:], len(file.tokens)) - len(tail) - begins_P
    return Texts(file.tokens, begins_P, sizes_P, file.content)
