"""Many short texts in rows of one length, so that little of a batch is padding.

Best fit decreasing: the longest text first, each into the fullest row that still has room (the idea of Krell et al.
2021, "Efficient sequence packing without cross-contamination"). The same lengths give the same rows.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Packing:
    """`packing[row]` holds the row's pieces, int64 [pieces, 3]: document, offset in it, size."""

    pieces: np.ndarray
    """int64 [all pieces, 3], row after row."""
    starts: np.ndarray
    """int64 [rows + 1]: row r is pieces[starts[r] : starts[r + 1]]."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.pieces[self.starts[row] : self.starts[row + 1]]


def pack(lengths: np.ndarray, length: int, *, overhead: int = 0) -> Packing:
    """Puts every token of every document into exactly one row.

    A document that fits into a row stays whole. A longer one is cut into pieces that fill rows of their own, and a last
    one that is packed like a short document. Empty documents are left out.

    Arguments:
      lengths: int [documents].
      length: tokens of a row.
      overhead: tokens that each piece needs beside its own, such as [CLS] and [SEP].
    """
    room = length - overhead
    if room < 1:
        raise ValueError(f"rows of {length} tokens have no room beside {overhead} tokens of each piece")
    whole, rest = np.divmod(np.asarray(lengths, np.int64), room)
    # Full pieces: document d gives whole[d] rows, at offsets 0, room, ...
    document = np.repeat(np.arange(len(whole)), whole)
    offset = (np.arange(len(document)) - np.repeat(np.cumsum(whole) - whole, whole)) * room
    full = np.stack([document, offset, np.full_like(document, room)], axis=1)
    short = np.flatnonzero(rest)
    short = short[np.argsort(-rest[short], kind="stable")]
    row = _best_fit((rest[short] + overhead).tolist(), length)
    by_row = np.argsort(row, kind="stable")
    short = short[by_row]
    shared = np.stack([short, whole[short] * room, rest[short]], axis=1)
    sizes = np.concatenate([np.ones(len(full), np.int64), np.bincount(row)])
    return Packing(np.concatenate([full, shared]), np.concatenate([[0], np.cumsum(sizes)]))


def _best_fit(sizes: list[int], length: int) -> np.ndarray:
    """The row of each text, int64: the fullest one with room for it, else a new one."""
    rows: list[list[int]] = [[] for _ in range(length + 1)]  # free tokens -> the rows that have so many
    having = 0  # bit f is set where rows[f] is not empty: the lowest one from `size` up is found at once
    placed = np.empty(len(sizes), np.int64)
    count = 0
    for i, size in enumerate(sizes):
        fitting = having >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            row = rows[free].pop()
            if not rows[free]:
                having ^= 1 << free
        else:
            free, row, count = length, count, count + 1
        placed[i] = row
        rows[free - size].append(row)
        having |= 1 << (free - size)
    return placed
