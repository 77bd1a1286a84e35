"""Golden fixtures for tokenizers: tiny vocabularies, and what Transformers and SentencePiece make of hard texts.

Runs where Transformers, sentencepiece and protobuf are installed (the library needs neither), from the project root:

    python tools/make_tokenizer_fixtures.py            # rewrites tests/data/tokenizers/<name>/

A fixture is a folder as a snapshot has it, plus expected.json: texts and their ids, offsets, words of split sentences,
and prompts in which special tokens are meant; all without the tokens that open and close an example.
"""

import io
import json
import pathlib
import shutil
from typing import Any

import sentencepiece
import tokenizers
import transformers

FIXTURES = pathlib.Path("tests/data/tokenizers")
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the other foxes are jumping over the other dogs.",
    "Paris is the capital of France; Berlin is the capital of Germany. Größe und Straße, naïve café, déjà vu!",
    "It isn't playing: she's played the played-out games of players, unplayable and unaffable.",
    "def add(a, b):\n    return a + b  # 加法 世界 你好\n\tprint(add(1, 22), 'x')",
    "Привет, мир! Ελληνικά γλώσσα. 日本語のテキスト 한국어 🙂 👍 and the end of the ending.",
] * 3
TEXTS = [
    "The foxes aren't playing in Paris, are they?",
    "THE QUICK BROWN FOX",
    "Größe, naïve café — déjà vu: Ångström ÉCOLE e\u0301cole İstanbul ﬁne",
    "你好世界 and 日本語のテキスト, 한국어",
    "🙂👍 👩‍👩‍👧 emoji🙂inside",
    "  two  spaces\tand tabs\n\nand lines \u00a0nbsp \u200bzero ",
    "def add(a, b):\n    return a+b  # 12,345.67",
    "``quoted'' text, <s> </s> <pad> <mask> [MASK] [CLS] [PAD] as text",
    "",
    " ",
    "x\u0000y\ufffdz",
]
WORDS = [["Paris", "is", "n't", "Germany", ",", "naïve", "你好", "\u200b", "played-out", "🙂"], ["one"], []]
PROMPTS = ["Paris is the {mask} of France.", "{mask}", "the {mask}{mask} end {mask} of", "a {pad}b {sep} c"]


def expected(tokenizer: transformers.PreTrainedTokenizerFast, split: transformers.PreTrainedTokenizerFast) -> dict:
    """`split` is the tokenizer for sentences that come as words."""
    plain = [
        tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        for text in TEXTS
    ]
    sentences = [split(words, is_split_into_words=True, add_special_tokens=False) if words else None for words in WORDS]
    roles = {role: getattr(tokenizer, f"{role}_token") for role in ("cls", "sep", "pad", "mask", "unk")}
    prompts = [prompt.format(**roles) for prompt in PROMPTS]
    return {
        "versions": f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}",
        "special": {role: tokenizer.convert_tokens_to_ids(token) for role, token in roles.items()},
        "texts": TEXTS,
        "ids": [encoding["input_ids"] for encoding in plain],
        "offsets": [encoding["offset_mapping"] for encoding in plain],
        "words": WORDS,
        "words_ids": [encoding["input_ids"] if encoding else [] for encoding in sentences],
        "words_of": [encoding.word_ids() if encoding else [] for encoding in sentences],
        "prompts": prompts,
        "prompts_ids": [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts],
        "pair": tokenizer("the fox", "the dog")["input_ids"],
    }


def folder_of(name: str) -> pathlib.Path:
    shutil.rmtree(FIXTURES / name, ignore_errors=True)
    (FIXTURES / name).mkdir(parents=True)
    return FIXTURES / name


def write(file: pathlib.Path, value: dict) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False) + "\n", "utf-8")


def make_bert(name: str, settings: dict) -> None:
    folder = folder_of(name)
    lowercase = settings.get("do_lower_case", True)
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    inner.model.save(str(folder))
    if settings:
        write(folder / "tokenizer_config.json", settings)
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    write(folder / "expected.json", expected(tokenizer, tokenizer))


def make_roberta() -> None:
    folder = folder_of("roberta")
    inner = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner.train_from_iterator(CORPUS, vocab_size=380, special_tokens=special, show_progress=False)
    inner.save_model(str(folder))
    tokenizer = transformers.RobertaTokenizerFast.from_pretrained(folder)
    split = transformers.RobertaTokenizerFast.from_pretrained(folder, add_prefix_space=True)
    values = expected(tokenizer, split)
    write(folder / "expected.json", values)


def make_sentencepiece(name: str, file: str, config: dict, **options: object) -> None:
    folder = folder_of(name)
    (folder / file).write_bytes(train_sentencepiece(folder, CORPUS, **options))
    write(folder / "config.json", config)
    if config.get("model_type") == "albert":
        mask = tokenizers.AddedToken("[MASK]", lstrip=True, special=True)
        tokenizer = transformers.AlbertTokenizerFast.from_pretrained(folder, mask_token=mask)
        write(folder / "expected.json", expected(tokenizer, tokenizer))
        return
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / file))
    values = {
        "versions": f"sentencepiece {sentencepiece.__version__}",
        "texts": TEXTS,
        "ids": [processor.encode(text) for text in TEXTS],
    }
    write(folder / "expected.json", values)


def train_sentencepiece(folder: pathlib.Path, corpus: list[str], **options: object) -> bytes:
    """A model's file. The map of characters is a small one of our own: SentencePiece's are a quarter of a megabyte."""
    rules = folder / "rules.tsv"
    rules.write_text("".join(f"{ord(a):X}\t{' '.join(f'{ord(c):X}' for c in b)}\n" for a, b in RULES.items()))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(corpus).split("\n")),
        model_writer=model,
        minloglevel=2,
        normalization_rule_tsv=str(rules),
        num_threads=1,
        **{"vocab_size": 120} | options,
    )
    rules.unlink()
    return model.getvalue()


def make_marian() -> None:
    """Two models, and a vocabulary that lacks every tenth piece and has a code of a language."""
    folder = folder_of("marian")
    tokens = ["</s>", "<unk>", ">>deu<<"]
    for file, corpus, size in (("source.spm", CORPUS, 120), ("target.spm", GERMAN, 60)):
        (folder / file).write_bytes(train_sentencepiece(folder, corpus, vocab_size=size))
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / file))
        pieces = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
        tokens += [piece for i, piece in enumerate(pieces) if i % 10 < 9 and piece not in tokens]
    write(folder / "vocab.json", {token: id for id, token in enumerate([*tokens, "<pad>"])})
    write(folder / "config.json", {"model_type": "marian"})
    settings = {"source_lang": "eng", "target_lang": "deu", "tokenizer_class": "MarianTokenizer"}
    write(folder / "tokenizer_config.json", settings)
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    texts = [*TEXTS, *GERMAN, ">>deu<< The fox", ">>deu<<  the  fox <<", "the >>deu<< fox"]
    plain = dict(add_special_tokens=False)
    prompts = ["the </s>fox <pad>", "<unk>the"]
    values = {
        "versions": f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}",
        "special": [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id],
        "texts": texts,
        "ids": [tokenizer(text, split_special_tokens=True, **plain)["input_ids"] for text in texts],
        "target_ids": [tokenizer(text_target=text, split_special_tokens=True, **plain)["input_ids"] for text in texts],
        "prompts": prompts,
        "prompts_ids": [tokenizer(prompt, **plain)["input_ids"] for prompt in prompts],
    }
    values["decoded"] = [tokenizer.decode(ids) for ids in values["ids"]]
    write(folder / "expected.json", values)


def make_mbart(name: str, tokenizer_class: Any) -> None:
    """Ids are SentencePiece's in fairseq's order; how an example is put together is Transformers'."""
    folder = folder_of(name)
    (folder / "sentencepiece.bpe.model").write_bytes(train_sentencepiece(folder, CORPUS))
    write(folder / "config.json", {"model_type": "mbart", "tokenizer_class": tokenizer_class.__name__})
    write(folder / "tokenizer_config.json", {"src_lang": "en_XX", "tgt_lang": "de_DE"})
    tokenizer = tokenizer_class.from_pretrained(folder, src_lang="en_XX", tgt_lang="de_DE")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    values = {
        "versions": f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}",
        "vocabulary": tokenizer.get_vocab(),
        "texts": TEXTS,
        "ids": [[3 if id == 0 else id + 1 for id in processor.encode(text)] for text in TEXTS],
        "source": tokenizer("the fox")["input_ids"],
        "target": tokenizer(text_target="the fox")["input_ids"],
    }
    write(folder / "expected.json", values)


GERMAN = [
    "Der schnelle braune Fuchs springt über den faulen Hund, und die anderen Füchse springen auch.",
    "Größe und Straße: „Paris“ ist die Hauptstadt Frankreichs; x = 加法 und die übrigen Hunde.",
]
RULES = {"\t": " ", "\n": " ", "\u00a0": " ", "\u200b": " ", "ﬁ": "fi", "É": "E", "…": "..."}

if __name__ == "__main__":
    make_bert("bert_uncased", {})
    make_bert("bert_cased", {"do_lower_case": False})
    make_bert("bert_accents", {"strip_accents": False, "tokenize_chinese_chars": False})
    make_roberta()
    pieces = dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]", pad_piece="<pad>")
    make_sentencepiece("albert", "spiece.model", {"model_type": "albert"}, **pieces)
    make_marian()
    make_mbart("mbart", transformers.MBartTokenizer)
    make_mbart("mbart50", transformers.MBart50Tokenizer)
    make_sentencepiece("sentencepiece", "tokenizer.model", {}, user_defined_symbols=["(", ")", '"', "-", "the"])
