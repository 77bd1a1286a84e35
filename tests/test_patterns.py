"""Expressions that explode are seen as such, and those of tokenizers that exist are not."""

import pytest

from transformer_jax import patterns
from transformer_jax.errors import InputError

EXPLODE = (r"(a+)+$", r"(a*)*b", r"^(([a-z])+.)+[A-Z]$", r"((a+)b?)+", r"(?:x[\]]+)*", r"(\p{L}+)*!", r"([[a]b]+){2,}")
EXPLODE_WITHOUT_LIMIT = (
    r"(a|aa)+$",
    r"(a?){30}a{30}",
    r"(.*)(.*)(.*)(.*)(.*)x",
    r"a*a*a*a*a*b",
    r"[[](a+)+",
    r"(a+){2}",
)
# By their models: GPT-2, Llama 3, GPT-4o's groups, DeepSeek, phi-4, digits from the right, BLOOM.
OF_TOKENIZERS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}&&[^\p{Han}]]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))|(?:\r?\n)+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
)
OF_GROUPS = (
    r"bias$",
    r"blocks/.*/(query|key)/kernel",
    r"(embed|head)",
    r"^blocks/\d+/",
    r".*/norm_[12]/.*",
    r"[(+*|]+x",
)


@pytest.mark.parametrize("pattern", EXPLODE)
@pytest.mark.parametrize("limited", [True, False])
def test_what_explodes_is_refused(pattern, limited):
    with pytest.raises(InputError, match=r"^optim\.groups: .* may take for ever"):
        patterns.refuse_exploding(pattern, "optim.groups", limited=limited)


@pytest.mark.parametrize("pattern", EXPLODE_WITHOUT_LIMIT)
def test_what_an_engine_with_a_limit_ends(pattern):
    patterns.refuse_exploding(pattern, "x", limited=True)
    with pytest.raises(InputError, match="may take for ever"):
        patterns.refuse_exploding(pattern, "x")


@pytest.mark.parametrize("pattern", OF_TOKENIZERS)
def test_tokenizers_that_exist_are_not_refused(pattern):
    patterns.refuse_exploding(pattern, "x", limited=True)


@pytest.mark.parametrize("pattern", [*OF_GROUPS, "(", "[", "\\", "a{", ")+", "", "{3}", "a{2}{3}"])
def test_what_is_short_is_not_refused(pattern):
    patterns.refuse_exploding(pattern, "x")
