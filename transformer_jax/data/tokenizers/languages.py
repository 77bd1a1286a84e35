"""mBART's language codes, and the source and target language of a tokenizer.

A vocabulary holds all codes, so the two languages come from tokenizer_config.json ("src_lang", "tgt_lang") or from the
experiment (`TokenizerFile.source_language`, `target_language`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformer_jax.data.tokenizers import special
from transformer_jax.errors import InputError

# In the order of their ids: mBART's 25, then the 27 that mBART-50 adds.
CODES = (
    *("ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX"),
    *("kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN"),
    "zh_CN",
)
LATER_CODES = (
    *("af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK", "ml_IN", "mn_MN"),
    *("mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN", "th_TH", "tl_XX", "uk_UA", "ur_PK"),
    *("xh_ZA", "gl_ES", "sl_SI"),
)
# tokenizer_class -> `Languages.leading`.
KINDS = {"MBartTokenizer": False, "MBart50Tokenizer": True}


@dataclass(frozen=True)
class Languages:
    """mBART's source and target language: the ids of their codes (de_DE); None: not chosen."""

    source: int | None
    target: int | None
    leading: bool
    """The position of a code. True (mBART-50, Tang et al. 2020): `code tokens </s>` on both sides; the decoder starts
    with </s> and its first token is the target's code. False (mBART, Liu et al. 2020): `tokens </s> code` in the
    source; the decoder starts with the target's code."""


def find(settings: dict[str, Any], inner: Any, where: object) -> Languages | None:
    """mBART's languages as a folder's settings name them; None for other tokenizers.

    Args:
      settings: the settings of tokenizer_config.json.
      inner: the library's tokenizer.
      where: names the folder in messages.

    Raises:
      InputError: an unknown code.
    """
    if (named := kind(settings)) is None:
        return None
    ids = []
    for name in ("src_lang", "tgt_lang"):
        code = special.content(settings.get(name), f"{where}: {name}")
        ids.append(None if code is None else _code(inner.token_to_id, code, f"{where}: {name}"))
    return Languages(ids[0], ids[1], KINDS[named])


def between(tokenizer: Any, source: str, target: str) -> Any:
    """The tokenizer for another pair of languages.

    Args:
      tokenizer: mBART's.
      source: the code of the source language; "": unchanged.
      target: the code of the target language; "": unchanged.

    Raises:
      InputError: a tokenizer without language codes, or an unknown code.
    """
    if not (source or target):
        return tokenizer
    if tokenizer.languages is None:
        raise InputError(
            f"TokenizerFile.source_language = {source!r}, target_language = {target!r}: this tokenizer has no language "
            "codes, only mBART's has; remove the settings"
        )
    sides = {"source": source, "target": target}
    ids = {side: _code(tokenizer.id_of, code, f"TokenizerFile.{side}_language") for side, code in sides.items() if code}
    return tokenizer.replace(languages=dataclasses.replace(tokenizer.languages, **ids))


def kind(settings: dict[str, Any]) -> str | None:
    """The key of `KINDS` that the settings name; None for other tokenizers.

    Args:
      settings: the settings of tokenizer_config.json.
    """
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    return name if name in KINDS else None


def _code(id_of: Callable[[str], int | None], code: str, where: str) -> int:
    """The id of a language's code."""
    if code not in (*CODES, *LATER_CODES) or (id := id_of(code)) is None:
        known = ", ".join(c for c in (*CODES, *LATER_CODES) if id_of(c) is not None)
        raise InputError(f"{where} is {code!r}; the languages that this tokenizer knows are {known}")
    return id
