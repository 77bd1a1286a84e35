"""Transformers' tokenizer classes: the pipeline that each builds around a vocabulary.

`tokenizer_class` names the class. Most classes build the tokenizer from the vocabulary and a few settings of
tokenizer_config.json. From a tokenizer.json they take only the vocabulary, the merges, the character map and the
post-processor. So "do_lower_case" in the settings overrides the normaliser in tokenizer.json. The tests compare the
ids with those of Transformers 5.24.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_jax.data.tokenizers.languages import CODES, LATER_CODES
from transformer_jax.errors import InputError

# How Qwen 2 splits words: as GPT-2, but each digit and each run of line ends is a word.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Parts:
    """The vocabulary of a folder.

    Attributes:
      vocabulary: {token: id}, or for a Unigram model [(piece, log-probability), ...] by id.
      merges: the merges of a BPE, in the order in which they apply.
      charsmap: SentencePiece's compiled character map; empty: none.
      unknown: for a Unigram model, the id of the unknown piece in its file.
    """

    vocabulary: Any
    merges: Sequence[tuple[str, str]] = ()
    charsmap: bytes = b""
    unknown: int = 0


@dataclass(frozen=True)
class TokenizerClass:
    """A tokenizer class of Transformers.

    Attributes:
      roles: its default special tokens.
      make: (parts, settings, roles) -> a `tokenizers.Tokenizer` without special tokens.
      vocabulary: the file that it reads if there is no tokenizer.json.
      frame: (tokenizer, settings, roles) -> the post-processor; None: that of the file.
      from_pieces: (pieces of a SentencePiece file, settings, roles) -> pieces in the class's order of ids.
      extra: settings -> further special tokens.
    """

    roles: Mapping[str, str]
    make: Callable[[Parts, Mapping[str, Any], Mapping[str, str]], Any]
    vocabulary: str
    frame: Callable[[Any, Mapping[str, Any], Mapping[str, str]], Any] | None = None
    from_pieces: Callable[[Any, Mapping[str, Any], Mapping[str, str]], Any] = lambda pieces, settings, roles: pieces
    extra: Callable[[Mapping[str, Any]], Sequence[str]] = lambda settings: ()


def switch(settings: Mapping[str, Any], name: str, default: bool | None) -> bool | None:
    """A boolean setting.

    Args:
      settings: the settings of tokenizer_config.json.
      name: the name of the setting.
      default: its value if it is absent or null.

    Raises:
      InputError: another type of value.
    """
    value = settings.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{settings.get('where', 'tokenizer_config.json')}: {name} is {value!r}, not true or false")
    return default if value is None else value


# ---- WordPiece -----------------------------------------------------------------------------------------------------


def _bert(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    inner = Tokenizer(models.WordPiece(parts.vocabulary, unk_token=roles["unk"]))
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(switch(settings, "tokenize_chinese_chars", True)),
        strip_accents=switch(settings, "strip_accents", None),
        lowercase=bool(switch(settings, "do_lower_case", True)),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    return inner


def id_of(inner: Any, token: str, settings: Mapping[str, Any]) -> int:
    """The id of a special token.

    Args:
      inner: the library's tokenizer.
      token: spelled.
      settings: the settings of tokenizer_config.json; "where" names the tokenizer in the message.

    Raises:
      InputError: the vocabulary has no such token.
    """
    id = inner.token_to_id(token)
    if id is None:
        raise InputError(f"{settings['where']}: the special token {token!r} is not in the vocabulary")
    return id


def cls_sep(inner: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    """The post-processor for [CLS] A [SEP] B [SEP], with types 0 and 1.

    Args:
      inner: the library's tokenizer.
      settings: not used.
      roles: the special tokens, spelled.
    """
    from tokenizers import processors

    cls, sep = roles["cls"], roles["sep"]
    tokens = [(token, id_of(inner, token, settings)) for token in (cls, sep)]
    single, pair = f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


# ---- Residues ------------------------------------------------------------------------------------------------------


def _esm(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    """Words at white space, in which each token of the vocabulary is found, the longest first."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel(parts.vocabulary, unk_token=roles["unk"]))
    longest_first = sorted(filter(None, parts.vocabulary), key=len, reverse=True)
    token = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), behavior="isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), token])
    return inner


# ---- BPE -----------------------------------------------------------------------------------------------------------


def _byte_level(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    inner = Tokenizer(_bpe(parts, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    prefix = bool(switch(settings, "add_prefix_space", False))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    return inner


def roberta_frame(inner: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    """The post-processor for <s> A </s></s> B </s>.

    Args:
      inner: the library's tokenizer.
      settings: the settings of tokenizer_config.json.
      roles: the special tokens, spelled.
    """
    from tokenizers import processors

    sep, cls = ((roles[role], id_of(inner, roles[role], settings)) for role in ("sep", "cls"))
    trim, prefix = (bool(switch(settings, *pair)) for pair in (("trim_offsets", True), ("add_prefix_space", False)))
    return processors.RobertaProcessing(sep, cls, trim, prefix)


def _mpnet_frame(inner: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    return roberta_frame(inner, {"where": settings["where"]}, roles)


def _qwen2(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    inner = Tokenizer(_bpe(parts, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    inner.normalizer = normalizers.NFC()
    prefix = bool(switch(settings, "add_prefix_space", False))
    words = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    inner.decoder = decoders.ByteLevel()
    return inner


def _llama(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    prefix = bool(switch(settings, "add_prefix_space", True))
    scheme = "never" if not prefix else "always" if switch(settings, "legacy", False) else "first"
    inner = Tokenizer(_bpe(parts, fuse_unk=True, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence(steps + [decoders.Strip(content=" ", left=1)] * prefix)
    return inner


def _gemma(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    inner = Tokenizer(_bpe(parts, fuse_unk=True, unk_token=roles["unk"], byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return inner


def _bpe(parts: Parts, **options: Any) -> Any:
    from tokenizers import models

    return models.BPE(vocab=parts.vocabulary, merges=list(parts.merges), dropout=None, **options)


# ---- Unigram -------------------------------------------------------------------------------------------------------


def _unigram(unknown: int | None) -> Callable[[Parts, Mapping[str, Any], Mapping[str, str]], Any]:
    """The `make` of T5, XLM-R and CamemBERT: words at white space, each with a leading "▁".

    Args:
      unknown: the id of the unknown piece; None: that of the role "unk".
    """

    def make(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
        from tokenizers import Tokenizer, models, normalizers

        spellings = [piece for piece, _ in parts.vocabulary]
        id = unknown if unknown is not None else spellings.index(roles["unk"]) if roles["unk"] in spellings else 0
        inner = Tokenizer(models.Unigram(parts.vocabulary, unk_id=id, byte_fallback=False))
        if parts.charsmap:
            inner.normalizer = normalizers.Precompiled(parts.charsmap)
        return metaspace(inner, bool(switch(settings, "add_prefix_space", True)))

    return make


def metaspace(inner: Any, prefix: bool = True) -> Any:
    """The tokenizer, set to split words at white space, each with a leading "▁".

    Args:
      inner: the library's tokenizer, which is changed.
      prefix: whether the first word has a "▁" as well.
    """
    from tokenizers import decoders, pre_tokenizers

    scheme = "always" if prefix else "never"
    pieces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return inner


def _albert(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Tokenizer, models, normalizers

    inner = Tokenizer(models.Unigram(parts.vocabulary, unk_id=1, byte_fallback=False))
    steps = albert_steps(settings)
    inner.normalizer = normalizers.Sequence([*steps, *[normalizers.Precompiled(parts.charsmap)] * bool(parts.charsmap)])
    return metaspace(inner, bool(switch(settings, "add_prefix_space", True)))


def albert_steps(settings: Mapping[str, Any]) -> list[Any]:
    """The normalisers that ALBERT applies before SentencePiece's: quotes, accents, lower-casing.

    Args:
      settings: the settings of tokenizer_config.json.
    """
    from tokenizers import normalizers

    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not switch(settings, "keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    return steps + [normalizers.Lowercase()] * bool(switch(settings, "do_lower_case", True))


def _deberta(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    spellings = [piece for piece, _ in parts.vocabulary]
    unknown = spellings.index(roles["unk"]) if roles["unk"] in spellings else 1
    inner = Tokenizer(models.Unigram(parts.vocabulary, unk_id=unknown, byte_fallback=False))
    lower = [normalizers.Lowercase()] * bool(switch(settings, "do_lower_case", False))
    one_space = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    inner.normalizer = normalizers.Sequence([*lower, one_space, normalizers.NFC(), normalizers.Strip(left=False)])
    scheme = "always" if switch(settings, "add_prefix_space", True) else "first"
    apart = [pre_tokenizers.Punctuation(behavior="isolated")] * bool(switch(settings, "split_by_punct", False))
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*apart, spaces])
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return inner


def _mbart(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Tokenizer, models

    return metaspace(Tokenizer(models.Unigram(parts.vocabulary, unk_id=3, byte_fallback=False)))


def _mbart50(parts: Parts, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    inner = Tokenizer(models.Unigram(parts.vocabulary, unk_id=3, byte_fallback=False))
    one_space = normalizers.Replace(Regex(" {2,}"), " ")
    charsmap = [normalizers.Precompiled(parts.charsmap)] * bool(parts.charsmap)
    inner.normalizer = normalizers.Sequence([*charsmap, one_space])
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    inner.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    return inner


def _template(single: Sequence[str], pair: Sequence[str]) -> Callable[[Any, Mapping[str, Any], Mapping[str, str]], Any]:
    """The `frame` of a template, whose tokens are roles ("bos") or spelled."""

    def frame(inner: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
        from tokenizers import processors

        spelled = [[roles.get(one, one) for one in parts] for parts in (single, pair)]
        special = {one: id_of(inner, one, settings) for one in spelled[1] if not one.startswith("$")}
        return processors.TemplateProcessing(single=spelled[0], pair=spelled[1], special_tokens=list(special.items()))

    return frame


def _language_frame(leading: bool) -> Callable[[Any, Mapping[str, Any], Mapping[str, str]], Any]:
    def frame(inner: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
        code = str(settings.get("src_lang") or "en_XX")
        before, after = ([code], [roles["eos"]]) if leading else ([], [roles["eos"], code])
        return _template([*before, "$A", *after], [*before, "$A", "$B", *after])(inner, settings, roles)

    return frame


def _fairseq(last: Sequence[str]) -> Callable[[Any, Mapping[str, Any], Mapping[str, str]], Any]:
    """The `from_pieces` of fairseq: <unk> <s> </s> become <s> <pad> </s> <unk>; `last` and the mask come last."""

    def reorder(pieces: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
        first = [(roles[role], 0.0) for role in ("cls", "pad", "eos", "unk")]
        return [*first, *list(pieces)[3:], *((code, 0.0) for code in last), (roles["mask"], 0.0)]

    return reorder


def _camembert(pieces: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    first = [("<s>NOTUSED", 0.0), (roles["pad"], 0.0), ("</s>NOTUSED", 0.0), (roles["unk"], 0.0)]
    return [*first, ("<unk>NOTUSED", -100.0), *list(pieces)[1:], (roles["mask"], 0.0)]


def _with_mask(pieces: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    """The `from_pieces` of DeBERTa, whose file lacks the mask."""
    return [*pieces, *[(roles["mask"], 0.0)] * all(piece != roles["mask"] for piece, _ in pieces)]


def sentinels(settings: Mapping[str, Any]) -> list[str]:
    """T5's sentinels <extra_id_0>, ...

    Args:
      settings: "extra_ids" is their number, 100 by default.

    Raises:
      InputError: "extra_ids" is not a number.
    """
    count = settings.get("extra_ids", 100)
    if type(count) is not int or count < 0:
        raise InputError(f"{settings.get('where')}: extra_ids is {count!r}, not a number of tokens")
    return [f"<extra_id_{i}>" for i in range(count)]


def _t5(pieces: Any, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Any:
    return [*pieces, *((token, 0.0) for token in reversed(sentinels(settings)))]


# ---- The table -----------------------------------------------------------------------------------------------------

_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
_END = "<|endoftext|>"

CLASSES = {
    "BertTokenizer": TokenizerClass(_BERT, _bert, "vocab.txt", cls_sep),
    "MPNetTokenizer": TokenizerClass(_ROBERTA | {"unk": "[UNK]"}, _bert, "vocab.txt", _mpnet_frame),
    "EsmTokenizer": TokenizerClass(
        # Transformers names no separator and ends each sequence with <eos>, which is one.
        {"unk": "<unk>", "cls": "<cls>", "pad": "<pad>", "mask": "<mask>", "eos": "<eos>", "sep": "<eos>"},
        _esm,
        "vocab.txt",
        _template(["cls", "$A", "eos"], ["cls", "$A", "eos", "$B", "eos"]),
    ),
    "GPT2Tokenizer": TokenizerClass({"unk": _END, "bos": _END, "eos": _END}, _byte_level, "vocab.json"),
    "RobertaTokenizer": TokenizerClass(_ROBERTA, _byte_level, "vocab.json", roberta_frame),
    "Qwen2Tokenizer": TokenizerClass({"unk": _END, "eos": _END, "pad": _END}, _qwen2, "vocab.json"),
    "LlamaTokenizer": TokenizerClass({"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, _llama, "tokenizer.model"),
    "GemmaTokenizer": TokenizerClass(
        {"unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "mask": "<mask>"}, _gemma, "tokenizer.model"
    ),
    "T5Tokenizer": TokenizerClass(
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        _unigram(2),
        "spiece.model",
        _template(["$A", "</s>"], ["$A", "</s>", "$B", "</s>"]),
        _t5,
        sentinels,
    ),
    "AlbertTokenizer": TokenizerClass(
        {
            **{"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "sep": "[SEP]"},
            **{"pad": "<pad>", "cls": "[CLS]", "mask": "[MASK]"},
        },
        _albert,
        "spiece.model",
        cls_sep,
    ),
    "DebertaV2Tokenizer": TokenizerClass(
        _BERT | {"bos": "[CLS]", "eos": "[SEP]"}, _deberta, "spm.model", cls_sep, _with_mask
    ),
    "XLMRobertaTokenizer": TokenizerClass(
        _ROBERTA,
        _unigram(3),
        "sentencepiece.bpe.model",
        _template(["bos", "$A", "eos"], ["bos", "$A", "eos", "eos", "$B", "eos"]),
        _fairseq(()),
    ),
    "CamembertTokenizer": TokenizerClass(
        _ROBERTA,
        _unigram(None),
        "sentencepiece.bpe.model",
        _template(["bos", "$A", "eos"], ["bos", "$A", "eos", "eos", "$B", "eos"]),
        _camembert,
        lambda settings: ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    ),
    "MBartTokenizer": TokenizerClass(
        _ROBERTA, _mbart, "sentencepiece.bpe.model", _language_frame(False), _fairseq(CODES), lambda settings: CODES
    ),
    "MBart50Tokenizer": TokenizerClass(
        {role: token for role, token in _ROBERTA.items() if role != "bos"},
        _mbart50,
        "sentencepiece.bpe.model",
        _language_frame(True),
        lambda pieces, settings, roles: _fairseq((*CODES, *LATER_CODES))(
            pieces, settings, {"bos": "<s>"} | dict(roles)
        ),
        lambda settings: (*CODES, *LATER_CODES),
    ),
}
# Other names of these classes.
ALIASES = {
    **dict.fromkeys(("BartTokenizer", "LongformerTokenizer", "LEDTokenizer", "MvpTokenizer"), "RobertaTokenizer"),
    **dict.fromkeys(
        ("ElectraTokenizer", "DistilBertTokenizer", "MobileBertTokenizer", "ConvBertTokenizer", "LayoutLMTokenizer"),
        "BertTokenizer",
    ),
    "SqueezeBertTokenizer": "BertTokenizer",
    "CodeGenTokenizer": "GPT2Tokenizer",
    "Phi3Tokenizer": "LlamaTokenizer",
    "MT5Tokenizer": "T5Tokenizer",
}
# Classes written in Python, which no tokenizer.json describes.
UNREAD = (
    *("BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer", "ByT5Tokenizer", "BertGenerationTokenizer"),
    *("CpmTokenizer", "XLMTokenizer", "TransfoXLTokenizer", "CTRLTokenizer", "BartphoTokenizer", "FSMTTokenizer"),
)
# The class by "model_type". The published folders of MISNAMED types name the wrong class.
BY_MODEL_TYPE = {
    **{"bert": "BertTokenizer", "distilbert": "BertTokenizer", "electra": "BertTokenizer", "albert": "AlbertTokenizer"},
    **{"roberta": "RobertaTokenizer", "bart": "RobertaTokenizer", "gpt2": "GPT2Tokenizer"},
    **{"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "t5": "T5Tokenizer", "mt5": "T5Tokenizer"},
    **{"mbart": "MBartTokenizer", "marian": "MarianTokenizer", "xlm-roberta": "XLMRobertaTokenizer"},
    **{"camembert": "CamembertTokenizer", "gemma": "GemmaTokenizer", "modernbert": "TokenizersBackend"},
    **{"mpnet": "MPNetTokenizer", "gemma2": "GemmaTokenizer", "deberta-v2": "DebertaV2Tokenizer"},
    **{"esm": "EsmTokenizer"},
}
MISNAMED = ("qwen2", "modernbert")
