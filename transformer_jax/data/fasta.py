"""Biological sequences in FASTA and FASTQ files, as documents: proteins, or DNA as letters or words of k letters.

    >sp|P69905|HBA_HUMAN Hemoglobin subunit alpha           @read_1
    MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYF            GATTTGGGGTTCAAAGC
    PHFDLSHGSAQVKGHGKKVADALTNAVAHVDDMPNALSALSDLH            +
                                                            IIIIIIIIIIIIIIIII

Files may be compressed and of any size: a sequence is yielded in pieces of at most PIECE letters, so a chromosome is
never in memory. Letters are read in upper case; any that the alphabet lacks is refused with its line.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from transformer_jax.data import remote, source_files, sources, text_files
from transformer_jax.errors import InputError

Alphabet = Literal["protein", "dna"]
SUFFIXES = (".fasta", ".fa", ".fna", ".faa", ".ffn", ".fastq", ".fq")
PIECE = 1 << 16  # letters

# IUPAC's codes, with those for several or unknown residues, gaps and the end of a translation.
LETTERS = {"protein": "ACDEFGHIKLMNPQRSTVWYBJOUXZ*-.", "dna": "ACGTUNRYSWKMBDHV-."}
REMOVED = {"protein": "*-.", "dna": "-."}  # stops and gaps are no residues


@dataclass(frozen=True)
class Fasta:
    """The sequences of FASTA and FASTQ files. Without `validation`, each is split by a hash of its name."""

    paths: tuple[str, ...]
    """Files, globs, or folders (all their FASTA and FASTQ files), local or URLs."""
    validation: tuple[str, ...] = ()
    """Files to validate on; empty: a part of `paths`."""
    validation_fraction: float = 0.05
    """The share of sequences held out if `validation` is empty."""
    alphabet: Alphabet = "protein"
    """protein, or dna, whose U is read as T."""
    words: int = 0
    """k: DNA is read as words of k letters with spaces between them; 0: as it is."""
    overlapping: bool = True
    """A word begins at every letter (DNABERT), or at every k-th (the Nucleotide Transformer)."""

    def __post_init__(self) -> None:
        source_files.settle_paths(self, "paths", "validation")
        if self.alphabet not in LETTERS:
            raise InputError(f"data.source.alphabet = {self.alphabet!r}: must be protein or dna")
        if not 0 <= self.words <= 8 or (self.words and self.alphabet == "protein"):
            raise InputError(f"data.source.words = {self.words}: must be 1 to 8 for dna, and 0 for proteins")

    def of_files(self, files: tuple[str, ...]) -> "Fasta":
        return Fasta(files, files, self.validation_fraction, self.alphabet, self.words, self.overlapping)

    def documents(self, split: sources.Split) -> sources.Documents:
        """The sequences of a side.

        Args:
          split: "train" or "validation".
        """
        own = bool(self.validation)
        paths = self.validation if own and split == "validation" else self.paths
        files = source_files.find_files(paths, split, SUFFIXES)
        fraction, dropped = self.validation_fraction, Counter[str]()

        def read(name: str, path: remote.File) -> Iterator[tuple[str, str]]:
            letters = sequences(path, self.alphabet, dropped)
            wanted = (
                (f"{name}:{one}", piece)
                for one, piece in letters
                if own or (source_files.position(one) < fraction) == (split == "validation")
            )
            return words(wanted, self.words, 1 if self.overlapping else self.words) if self.words else wanted

        def all_of_them() -> Iterator[tuple[str, str]]:
            dropped.clear()
            for name, path in files:
                yield from read(name, path)

        share = 1.0 if own else fraction if split == "validation" else 1 - fraction
        times = (self.words + 1) / (1 if self.overlapping else self.words) if self.words else 1
        how = f"fasta {self.alphabet} {self.words} {self.overlapping} {own or (split, fraction)}"
        return sources.Documents(
            origin=f"the sequences of {', '.join(self.paths)} ({split})",
            read=all_of_them,
            identity=lambda: source_files.identity(files, how),
            nbytes=int(sum(remote.size(path) for _, path in files) * share * times),
            parts=lambda: [sources.Part(n, remote.size(p), functools.partial(read, n, p)) for n, p in files],
            dropped=dropped,
        )


def sequences(
    path: remote.File, alphabet: Alphabet = "protein", dropped: Counter[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yields (name, letters) of each sequence of a file, a long one in several pieces with its name.

    Args:
      path: a FASTA or FASTQ file, compressed or not; its first character says which.
      alphabet: the alphabet of the letters.
      dropped: counts the records without letters, which are skipped; None: they are not counted.

    Raises:
      InputError: another kind of file, or a letter that the alphabet lacks.
    """
    dropped = Counter() if dropped is None else dropped
    cleaned = functools.partial(_cleaned, path=path, alphabet=alphabet)
    text = text_files.pieces(path)
    first = next((piece for piece in text if piece.strip()), "")
    start = first.lstrip()[:1]
    if start not in (">", "@"):
        raise InputError(
            f"{path}: begins with {first.strip()[:20]!r}, so it is neither FASTA, whose records begin with >, nor "
            "FASTQ, whose records begin with @"
        )
    found = _fasta(path, cleaned) if start == ">" else _fastq(path, cleaned)
    name, empty = "", False
    for name, piece in found:
        if piece is None:  # a record begins
            dropped["records without a sequence"] += empty
            empty = True
        elif piece:
            empty = False
            yield name, piece
    if empty:
        dropped["records without a sequence"] += 1
    if not dropped["records without a sequence"]:
        del dropped["records without a sequence"]


def _fasta(path: remote.File, cleaned: functools.partial[str]) -> Iterator[tuple[str, str | None]]:
    """(name, None) where a record begins, then (name, letters) of at most PIECE letters."""
    name, line, inside_header, waiting = "", 1, False, ""
    for chunk in text_files.pieces(path):
        for number, part in enumerate(chunk.split("\n")):
            if number:
                line, inside_header = line + 1, False
            if inside_header:  # the rest of a header longer than a chunk
                continue
            if part.startswith(">"):
                if waiting:
                    yield name, waiting
                words_ = part[1:].split(maxsplit=1)
                name, waiting, inside_header = words_[0] if words_ else f"record at line {line}", "", True
                yield name, None
                continue
            if not (part := part.strip()):
                continue
            for start in range(0, len(part), PIECE):
                waiting += cleaned(part[start : start + PIECE], line=line)
                if len(waiting) >= PIECE:
                    yield name, waiting[:PIECE]
                    waiting = waiting[PIECE:]
    if waiting:
        yield name, waiting


def _fastq(path: remote.File, cleaned: functools.partial[str]) -> Iterator[tuple[str, str | None]]:
    lines = ((number, line) for number, line in enumerate(text_files.lines(path), 1))
    for number, header in lines:
        if not header.strip():
            continue
        letters, plus, quality = (next(lines, (number, ""))[1] for _ in range(3))
        if not header.startswith("@") or not plus.startswith("+") or len(quality) != len(letters):
            raise InputError(
                f"{path}:{number}: not a FASTQ record: a line @name, the sequence, a line with +, and as many "
                "qualities as letters; fetch the file again"
            )
        name = header[1:].split(maxsplit=1)
        yield name[0] if name else f"record at line {number}", None
        kept = cleaned(letters.strip(), line=number + 1)
        for start in range(0, len(kept), PIECE):
            yield name[0] if name else f"record at line {number}", kept[start : start + PIECE]


@functools.cache
def _other(alphabet: Alphabet) -> re.Pattern[str]:
    return re.compile(f"[^{re.escape(LETTERS[alphabet])}]")


def _cleaned(letters: str, *, path: remote.File, alphabet: Alphabet, line: int) -> str:
    letters = letters.upper()
    if wrong := _other(alphabet).search(letters):
        which = "a letter of DNA" if alphabet == "dna" else "a residue"
        raise InputError(f"{path}:{line}: {wrong[0]!r} is not {which} ({LETTERS[alphabet]}); mend the sequence")
    letters = letters.translate({ord(one): None for one in REMOVED[alphabet]})
    return letters.replace("U", "T") if alphabet == "dna" else letters


def words(pieces: Iterable[tuple[str, str]], k: int, step: int) -> Iterator[tuple[str, str]]:
    """Yields the pieces of sequences as words of `k` letters with spaces between: ATGC is "ATG TGC" for k = 3, step 1.

    A rest of fewer than k letters at the end of a sequence is written as single letters where words do not overlap, as
    in the Nucleotide Transformer.

    Args:
      pieces: (name, letters); consecutive ones of one name are one sequence.
      k: letters of a word.
      step: letters from the beginning of one word to that of the next: 1 or k.
    """
    name, rest, begun = "", "", False

    def end() -> Iterator[tuple[str, str]]:
        if rest and (step == k or not begun):
            yield name, " ".join(([" "] if begun else []) + list(rest))

    for one, letters in pieces:
        if one != name:
            yield from end()
            name, rest, begun = one, "", False
        rest += letters
        count = max(0, (len(rest) - k) // step + 1)
        if count:
            made = " ".join(rest[at : at + k] for at in range(0, count * step, step))
            yield name, f" {made}" if begun else made
            rest, begun = rest[count * step :], True
    yield from end()
