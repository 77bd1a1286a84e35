"""Tokenizers that exist: tokenizer.json, BERT's vocab.txt, GPT-2's and RoBERTa's vocab.json + merges.txt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformer_jax.data.tokenizers import languages, special
from transformer_jax.data.tokenizers.plain import END_OF_TEXT
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

# Asked in this order where no tokenizer_config.json names the end of text.
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


def read_tokenizer_json(path: Path) -> SubwordTokenizer:
    from tokenizers import Tokenizer as Inner

    settings = special.read_json(path)
    model, added = settings.get("model"), settings.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    refuse_far_ids(ids, path)
    try:
        inner = Inner.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: not a tokenizer of the tokenizers library ({error})") from None
    settings, where = special.read_settings(path.parent), path.parent
    spoken = languages.find(settings, inner, where)
    return SubwordTokenizer(inner, end_of_text(where, inner), special.find(settings, inner, where), spoken)


def refuse_far_ids(ids: Sequence[Any], path: Path) -> None:
    """Refuses ids far beyond the number of tokens: the library counts up to the highest, and dies of 2,000,000,000."""
    highest = max((id for id in ids if isinstance(id, int)), default=0)
    if highest > 4 * len(ids) + 10_000:
        raise InputError(f"{path}: {len(ids):,} tokens have ids up to {highest:,}; ids count the tokens, from 0")


def read_vocab_and_merges(folder: Path) -> SubwordTokenizer:
    """GPT-2's own two files, and RoBERTa's, whose special tokens are in vocab.json."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    refuse_far_ids(list(special.read_json(folder / "vocab.json").values()), folder / "vocab.json")
    try:
        inner = Inner(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:
        raise InputError(f"{folder}: vocab.json and merges.txt are not a BPE ({error})") from None
    settings = special.read_settings(folder)
    add_prefix_space = switch(settings, "add_prefix_space", False, folder)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(add_prefix_space))
    inner.decoder = decoders.ByteLevel()
    if eos := end_of_text(folder, inner):
        inner.add_special_tokens([AddedToken(eos, normalized=False, special=True)])
    return finish(inner, eos, special.find(settings, inner, folder))


def read_vocab_txt(folder: Path) -> SubwordTokenizer:
    """BERT's WordPiece: one token a line, its id the number of the line. Lower-casing as Transformers' BertTokenizer:
    on unless tokenizer_config.json says `do_lower_case: false`; accents are stripped where letters are lowered.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    file = folder / "vocab.txt"
    try:
        lines = file.read_text("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error})") from None
    settings = special.read_settings(folder)
    unknown = special.content(settings.get("unk_token"), f"{folder}: unk_token") or "[UNK]"
    if unknown not in lines:
        raise InputError(f"{file}: {unknown} is not among its {len(lines)} lines, so it is not a WordPiece vocabulary")
    vocabulary = {token: id for id, token in enumerate(lines)}
    inner = Inner(models.WordPiece(vocabulary, unk_token=unknown))
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(switch(settings, "tokenize_chinese_chars", True, folder)),
        strip_accents=switch(settings, "strip_accents", None, folder),
        lowercase=bool(switch(settings, "do_lower_case", True, folder)),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    return finish(inner, end_of_text(folder, inner), special.find(settings, inner, folder))


def finish(inner: Any, eos: str | None, found: special.Special) -> SubwordTokenizer:
    """Makes the special tokens known to the library as such, and for Transformers' sake how an example is put together.

    The mask takes the space before it into itself where spaces are part of tokens, as in RoBERTa and ALBERT.
    """
    from tokenizers import AddedToken, models, processors

    added = {token.content for token in inner.get_added_tokens_decoder().values()}
    lstrip = not isinstance(inner.model, models.WordPiece)
    for role, id in found.present().items():
        if (token := inner.id_to_token(id)) not in added:
            inner.add_special_tokens([AddedToken(token, normalized=False, lstrip=lstrip and role == "mask")])
            added.add(token)
    if found.cls is not None and found.sep is not None:
        cls, sep = inner.id_to_token(found.cls), inner.id_to_token(found.sep)
        if isinstance(inner.model, models.BPE):
            prefix = getattr(inner.pre_tokenizer, "add_prefix_space", False)  # a sequence begins with the digits
            inner.post_processor = processors.RobertaProcessing((sep, found.sep), (cls, found.cls), True, prefix)
        else:
            single, pair = f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
            tokens = [(cls, found.cls), (sep, found.sep)]
            inner.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
    return SubwordTokenizer(inner, eos, found)


def switch(settings: dict[str, Any], name: str, default: bool | None, folder: Path) -> bool | None:
    value = settings.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{folder / 'tokenizer_config.json'}: {name} is {value!r}, not true or false")
    return default if value is None else value


def end_of_text(folder: Path, inner: Any) -> str | None:
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "eos_token" in (read := special.read_json(settings)):
        return special.content(read["eos_token"], f"{settings}: eos_token")
    return next((token for token in END_TOKENS if inner.token_to_id(token) is not None), None)
