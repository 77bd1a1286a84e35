"""A data set that pip installs: 15,510 pictures with names, drawn from the icon fonts of the package qtawesome.

The fonts are Material Design Icons and Remix Icon (Apache 2.0), Phosphor (MIT) and Font Awesome 6 (OFL). They are read
as the package's data: the package itself, which needs Qt, is not imported.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformer_jax import extras
from transformer_jax.data import source_files
from transformer_jax.tasks.contrastive.paired import Pair, Pairs, Side, Source, Table

FONTS = ("materialdesignicons6-webfont", "phosphor", "remixicon", "fontawesome6-solid-webfont")
STYLES = frozenset(["outline", "fill", "line", "bold", "light", "thin", "variant", "box", "circle"])
HELD_OUT = 710  # stems, a tenth
NEIGHBOURS = 20  # pictures whose names the baseline weighs


@dataclass(frozen=True)
class Icons(Source):
    """Pictures of an icon's glyph, white on black, and its name as words: "arrow left bold".

    The stem of a name is what is left without the words of its style ("outline", "fill", "circle", ...) and without
    numbers at its end. A tenth of the stems are held out with all their pictures. Of each, one pair is in the
    validation set: 710 pictures, 710 names, none of whose stems was seen in training.
    """

    size: int = 32
    """Pixels of a side."""

    def of_files(self, files: tuple[str, ...]) -> Table:
        return Table(files, files, pictures=".")

    @property
    def images(self) -> bool:
        """Whether left sides are pictures."""
        return True

    def pairs(self, side: Side) -> Pairs:
        """The pairs of a side.

        Args:
          side: "train" or "validation".
        """
        folder = fonts()
        glyphs = [(font, name, code) for font in FONTS for name, code in sorted(_codes(folder, font).items())]
        stems = sorted({stem(name) for _, name, _ in glyphs}, key=source_files.position)
        held_out = set(stems[:HELD_OUT])
        if side == "train":
            chosen = [glyph for glyph in glyphs if stem(glyph[1]) not in held_out]
        else:  # for each stem, the name with the fewest words of style
            plainest: dict[str, tuple[str, str, int]] = {}
            for glyph in sorted(glyphs, key=lambda glyph: (len(glyph[1]), FONTS.index(glyph[0]))):
                plainest.setdefault(stem(glyph[1]), glyph)
            chosen = [plainest[one] for one in stems[:HELD_OUT]]
        drawn = {font: _drawn(folder, font, [c for f, _, c in chosen if f == font], self.size) for font in FONTS}
        held = [Pair(drawn[font][code], " ".join(name.split("-")), (), f"{font}:{name}") for font, name, code in chosen]
        return Pairs(f"icons ({side})", held)

    def baselines(self, train: Pairs, validation: Pairs) -> dict[str, float]:
        """The recall of the names that share the most words with the 20 nearest training pictures, pixel by pixel.

        A word counts by the square of its inverse document frequency and by how near its picture is.

        Args:
          train: the training pairs.
          validation: the validation pairs.
        """
        seen, held = (np.stack([np.asarray(pair.left) for pair in pairs.held]) for pairs in (train, validation))
        seen_NP, held_EP = (x.reshape(len(x), -1).astype(np.float32) / 255.0 for x in (seen, held))
        near_EN = 2 * held_EP @ seen_NP.T - np.square(seen_NP).sum(1)  # minus the squared distance, up to a constant
        best_EK = np.argpartition(-near_EN, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        near_EK = np.take_along_axis(near_EN, best_EK, axis=1)
        least_E1, most_E1 = near_EK.min(1, keepdims=True), near_EK.max(1, keepdims=True)
        weight_EK = (near_EK - least_E1) / np.maximum(most_E1 - least_E1, 1e-9) + 0.1
        words = {word: i for i, word in enumerate(dict.fromkeys(w for p in validation.held for w in p.right.split()))}

        def bags(pairs: Pairs) -> np.ndarray:
            bag = np.zeros((len(pairs.held), len(words)), np.float32)
            for row, pair in zip(bag, pairs.held, strict=True):
                row[[words[w] for w in pair.right.split() if w in words]] = 1
            return bag

        seen_NW, names_EW = bags(train), bags(validation)
        names_EW *= np.square(np.log(len(seen_NW) / (1 + seen_NW.sum(0))))
        names_EW /= np.sqrt(names_EW.sum(1, keepdims=True))
        found_EW = np.stack([weight @ seen_NW[rows] for weight, rows in zip(weight_EK, best_EK, strict=True)])
        scores_EE = found_EW @ names_EW.T
        own_E1 = np.diagonal(scores_EE)[:, None]
        rank_E = (scores_EE >= own_E1).sum(1)
        return {f"baseline_recall_at_{k}_words_of_{NEIGHBOURS}_nearest": float((rank_E <= k).mean()) for k in (1, 10)}


def stem(name: str) -> str:
    """The words of `name`, "arrow-left-bold-outline", without those of its style and numbers at its end."""
    words = name.split("-")
    while len(words) > 1 and (words[-1] in STYLES or words[-1].isdigit()):
        words = words[:-1]
    return "-".join(words)


def fonts() -> Path:
    """The folder of the fonts.

    Raises:
      InputError: qtawesome is not installed.
    """
    extras.need("qtawesome", "the icons", extra="vision")
    spec = importlib.util.find_spec("qtawesome")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "fonts"


def _codes(folder: Path, font: str) -> dict[str, int]:
    """{name: code point} of a font."""
    (path,) = folder.glob(f"{font}-charmap-*.json")
    return {name: int(code, 16) for name, code in json.loads(path.read_text()).items()}


def _drawn(folder: Path, font: str, codes: list[int], size: int) -> dict[int, np.ndarray]:
    """{code point: its glyph, uint8 [size, size]}, centred, as large as fits."""
    extras.need("PIL", "the icons")
    from PIL import Image, ImageDraw, ImageFont

    (path,) = (path for path in folder.glob(f"{font}-*.ttf"))
    face = ImageFont.truetype(str(path), size - 4)
    drawn = {}
    for code in codes:
        image = Image.new("L", (size, size))
        ImageDraw.Draw(image).text((size / 2, size / 2), chr(code), fill=255, font=face, anchor="mm")
        drawn[code] = np.asarray(image)
    return drawn
