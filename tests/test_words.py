"""Words of running text, in any script."""

import pytest

from transformer_jax import words


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Don't fly AT&T to the U.S. (3-1), say 10:30!", "Don't fly AT&T to the U.S . ( 3-1 ) , say 10:30 !"),
        ("1,000 one,two a_b e.g. x", "1,000 one , two a_b e.g . x"),
        ("王明住在北京，他很喜欢。", "王 明 住 在 北 京 ， 他 很 喜 欢 。"),
        ("2024年 iPhone15を買う", "2024 年 iPhone15 を 買 う"),
        ("मोदी दिल्ली में है।वह", "मोदी दिल्ली में है । वह"),
        ("கொல்கத்தா, தமிழ்", "கொல்கத்தா , தமிழ்"),
        ("الرَّبّ،نعم", "الرَّبّ ، نعم"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("อยู่ที่", "อ ยู่ ที่"),
        ("서울에서 e\u0301te\u0301", "서울에서 e\u0301te\u0301"),
        ("a\u200b \x00 b ❤\ufe0f!", "a b ❤\ufe0f !"),
        ("", ""),
    ],
)
def test_words_of_a_text(text, wanted):
    assert words.split(text) == wanted.split(" ") * bool(wanted)
    assert [text[start:end] for start, end in words.spans(text)] == words.split(text)


@pytest.mark.parametrize(("text", "share"), [("北京", 1), ("in 北京 ok", 1 / 3), ("दिल्ली Bonn", 0), ("12 !", 0)])
def test_the_share_of_letters_without_spaces(text, share):
    assert words.unspaced_share(text) == pytest.approx(share)
