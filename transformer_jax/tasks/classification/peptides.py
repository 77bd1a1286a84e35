"""A small set of proteins: peptides that kill microbes and others, as modlAMP ships them (Müller et al. 2017, BSD)."""

import csv
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from transformer_jax import extras
from transformer_jax.data import source_files, sources, tables
from transformer_jax.data.tables import Row, Rows, Side
from transformer_jax.errors import InputError

PACKAGE, FILE = "modlamp", "modlamp/data/AMPvsUniProt.csv"
NAMES = ("other", "antimicrobial")
INSTALL = "pip install --no-deps modlamp==4.3.3"


@dataclass(frozen=True)
class Peptides:
    """The peptides of AMPvsUniProt.csv, labelled "antimicrobial" or "other". modlAMP is read as data, never imported.

    A peptide that is there twice counts once, and one with both labels not at all. A hash of the sequence gives a fifth
    to the test and a twelfth to the validation set, so the split is the same everywhere.
    """

    pairs = False
    has_test = True

    def of_files(self, files: tuple[str, ...]) -> tables.Table:
        return tables.Table(files, files)

    def rows(self, side: Side) -> Rows:
        """The peptides of a side.

        Args:
          side: "train", "validation" or "test".
        """
        held = [Row(letters, None, NAMES[label], where) for letters, label, where in _read() if _side(letters) == side]
        return Rows(f"{FILE} of {PACKAGE} ({side})", held)

    def documents(self, split: sources.Split) -> sources.Documents:
        """The same peptides without labels, for masked language modelling; those of the test are not among them.

        Args:
          split: "train" or "validation".
        """
        return sources.in_memory([(row.where, row.text) for row in self.rows(split)], f"{FILE} of {PACKAGE} ({split})")

    def baselines(self) -> dict[str, float]:
        """What a logistic regression on the counts of 1 to 3 residues in a row reaches on the test set."""
        extras.need("sklearn", "the baseline of peptides")
        from sklearn import feature_extraction, linear_model, metrics, pipeline, preprocessing

        train, test = self.rows("train"), self.rows("test")
        counts = feature_extraction.text.CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False)
        model = pipeline.make_pipeline(
            counts, preprocessing.MaxAbsScaler(), linear_model.LogisticRegression(max_iter=2000)
        )
        model.fit([row.text for row in train], [row.label == NAMES[1] for row in train])
        wanted, scores = [row.label == NAMES[1] for row in test], model.predict_proba([row.text for row in test])[:, 1]
        return {
            "baseline_roc_auc_of_1_to_3_mers": float(metrics.roc_auc_score(wanted, scores)),
            "baseline_accuracy_of_1_to_3_mers": float(((scores > 0.5) == wanted).mean()),
        }


def _side(letters: str) -> Side:
    at = source_files.position(letters)
    return "test" if at < 0.2 else "validation" if at < 0.28 else "train"


def _read() -> list[tuple[str, int, str]]:
    """(letters, label, where) of each peptide with one label."""
    try:
        path = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(FILE)))
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"the peptides are a file of the package {PACKAGE}, which is not installed: {INSTALL}"
        ) from None
    if not path.is_file():
        raise InputError(f"{path} is not there; install the version whose file it is: {INSTALL}")
    found: dict[str, tuple[int, str]] = {}
    both: set[str] = set()
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows)  # the numbers of rows and columns, and the names of the classes 0 and 1
        for number, row in enumerate(rows, 2):
            if len(row) != 2 or row[1].strip() not in ("0", "1") or not row[0].strip().isalpha():
                raise InputError(f"{path}:{number}: {row!r} is not a peptide and 0 or 1; install it again: {INSTALL}")
            letters, label = row[0].strip().upper(), int(row[1])
            if found.setdefault(letters, (label, f"{path.name}:{number}"))[0] != label:
                both.add(letters)
    return [(letters, *one) for letters, one in found.items() if letters not in both]
