"""The pages of `look`: complete, self-contained, of a decoder, an encoder, a classifier, a translator and a ViT."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from transformer_jax.data.preprocess import Preprocess
from transformer_jax.data.tokenizers import Bytes, TrainBPE
from transformer_jax.errors import InputError
from transformer_jax.looking.page import look
from transformer_jax.models import bert, gpt, seq2seq, vit

SIZES = {"vocab_size": 300, "max_length": 24, "width": 8, "num_layers": 2, "num_heads": 2}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def loaded(family, cfg, tokenizer=None, **task):
    params = family.init(jax.random.key(0), cfg)
    return SimpleNamespace(family=family, config=cfg, params=params, tokenizer=tokenizer, task=SimpleNamespace(**task))


def encoder_tokenizer():
    return TrainBPE(261, special=SPECIAL).build([("a", "a rose is a rose")])


def decoder():
    return loaded(gpt, gpt.Config(**SIZES, position="rotary", window=3), Bytes().build([]))


def encoder():
    cfg = bert.Config(**SIZES, num_types=0, heads=("mlm",))
    return loaded(bert, cfg, encoder_tokenizer())


def classifier():
    cfg = bert.Config(**SIZES, num_types=0, heads=("classification",), num_labels=2)
    return loaded(bert, cfg, encoder_tokenizer(), labels=("good", "bad"))


def translator():
    def predict(params, cfg, tokenizer, inputs, *, top):
        return iter([{"source": text, "hypotheses": ["<b>oui"], "scores": [0.0]} for text in inputs])

    cfg = seq2seq.Config(**SIZES, position="relative", decoder_start_id=1)
    return loaded(seq2seq, cfg, encoder_tokenizer(), predict=predict)


@pytest.mark.parametrize(
    ("made", "asked", "expected", "pictures"),
    [
        (decoder, "a <b> b", ["Logit lens", "the next token", "Importance of heads", "7. b"], 2),
        (encoder, "a <mask> is", ["the first mask", "[MASK]", "attention × gradient"], 2),
        (classifier, "rose", ["the label", "good", "bad"], 2),
        (translator, "a rose", ["Alignment", "Cross-attention", "&lt;b&gt;oui"], 7),
    ],
)
def test_a_page_of_a_text(made, asked, expected, pictures):
    page = look(made(), asked)
    html = page.html()
    for part in expected:
        assert part in html, part
    assert len(page.pictures) == pictures
    assert all(data.startswith(b"\x89PNG") for data in page.pictures.values())
    assert html.count("data:image/png") == pictures
    assert "<script" not in html and "<b>" not in html
    assert not re.search(r"(src|href)=.https?:", html), "the page asks for something of the network"


def test_a_page_of_an_image(tmp_path):
    cfg = vit.Config(image_size=8, patch_size=4, channels=3, num_classes=2, width=8, num_layers=2, num_heads=2)
    model = loaded(vit, cfg, preprocess=Preprocess(size=8, resize=8))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    page = look(model, str(tmp_path / "a.png"))
    assert set(page.pictures) == {"rollout.png", "heads.png"} and "share of each of 4 patches" in page.html()
    with pytest.raises(InputError, match=r"none.png: No such file or directory; give the file of an image"):
        look(model, str(tmp_path / "none.png"))


def test_what_cannot_be_looked_at_is_refused():
    with pytest.raises(InputError, match="30 tokens, more than the 24 that a page"):
        look(decoder(), "a" * 30)
    with pytest.raises(InputError, match="the input has no token"):
        look(decoder(), "")
    model = decoder()
    model.family = SimpleNamespace(apply=gpt.apply)
    with pytest.raises(InputError, match="no attention_weights"):
        look(model, "a")
