"""Builds a `tokenizers.Tokenizer` from the files of a folder: vocabulary, pipeline of the class, added tokens."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer_jax.data.tokenizers import classes, limits, sentencepiece, special
from transformer_jax.data.tokenizers.classes import CLASSES, Parts, TokenizerClass
from transformer_jax.errors import InputError

# ---- Vocabulary ----------------------------------------------------------------------------------------------------


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """The object in a tokenizer.json.

    Args:
      path: the file.

    Raises:
      InputError: not a tokenizer, or one that would crash the library or fill the memory.
    """
    settings = special.read_json(path)
    limits.refuse_exploding(settings, path)
    model, added = settings.get("model"), settings.get("added_tokens")
    if not isinstance(model, dict):
        raise InputError(f"{path}: not a tokenizer of the tokenizers library (it has no model)")
    for token in added if isinstance(added, list) else [added] if added else []:
        if not isinstance(token, dict) or type(token.get("id")) is not int:
            raise InputError(f"{path}: added_tokens has {json.dumps(token)[:80]}, not a token with its id")
    vocabulary = model.get("vocab")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    refuse_far_ids(ids + [token["id"] for token in added or ()], path)
    return settings


def refuse_far_ids(ids: Sequence[Any], path: Path) -> None:
    """Refuses ids far beyond the number of tokens: the library allocates memory up to the highest id.

    Args:
      ids: the token ids of the vocabulary.
      path: names the file in the message.

    Raises:
      InputError: an id is too large.
    """
    highest = max((id for id in ids if isinstance(id, int)), default=0)
    if highest > 4 * len(ids) + 10_000:
        raise InputError(f"{path}: {len(ids):,} tokens have ids up to {highest:,}; ids must number the tokens from 0")


def parts(
    folder: Path,
    described: Mapping[str, Any] | None,
    made: TokenizerClass | None,
    roles: Mapping[str, str],
    settings: Mapping[str, Any],
) -> tuple[Parts, sentencepiece.Model | None]:
    """(vocabulary, SentencePiece model or None) from tokenizer.json or from the files of the class.

    Args:
      folder: the folder of the tokenizer.
      described: the object in tokenizer.json; None: there is none.
      made: the class; None: an unknown one.
      roles: the special tokens, spelled.
      settings: the settings of tokenizer_config.json.

    Raises:
      InputError: no vocabulary, or one that does not suit the class.
    """
    if described is not None:
        model = described["model"]
        vocabulary = model.get("vocab")
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or ()]
        if isinstance(vocabulary, list):
            vocabulary = [(str(piece), float(score)) for piece, score in vocabulary]
        return Parts(vocabulary, [(left, right) for left, right in pairs], _charsmap(described)), None
    if (folder / "vocab.txt").is_file() and (made is None or made.vocabulary == "vocab.txt"):
        return Parts(_vocab_txt(folder / "vocab.txt", roles)), None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _vocab_and_merges(folder), None
    file = next((folder / name for name in sentencepiece.FILES if (folder / name).is_file()), None)
    if file is None:
        wanted = "tokenizer.json, vocab.txt, vocab.json and merges.txt, or a SentencePiece model"
        raise InputError(
            f"no tokenizer at {folder}: it has neither tokenizer.json nor {made.vocabulary if made else wanted}"
        )
    model = sentencepiece.read(special.read_bytes(file), file)
    limits.refuse_growth(limits.longest(model.charsmap), file)
    if model.kind == sentencepiece.BPE:
        ids = {piece.spelling: id for id, piece in enumerate(model.pieces)}
        return Parts(ids, sentencepiece.merges(model), model.charsmap), model
    pieces = [(piece.spelling, piece.score) for piece in model.pieces]
    if made is not None:
        _check_order(made, model, file)
        pieces = made.from_pieces(pieces, settings, roles)
    return Parts(pieces, (), model.charsmap, model.unknown), model


def _check_order(made: TokenizerClass, model: sentencepiece.Model, file: Path) -> None:
    """Refuses the file of another model, because the class would shift its ids."""
    first = [piece.spelling for piece in model.pieces[:3]]
    if made.vocabulary == "sentencepiece.bpe.model" and made.roles.get("mask") == "<mask>" and first[0] != "<unk>":
        raise InputError(f"{file} does not begin with <unk>, so it does not belong to its tokenizer_class")
    taken = {piece.spelling for piece in model.pieces} & {"<pad>", *made.extra({"extra_ids": 0}), "<mask>"}
    if made in (CLASSES["MBartTokenizer"], CLASSES["MBart50Tokenizer"]) and taken:
        raise InputError(f"{file} holds {', '.join(sorted(taken))} itself, so it is not mBART's; save tokenizer.json")
    if made in (CLASSES["MBartTokenizer"], CLASSES["MBart50Tokenizer"]) and first != ["<unk>", "<s>", "</s>"]:
        raise InputError(f"{file} does not begin with <unk> <s> </s>, so it is not mBART's")


def _vocab_txt(file: Path, roles: Mapping[str, str]) -> dict[str, int]:
    """BERT's WordPiece: one token per line; its id is the number of the line, from 0."""
    try:
        lines = special.read_bytes(file).decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error})") from None
    lines = [line.removesuffix("\r") for line in lines]
    if (unknown := roles.get("unk", "[UNK]")) not in lines:
        raise InputError(f"{file}: {unknown} is not among its {len(lines)} lines, so it is not a WordPiece vocabulary")
    return {token: id for id, token in enumerate(lines)}


def _vocab_and_merges(folder: Path) -> Parts:
    """The two files of GPT-2 and RoBERTa: vocab.json and merges.txt."""
    from tokenizers import models

    refuse_far_ids(list(special.read_json(folder / "vocab.json").values()), folder / "vocab.json")
    special.read_bytes(folder / "merges.txt")
    try:
        vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{folder}: vocab.json and merges.txt are not a BPE ({error})") from None
    return Parts(vocabulary, merges)


def _charsmap(described: Mapping[str, Any]) -> bytes:
    """SentencePiece's character map in the normaliser of a tokenizer.json; b"": there is none."""
    normalizer = described.get("normalizer") or {}
    steps = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else [normalizer]
    return next(
        (base64.b64decode(s["precompiled_charsmap"]) for s in steps or () if s.get("precompiled_charsmap")), b""
    )


# ---- Assembly ------------------------------------------------------------------------------------------------------


def library(file: Path) -> Any:
    """The library's tokenizer of a tokenizer.json.

    Args:
      file: the tokenizer.json.

    Raises:
      InputError: the library cannot read it.
    """
    from tokenizers import Tokenizer

    try:
        with limits.outlasting():
            return Tokenizer.from_buffer(special.read_bytes(file))
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{file}: not a tokenizer of the tokenizers library ({error})") from None


def beside_vocabulary(described: Mapping[str, Any]) -> Any:
    """The library's tokenizer of a tokenizer.json without its vocabulary, for its other parts.

    Args:
      described: the object in tokenizer.json.
    """
    from tokenizers import Tokenizer

    bare = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({**described, "model": bare, "added_tokens": []}))


def build(
    made: TokenizerClass | None,
    parts: Parts,
    model: sentencepiece.Model | None,
    settings: Mapping[str, Any],
    roles: Mapping[str, str],
    folder: Path,
) -> Any:
    """The library's tokenizer of a class, without added tokens.

    Args:
      made: the class; None: Llama's pipeline for a BPE, Metaspace for a Unigram model.
      parts: the vocabulary.
      model: the SentencePiece file that the vocabulary is from; None: another file.
      settings: the settings of tokenizer_config.json.
      roles: the special tokens, spelled.
      folder: names the tokenizer in messages.

    Raises:
      InputError: class and vocabulary contradict each other, or the library refuses them.
    """
    from tokenizers import AddedToken, Tokenizer, models

    if made is not None and isinstance(parts.vocabulary, list) != made.vocabulary.startswith("s"):
        raise InputError(f"{folder}: its tokenizer_class and the kind of its vocabulary contradict each other")
    try:
        if made is not None:
            inner = made.make(parts, settings, roles)
        elif isinstance(parts.vocabulary, dict):
            inner = CLASSES["LlamaTokenizer"].make(parts, settings, roles)
        else:
            inner = classes.metaspace(Tokenizer(models.Unigram(parts.vocabulary, parts.unknown, False)))
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{folder}: no tokenizer can be built from its vocabulary ({error})") from None
    if model is not None:
        kept = [(piece.spelling, piece.kind) for piece in model.pieces if piece.kind in (3, 4)]
        inner.add_tokens([AddedToken(s, normalized=False, special=kind == 3) for s, kind in kept])
    return inner


def add(inner: Any, settings: Mapping[str, Any], roles: Mapping[str, Any], made: TokenizerClass | None) -> None:
    """Adds the added tokens to a tokenizer, in Transformers' order, which decides the ids of new tokens.

    Args:
      inner: the library's tokenizer.
      settings: the settings of tokenizer_config.json, with "added" and "extra".
      roles: the special tokens.
      made: the class; None: an unknown one.
    """
    adding = [token for _, token in sorted(settings["added"].items())]
    known = {token.content for token in inner.get_added_tokens_decoder().values()} | {t.content for t in adding}
    extra = list(settings["extra"]) + (list(made.extra(settings)) if made is not None else [])
    named = {str(getattr(token, "content", token)) for token in roles.values()}
    defaults = set(made.roles.values()) if made is not None else set()
    for token in [*roles.values(), *extra]:
        one = token_of(token, Path(settings["where"]).parent) if isinstance(token, str | dict) else token
        missing = inner.token_to_id(one.content) is None and one.content in defaults
        if one.content not in known and not missing:  # a default of the class is not added to the vocabulary
            adding.append(one)
            known.add(one.content)
    for token in adding:
        token.special = token.special or token.content in named
    inner.add_tokens(adding)


def frame(inner: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """Sets the post-processor that adds the beginning and the end of a text, if the settings ask for them.

    Args:
      inner: the library's tokenizer.
      settings: the settings of tokenizer_config.json.
      roles: the special tokens, spelled.
    """
    from tokenizers import processors

    ends = {
        role: roles.get(role) if classes.switch(settings, f"add_{role}_token", False) else None
        for role in ("bos", "eos")
    }
    bos, eos = ends["bos"], ends["eos"]
    if bos is None and eos is None and inner.post_processor is None:
        return
    single = f"{f'{bos}:0 ' if bos else ''}$A:0{f' {eos}:0' if eos else ''}"
    pair = f"{single}{f' {bos}:1' if bos else ''} $B:1{f' {eos}:1' if eos else ''}"
    tokens = [(token, classes.id_of(inner, token, settings)) for token in (bos, eos) if token is not None]
    inner.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def token_of(token: Any, folder: Path) -> Any:
    """The library's `AddedToken` of a token in JSON.

    Args:
      token: its spelling, or its object.
      folder: names the tokenizer in the message.

    Raises:
      InputError: not a token.
    """
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True)
    try:
        return AddedToken(**{key: value for key, value in token.items() if key != "__type"})
    except (TypeError, AttributeError):
        raise InputError(f"{folder}: {token!r} is not an added token") from None
