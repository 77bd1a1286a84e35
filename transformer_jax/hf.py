"""Files of the Hugging Face Hub by name: `hf://org/name@revision`.

    hf.local("hf://org/name")                          # a model's folder, with only the files that are read here
    hf.local("hf://org/name@v2/last")                  # a folder in the repository, at a tag, a branch or a commit
    hf.local("hf://datasets/org/name/data/*.csv")      # files of a data set, for the caller to expand
    hf.pin("hf://org/name")                            # "hf://org/name@4ab9...": the commit that a run stores

huggingface_hub downloads into its own cache, and its settings hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
A download that breaks off is resumed. A file whose digest is not the one that the server states is deleted and refused.
"""

import contextlib
import dataclasses
import fnmatch
import glob
import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax import extras
from transformer_jax.errors import InputError

SCHEME = "hf://"
TOKENIZER = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.spm", "chat_template.*"),
)
_SETTINGS = (
    "generation_config.json",
    "*processor_config.json",
    "modules.json",
    "*sentence*.json",
    "adapter_config.json",
)
_MODULES = ("[0-9]*_*/*.json", "[0-9]*_*/*.safetensors")  # sentence-transformers: 1_Pooling/config.json, ...
_WEIGHTS = ("model.safetensors*", "model-*.safetensors", "adapter_model.safetensors")
MODEL = (*TOKENIZER, *_SETTINGS, *_MODULES, *_WEIGHTS)
_TORCH = ("pytorch_model*.bin*", "adapter_model.bin")  # only where there are no safetensors

_NAME = re.compile(
    r"hf://(?:(?P<kind>datasets|models)/)?(?P<repository>(?!(?:datasets|models|spaces|buckets|kernels)/)[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:convert/[\w.-]+|pr/\d+)|[^/@]+))?(?:/(?P<path>.*))?"
)
_COMMIT = re.compile("[0-9a-f]{40}")


class Name(NamedTuple):
    """The parts of `hf://[datasets/]org/name[@revision][/path]`.

    Attributes:
      kind: "model" or "dataset".
      repository: "org/name".
      revision: a branch, a tag or a commit; None: the newest commit.
      path: the path of a file, a folder or a pattern in the repository; "": the whole repository.
    """

    kind: str
    repository: str
    revision: str | None
    path: str

    @property
    def page(self) -> str:
        """Its page on the Hub: "org/name" or "datasets/org/name"."""
        return f"datasets/{self.repository}" if self.kind == "dataset" else self.repository

    def __str__(self) -> str:
        revision = self.revision or ""
        if not revision.startswith("refs/"):
            revision = revision.replace("/", "%2F")
        return f"{SCHEME}{self.page}" + (f"@{revision}" if revision else "") + (f"/{self.path}" if self.path else "")


def named(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a name on the Hub."""
    return os.fspath(path).startswith(SCHEME)


def parse(name: str | os.PathLike[str]) -> Name:
    """The parts of a name.

    Args:
      name: "hf://org/name@revision/path"; a "/" in a branch's name is written %2F, as huggingface_hub does.

    Raises:
      InputError: it is not one.
    """
    text = os.fspath(name)
    found = _NAME.fullmatch(text.rstrip("/"))
    path = "" if found is None else found["path"] or ""
    if found is None or {"", ".", ".."} & set(path.split("/") if path else ()):
        raise InputError(
            f"{text} is not the name of anything on the Hub; write hf://ORGANISATION/NAME@REVISION for a model, or "
            "hf://datasets/ORGANISATION/NAME@REVISION/FILE"
        )
    kind = "dataset" if found["kind"] == "datasets" else "model"
    revision = found["revision"]
    return Name(kind, found["repository"], revision.replace("%2F", "/") if revision else None, path)


def local(name: str | os.PathLike[str], wanted: Sequence[str] = MODEL, *, verify: bool = True) -> Path:
    """The path of a downloaded folder, file or pattern in the cache of huggingface_hub.

    Args:
      name: "hf://org/name@revision", "hf://datasets/org/name/train.csv", ... A pattern is returned as a pattern.
      wanted: patterns of the files of a model to download, such as `TOKENIZER`. A data set, and a path that names a
        file, is downloaded as it is named.
      verify: compare the digests of the files with those that the server stated, also of files that were in the cache.

    Raises:
      InputError: no network, an unknown repository, revision or file, a missing token, a download that broke off, a
        wrong digest, or HF_HUB_OFFLINE for what is not in the cache.
    """
    parts = parse(name)
    if parts.kind == "dataset":
        patterns = [parts.path, f"{parts.path}/*"] if parts.path else ["*"]
    else:
        prefix = f"{parts.path}/" if parts.path else ""
        patterns = [*([parts.path] if parts.path else []), *(prefix + pattern for pattern in wanted)]
    folder = _download(parts, patterns)
    pinned = parts._replace(revision=folder.name)
    path = folder / parts.path
    if parts.kind == "model" and set(_WEIGHTS) & set(wanted) and path.is_dir() and not any(path.glob("*.safetensors")):
        torch = [os.path.join(parts.path, pattern) for pattern in _TORCH]
        _download(pinned, torch)
        patterns += torch
    if not glob.glob(str(path), recursive=True):
        what = parts.path or "file of a model"
        raise InputError(f"{os.fspath(name)}: {parts.page} has no {what} at commit {folder.name}")
    if verify:
        _verify(folder, patterns, pinned)
    return path


def here(path: str | os.PathLike[str], wanted: Sequence[str] = MODEL) -> Path:
    """A path of this machine; of a name on the Hub, what was downloaded.

    Args:
      path: a local path, or a name.
      wanted: as for `local`.
    """
    return local(path, wanted) if named(path) else Path(path).expanduser()


def pin(name: str) -> str:
    """A name with the commit that its revision is now, so that it means the same files for ever.

    Args:
      name: "hf://org/name", which becomes "hf://org/name@4ab9...".

    Raises:
      InputError: as `local`.
    """
    parts = parse(name)
    if parts.revision and _COMMIT.fullmatch(parts.revision):
        return name
    return str(parts._replace(revision=_download(parts, []).name))


def pinned(value: Any, stored: Any = None, pin: Callable[[str], str] = pin) -> Any:
    """A value of nested dataclasses and tuples with every name on the Hub pinned to a commit.

    Args:
      value: the experiment.
      stored: the same experiment as it was pinned before. A name without a revision keeps that commit.
      pin: name -> name with a commit.

    Raises:
      InputError: as `local`.
    """
    if isinstance(value, str):
        if not named(value):
            return value
        if isinstance(stored, str) and named(stored) and parse(stored)._replace(revision=None) == parse(value):
            return stored
        return pin(value)
    if isinstance(value, tuple):
        before = stored if isinstance(stored, tuple) and len(stored) == len(value) else (None,) * len(value)
        each = [pinned(one, old, pin) for one, old in zip(value, before, strict=True)]
        return type(value)(*each) if hasattr(value, "_fields") else tuple(each)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        one = getattr(value, field.name)
        new = pinned(one, getattr(stored, field.name, None), pin)
        if field.init and new != one:
            changed[field.name] = new
    return dataclasses.replace(value, **changed) if changed else value


def _download(name: Name, patterns: Sequence[str]) -> Path:
    """The folder of a repository's commit in the cache, with the files of these patterns."""
    extras.need("huggingface_hub", str(name))
    import huggingface_hub

    with explained(str(name), name.page, name.revision), quiet(progress=bool(patterns)):
        folder = huggingface_hub.snapshot_download(
            name.repository, repo_type=name.kind, revision=name.revision, allow_patterns=list(patterns)
        )
    return Path(folder)


@contextlib.contextmanager
def quiet(*, progress: bool) -> Iterator[None]:
    """Keeps the warnings of huggingface_hub from the terminal, and its bars from what is no terminal.

    Args:
      progress: show bars on a terminal.
    """
    extras.need("huggingface_hub", SCHEME)
    from huggingface_hub import utils

    logger, shown = logging.getLogger("huggingface_hub"), not utils.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    hidden = shown and not (progress and sys.stderr.isatty())
    if hidden:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if hidden:
            utils.enable_progress_bars()


# -------------------------------------------------------------------------------------------------------------- digests


def _verify(folder: Path, patterns: Sequence[str], name: Name) -> None:
    """Refuses and deletes a file that does not have the digest that the server stated.

    The cache keeps a file under its digest, blobs/DIGEST, and a snapshot has links to these: the SHA-256 of large files
    (Git LFS), Git's SHA-1 of the others. Mirrors of the Hub state other tags, which are not compared.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if not path.is_file() or not any(fnmatch.fnmatch(inside, pattern) for pattern in patterns):
            continue
        blob = Path(os.path.realpath(path))
        if blob.parent.name != "blobs" or _has_digest(blob):
            continue
        with contextlib.suppress(OSError):  # a cache that is read-only
            path.unlink()
            blob.unlink()
        raise InputError(
            f"{name._replace(path=inside)} does not have the digest that the server states, {blob.name[:16]}...; the "
            "file was deleted from the cache; give the command again"
        )


def _has_digest(blob: Path) -> bool:
    stated = blob.name
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stated):
        return True
    if len(stated) == 64:
        with blob.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == stated
    content = blob.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return stated in (git.hexdigest(), hashlib.sha1(content, usedforsecurity=False).hexdigest())


# --------------------------------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def explained(what: str, page: str, revision: str | None = None) -> Iterator[None]:
    """Reports what huggingface_hub raises in one line.

    Args:
      what: begins the line.
      page: the page of the repository, "org/name" or "datasets/org/name".
      revision: that was asked for.

    Raises:
      InputError: in place of an exception of huggingface_hub.
    """
    try:
        yield
    except Exception as error:
        if (reason := _why(error, page, revision)) is None:
            raise
        raise InputError(f"{what}: {reason}") from error


def _why(error: BaseException, page: str, revision: str | None) -> str | None:
    """What went wrong and the fix; None for an exception of another library."""
    extras.need("huggingface_hub", SCHEME)
    from huggingface_hub import constants, errors

    server = constants.ENDPOINT
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)

    def is_a(*kinds: Any) -> Any:
        return next((one for one in chain if isinstance(one, kinds)), None)

    if is_a(errors.GatedRepoError):
        return f"{page} is gated; accept its terms at {server}/{page}, and log in: hf auth login, or HF_TOKEN"
    if is_a(errors.RepositoryNotFoundError):
        return f"{server} has no repository {page}, or it is private; check the name, or log in: hf auth login"
    if is_a(errors.RevisionNotFoundError):
        return f"{page} has no branch, tag or commit {revision!r}"
    if is_a(errors.OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and is_a(errors.LocalEntryNotFoundError)):
        return f"it is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; unset it to download"
    refused = is_a(errors.HfHubHTTPError)
    if refused is not None and refused.response is not None:
        status, url = refused.response.status_code, str(refused.response.url).partition("?")[0]
        if status == 404:
            return f"{server} lists {url.rpartition('/')[2]} but does not have it ({url}); ask the repository's owner"
        if status in (401, 403):
            return (
                f"{server} refuses it (status {status}); log in with a token that allows it: hf auth login, or HF_TOKEN"
            )
        return f"{server} answers with status {status}; try again later"
    rooms = {one: {kind.__module__.partition(".")[0] for kind in type(one).__mro__} for one in chain}
    lost = next((one for one in chain if rooms[one] & {"httpx", "httpx2", "requests"}), None)
    if lost is not None and "Connect" in type(lost).__name__:
        return f"{server} cannot be reached ({_line(lost)}), and it is not in the cache {constants.HF_HUB_CACHE}"
    if lost is not None or "onsistency check" in str(error):
        return f"the download broke off ({_line(lost or error)}); give the command again"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or constants.HF_HUB_CACHE}: {error.strerror}; HF_HOME chooses another cache"
    return f"it is not in the cache {constants.HF_HUB_CACHE}" if is_a(errors.LocalEntryNotFoundError) else None


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
