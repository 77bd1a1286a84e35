"""FASTA and FASTQ: read in pieces, within little memory, and refused in a line."""

import gzip
import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from transformer_jax.data import fasta, sources, tokenizers
from transformer_jax.errors import InputError

PROTEINS = ">a first\nMVLS\nPADK*\n\n>b\nGG-AA\n>none\n>c\nmk\n"


@pytest.mark.parametrize("name", ["p.fasta", "p.fa.gz"])
def test_records_compressed_or_not(tmp_path, name):
    data = PROTEINS.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    dropped = Counter()
    assert list(fasta.sequences(tmp_path / name, "protein", dropped)) == [("a", "MVLSPADK"), ("b", "GGAA"), ("c", "MK")]
    assert dropped == {"records without a sequence": 1}


def test_fastq(tmp_path):
    (tmp_path / "r.fq").write_text("@r1 x\nGATU\n+\n@III\n@r2\nNN\n+r2\nII\n")
    assert list(fasta.sequences(tmp_path / "r.fq", "dna")) == [("r1", "GATT"), ("r2", "NN")]
    (tmp_path / "r.fq").write_text("@r1 x\nGATT\n+\nIII\n")
    with pytest.raises(InputError, match=r"r.fq:1: not a FASTQ record.*as many qualities as letters"):
        list(fasta.sequences(tmp_path / "r.fq", "dna"))


@pytest.mark.parametrize(
    ("text", "alphabet", "message"),
    [
        (">a\nMV\nM1\n", "protein", r"p.fa:3: '1' is not a residue"),
        (">a\nACGT\nACE\n", "dna", r"p.fa:3: 'E' is not a letter of DNA"),
        ("MVLS\n", "protein", r"begins with 'MVLS', so it is neither FASTA"),
        ("", "protein", r"begins with ''"),
    ],
)
def test_bad_files_are_refused_in_a_line(tmp_path, text, alphabet, message):
    (tmp_path / "p.fa").write_text(text)
    with pytest.raises(InputError, match=message):
        list(fasta.sequences(tmp_path / "p.fa", alphabet))


@pytest.mark.parametrize("megabytes", [20, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_long_sequence_takes_little_memory(tmp_path, megabytes):
    """One line in a gzip file, and its letters all arrive."""
    with gzip.open(tmp_path / "g.fna.gz", "wb", compresslevel=1) as file:
        file.write(b">chromosome " + b"x" * 3_000_000 + b"\n")
        for _ in range(megabytes):
            file.write(b"ACGT" * 250_000)
    tracemalloc.start()
    try:
        total, longest = 0, 0
        for name, piece in fasta.sequences(tmp_path / "g.fna.gz", "dna"):
            assert name == "chromosome"
            total, longest = total + len(piece), max(longest, len(piece))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == megabytes * 1_000_000 and longest == fasta.PIECE
    assert peak < 20_000_000


@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 5, 9)])
def test_words_do_not_depend_on_the_pieces(cuts):
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("ACGT"), 11))
    parts = [text[a:b] for a, b in itertools.pairwise((0, *cuts, 11))]
    pieces = [("s", part) for part in parts] + [("t", "AC")]
    overlapping = list(fasta.words(pieces, 3, 1))
    assert "".join(piece for name, piece in overlapping if name == "s").split() == [text[i : i + 3] for i in range(9)]
    assert "".join(piece for name, piece in overlapping if name == "t").split() == ["A", "C"]
    apart = "".join(piece for name, piece in fasta.words(pieces, 3, 3) if name == "s").split()
    assert apart == [text[:3], text[3:6], text[6:9], text[9], text[10]]


def test_the_two_sides_are_the_whole_and_tokenizers_know_the_letters(tmp_path):
    (tmp_path / "p.fa").write_text("".join(f">s{i}\nMVLSX\n" for i in range(60)))
    source = fasta.Fasta((str(tmp_path),), validation_fraction=0.3)
    sides = [dict(sources.whole(source.documents(split))) for split in ("train", "validation")]
    assert len(sides[0]) + len(sides[1]) == 60 and 5 < len(sides[1]) < 35
    esm = tokenizers.Residues().build([])
    assert (esm.vocab_size, esm.encode("MVLSX").tolist()) == (33, [20, 7, 4, 8, 24])
    assert (esm.special.cls, esm.special.pad, esm.special.sep, esm.special.mask) == (0, 1, 2, 32)
    assert esm.encode_prompt("M<mask>L").tolist() == [20, 32, 4]
    dna = tokenizers.Kmers(3).build([])
    assert dna.vocab_size == 5 + 64 + 5
    assert dna.decode(dna.encode("ATGTGC")).replace(" ", "") == "ATGTGC" and len(dna.encode("ATGTGC")) == 2
    assert len(dna.encode("ATG TGT GTG TGC")) == 4
    dna.save(tmp_path / "saved")
    assert tokenizers.load(tmp_path / "saved").encode("ATG A").tolist() == dna.encode("ATG A").tolist()
