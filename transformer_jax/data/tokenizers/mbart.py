"""mBART's tokenizer (Liu et al. 2020) and mBART-50's (Tang et al. 2020).

The folder's sentencepiece.bpe.model, a Unigram whatever its name says, numbers its pieces from `<unk> <s> </s>`; the
ids are fairseq's: `<s> <pad> </s> <unk>`, the pieces, the codes of the languages, `<mask>`. Text is encoded as
SentencePiece does it; Transformers 5 leaves out the model's map of characters for mBART, though not for mBART-50.
"""

from pathlib import Path

from transformer_jax.data.tokenizers import languages, special
from transformer_jax.data.tokenizers.files import finish
from transformer_jax.data.tokenizers.sentencepiece import CONTROL, UNKNOWN, Piece, precompiled, read_pieces, unigram
from transformer_jax.data.tokenizers.subwords import SubwordTokenizer
from transformer_jax.errors import InputError

FILE = "sentencepiece.bpe.model"

FIRST = ("<s>", "<pad>", "</s>", "<unk>")


def read_model(folder: Path) -> SubwordTokenizer:
    """The tokenizer of a folder's sentencepiece.bpe.model.

    Errors: `InputError` for a folder that is neither mBART's nor mBART-50's: XLM-R's and NLLB's file has the same name.
    """
    from tokenizers import AddedToken

    file = folder / FILE
    config = special.read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    settings = special.read_settings(folder)
    if (kind := languages.kind(settings)) is None and (kind := languages.kind(config)) is None:
        if config.get("model_type") != "mbart":
            raise InputError(
                f"{file}: whose it is nothing here says; set tokenizer_class in {folder / 'tokenizer_config.json'} to "
                f"{' or '.join(languages.KINDS)}, or save the tokenizer as tokenizer.json with Transformers"
            )
        kind = "MBartTokenizer"
    codes = (*languages.CODES, *languages.LATER_CODES) if languages.KINDS[kind] else languages.CODES
    pieces, charsmap = read_pieces(file.read_bytes(), file)
    if [(p.spelling, p.kind) for p in pieces[:3]] != [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]:
        raise InputError(f"{file} does not begin with <unk> <s> </s>, so it is not {kind.removesuffix('Tokenizer')}'s")
    if taken := {p.spelling for p in pieces} & {"<pad>", *codes, "<mask>"}:
        raise InputError(f"{file} holds {', '.join(sorted(taken))} itself, so it is not mBART's; save tokenizer.json")
    first, last = ([Piece(token, 0.0, CONTROL) for token in tokens] for tokens in (FIRST, (*codes, "<mask>")))
    inner = unigram([*first, *pieces[3:], *last], FIRST.index("<unk>"), precompiled(charsmap))
    inner.add_special_tokens([AddedToken(p.spelling, normalized=False) for p in pieces[3:] if p.kind == CONTROL])
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in (*FIRST, *codes)])
    tokenizer = finish(inner, "</s>", special.find(settings, inner, folder))
    tokenizer.languages = languages.find(settings | {"tokenizer_class": kind}, inner, folder)
    return tokenizer
