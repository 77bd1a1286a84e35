"""Pictures as codes: each patch is the number of the nearest of K patches, found by k-means.

    found = codes.fit(pictures_NYXC, patch=4, num_codes=256)
    numbers_NS = codes.encode(pictures_NYXC, found)        # a picture of 32 x 32 pixels has 8 x 8 codes, row by row
    seen_NYXC = codes.decode(numbers_NS, found)

With patches of one pixel the codebook is a palette, as in Image GPT (Chen et al. 2020).

N pictures, Y and X pixels, C channels, S codes of a picture, K codes in all, P numbers of a patch.
"""

import functools
import hashlib
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transformer_jax import extras, files
from transformer_jax.errors import InputError

FITTED = 200_000  # patches that k-means reads
ROWS = 65_536  # patches that are compared with the codebook at a time
FILE = "codes.npz"
MOST_BYTES = 2**28  # the largest codebook file


@dataclass(frozen=True, eq=False)
class Codebook:
    """K patches.

    Attributes:
      patches_KP: float32, pixels in [0, 1]; row by row, the channels of a pixel together.
      patch: pixels of a patch's side.
      size: pixels of a picture's side.
    """

    patches_KP: np.ndarray
    patch: int
    size: int

    @property
    def num_codes(self) -> int:
        """K, the number of different codes."""
        return len(self.patches_KP)

    @property
    def length(self) -> int:
        """S, the number of codes of a picture."""
        return (self.size // self.patch) ** 2

    @property
    def channels(self) -> int:
        """C, the number of channels of a pixel."""
        return self.patches_KP.shape[1] // self.patch**2

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides how a picture is encoded."""
        return hashlib.sha256(f"{self.patch} {self.size} ".encode() + self.patches_KP.tobytes()).hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the codebook into a folder that exists.

        Args:
          folder: where FILE is written.
        """
        np.savez(Path(folder) / FILE, patches=self.patches_KP, patch=self.patch, size=self.size)


def load(folder: str | os.PathLike[str]) -> Codebook:
    """The codebook that `Codebook.save` wrote.

    Args:
      folder: it holds FILE.

    Raises:
      InputError: no such file, or a broken one.
    """
    path = Path(folder) / FILE
    try:
        with np.load(io.BytesIO(files.read(path, MOST_BYTES, inside=path.parent)), allow_pickle=False) as read:
            found = Codebook(read["patches"], int(read["patch"]), int(read["size"]))
        shapes = found.patches_KP.ndim == 2 and found.patches_KP.dtype == np.float32 and found.patch >= 1
        if shapes and found.size % found.patch == 0 and found.channels * found.patch**2 == found.patches_KP.shape[1]:
            return found
        reason = f"patches {found.patches_KP.shape} of side {found.patch} in pictures of side {found.size}"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error) or type(error).__name__
    raise InputError(f"{path} is no codebook ({reason}); restore the file, or train again in a new folder")


def split(pictures_NYXC: np.ndarray, patch: int) -> np.ndarray:
    """The patches [N, S, P] of pictures, row by row, in the dtype of the pictures.

    Args:
      pictures_NYXC: pictures [N, Y, X, C] whose sides `patch` divides.
      patch: pixels of a side.
    """
    N, Y, X, C = pictures_NYXC.shape
    cells = pictures_NYXC.reshape(N, Y // patch, patch, X // patch, patch, C).swapaxes(2, 3)
    return cells.reshape(N, (Y // patch) * (X // patch), patch * patch * C)


def join(patches_NSP: np.ndarray, patch: int, size: int) -> np.ndarray:
    """The pictures [N, size, size, C] of patches: the inverse of `split`.

    Args:
      patches_NSP: all patches of each picture.
      patch: pixels of a patch's side.
      size: pixels of a picture's side.
    """
    N, side = len(patches_NSP), size // patch
    return patches_NSP.reshape(N, side, side, patch, patch, -1).swapaxes(2, 3).reshape(N, size, size, -1)


def fit(pictures_NYXC: np.ndarray, patch: int, num_codes: int) -> Codebook:
    """The codebook of pictures: the centres that k-means finds of their patches, the same for the same pictures.

    Args:
      pictures_NYXC: uint8, square.
      patch: pixels of a patch's side.
      num_codes: K.

    Raises:
      InputError: fewer different patches than codes.
    """
    extras.need("sklearn", "k-means of patches")
    from sklearn.cluster import MiniBatchKMeans

    size = pictures_NYXC.shape[1]
    patches = split(pictures_NYXC, patch)
    patches = patches.reshape(-1, patches.shape[-1])
    if len(patches) > FITTED:
        patches = patches[np.random.default_rng(0).choice(len(patches), FITTED, replace=False)]
    if (different := len(np.unique(patches, axis=0))) < num_codes:
        raise InputError(
            f"the training pictures have {different} different patches of {patch} x {patch} pixels, fewer than "
            f"codes.num_codes = {num_codes}; ask for fewer codes"
        )
    means = MiniBatchKMeans(num_codes, random_state=0, batch_size=4096, n_init=1, max_iter=20)
    means.fit(patches.astype(np.float32) / 255.0)
    return Codebook(np.ascontiguousarray(means.cluster_centers_, np.float32), patch, size)


def encode(pictures_NYXC: np.ndarray, codebook: Codebook) -> np.ndarray:
    """The codes int32 [N, S] of pictures: of each patch the nearest code, by squared distance; of equals the first.

    Args:
      pictures_NYXC: uint8 [N, size, size, C].
      codebook: the patches.
    """
    patches = split(pictures_NYXC, codebook.patch)
    flat, centres_KP = patches.reshape(-1, patches.shape[-1]), codebook.patches_KP
    offset_K = np.square(centres_KP).sum(1)
    found = np.empty(len(flat), np.int32)
    for first in range(0, len(flat), ROWS):
        part = flat[first : first + ROWS].astype(np.float32) / 255.0
        found[first : first + ROWS] = np.argmin(offset_K - 2 * part @ centres_KP.T, axis=1)
    return found.reshape(patches.shape[:2])


def decode(codes_NS: np.ndarray, codebook: Codebook) -> np.ndarray:
    """The pictures uint8 [N, size, size, C] of codes.

    Args:
      codes_NS: integers in [0, K).
      codebook: the patches.
    """
    pixels = np.clip(np.rint(codebook.patches_KP * 255.0), 0, 255).astype(np.uint8)
    return join(pixels[np.asarray(codes_NS)], codebook.patch, codebook.size)
