"""Fixtures that hold the tokenizers of folders to Transformers': small vocabularies of each kind, texts in 32 scripts.

Runs where Transformers, sentencepiece and protobuf are installed (the library needs none), from the project root:

    python tools/make_tokenizer_parity.py              # rewrites tests/data/tokenizers_parity/

A fixture is a folder as a snapshot has it. expected.json.gz beside them has, for each folder and text, what
Transformers' AutoTokenizer makes of it: the ids, the ids with what the post-processor adds, and the ids decoded.
"""

import gzip
import json
import pathlib
import random
import shutil
import unicodedata
from typing import Any

import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path("tests/data/tokenizers_parity")
SCRIPTS = {
    "Latin": "The quick brown fox jumps over the lazy dog, isn't it? "
    "Zażółć gęślą jaźń, Übergröße, naïve café, İstanbul.",
    "Cyrillic": "Съешь ещё этих мягких французских булок, да выпей же чаю.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Armenian": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար։",
    "Georgian": "ყველა ადამიანი იბადება თავისუფალი.",
    "Hebrew": "דג סקרן שט בים מאוכזב, שָׁלוֹם עֲלֵיכֶם.",
    "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم، السَّلامُ عَلَيْكُم؟",
    "Persian": "می‌خواهم بروم به خانه‌ی دوست.",
    "Urdu": "تمام انسان آزاد پیدا ہوئے ہیں۔",
    "Syriac": "ܟܠ ܒܪܢܫܐ ܡܬܝܠܕ ܚܐܪܐ",
    "Thaana": "ހުރިހާ އިންސާނުން ވެސް އުފަންވަނީ",
    "Devanagari": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता। क़लम",
    "Bengali": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা নিয়ে জন্মগ্রহণ করে।",
    "Gurmukhi": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ",
    "Gujarati": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો",
    "Tamil": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்",
    "Telugu": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును",
    "Kannada": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ",
    "Malayalam": "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും",
    "Sinhala": "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน",
    "Lao": "ມະນຸດເກີດມາມີສິດເສລີພາບ",
    "Burmese": "လူတိုင်းသည် တူညီလွတ်လပ်သော",
    "Khmer": "មនុស្សទាំងអស់ កើតមកមានសេរីភាព",
    "Tibetan": "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་",
    "Ethiopic": "የሰው ልጅ ሁሉ ሲወለድ ነጻና እኩል ነው።",
    "Chinese": "人人生而自由，在尊嚴和權利上一律平等。我们爱自然语言处理！",
    "Japanese": "すべての人間は、生まれながらにして自由でありｽﾅｯﾌﾟﾘﾝｸﾞ ガギグ が",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 각 나 다",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng, rất đẹp Ầ ầ",
    "Mongolian": "ᠬᠦᠮᠦᠨ ᠪᠦᠷ ᠲᠥᠷᠥᠵᠦ ᠮᠡᠨᠳᠡᠯᠡᠬᠦ",
    "Cherokee": "ᏂᎦᏓ ᎠᏂᏴᏫ ᏂᎨᎫᏓᎸᎾ",
}
ODD = [
    *(
        "",
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        " a",
        "a ",
        "  lead",
        "trail  ",
        "two  spaces   three",
        "line\nbreak\r\nand\ttab\n\n",
    ),
    *(
        "x\u0000y",
        "x\ufffdz",
        "\u00a0nbsp\u3000wide\u2009thin\u200bzero\u200d\u2060\ufeffbom",
        "\u2028line\u2029para\u0085next",
    ),
    *("\u0007bell\u001b[0mescape\u007f", "soft\u00adhyphen", "\u202eright to left\u202c", "\ue000private \U0010fffd"),
    *("e\u0301 e\u0323\u0302 a\u0300\u0301 \u0301alone", "ﬁ ﬀ ª º ² ½ ① Ⅷ ㎏ ﷺ", "ÅΩ K Å", "ſ ẞ ß İ ı Σς"),
    *(
        "🙂👍 👩‍👩‍👧 emoji🙂inside 🇩🇪🏳️‍🌈 👍🏽",
        "1234567890 12,345.67 ١٢٣ १२३ 一二三",
        "a_b-c.d/e\\f@g#h$i%j^k&l*m(n)o+p=q~r`s|t{u}v[w]x:y;z",
    ),
    *(
        "don't can't I'm you're he'd we'll they've 'tis rock 'n' roll",
        "Hello , world . Is it ? Yes ! do n't 's 've ' m",
    ),
    *(
        "``quoted'' text „deutsch“ «français» “curly” ‘single’",
        "def f(x):\n    return x  # comment",
        "▁lower one eighth ▁▁two",
    ),
    *(
        "CamelCase snake_case SHOUTING mIxEd",
        "http://example.com/?q=1&r=2#frag user@example.com",
        "<0x41> <0xE2><0x82><0xAC> ##ing Ġword</w>",
    ),
]
SPECIALS = [
    *(
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<mask>",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[UNK]",
        "[MASK]",
        "<|endoftext|>",
        "<bos>",
    ),
    *("<eos>", "<extra_id_0>", "<extra_id_1>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "[E1]", "[/E1]"),
    *("covid19", "<n>", "en_XX", "de_DE", ">>deu<<", "<s>NOTUSED", "<start_of_turn>"),
]


def texts() -> list[str]:
    """Every script as it is and decomposed, the odd ones, special tokens in many places, and mixtures by a seed."""
    made = [*SCRIPTS.values(), *(unicodedata.normalize("NFD", text) for text in SCRIPTS.values())]
    made += [text.upper() for text in list(SCRIPTS.values())[:6]] + ODD
    for token in SPECIALS:
        made += [
            token,
            f"a {token} b",
            f"a{token}b",
            f"  {token}  ",
            f"{token}{token}",
            f"Paris is the {token} of France.",
        ]
    draw = random.Random(0)
    words = [word for text in [*SCRIPTS.values(), *ODD] for word in text.split(" ")] + SPECIALS
    made += [draw.choice(["", " ", "  "]).join(draw.choices(words, k=draw.randint(1, 8))) for _ in range(60)]
    return list(dict.fromkeys(made))


CORPUS = [*SCRIPTS.values(), *[SCRIPTS["Latin"]] * 6, "Paris is the capital of France. def add(a, b): return a + b"] * 8


def write(file: pathlib.Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


def folder(name: str, model_type: str, **settings: Any) -> pathlib.Path:
    made = FOLDER / name
    made.mkdir(parents=True)
    write(made / "config.json", {"model_type": model_type} if model_type else {})
    if settings:
        write(made / "tokenizer_config.json", settings)
    return made


# ---- Vocabularies --------------------------------------------------------------------------------------------------


def byte_level(special: list[str], size: int = 420) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def wordpiece(lowercase: bool) -> Tokenizer:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def spm(file: pathlib.Path, **options: Any) -> None:
    """A SentencePiece model whose map of characters is a small part of nmt_nfkc: the whole has a quarter megabyte."""
    rules = file.with_suffix(".tsv")
    sources = [
        chr(c) for c in [*range(0xFF66, 0xFFA0), 0xAA, 0xBA, 0xB2, 0xBD, 0x2460, 0xFB01, 0xFB00, 0x3000, 0xA0, 0x200B]
    ]
    sources += ["\t", "\n", "\u2009", "\u2028", "\u0085", "İ"]
    sources += [a + b for a in (chr(c) for c in range(0xFF76, 0xFF85)) for b in "ﾞﾟ"]
    composed = {unicodedata.normalize("NFD", c): c for text in SCRIPTS.values() for c in text}
    pairs = {source: unicodedata.normalize("NFKC", source) for source in sources} | composed
    pairs |= {"\t": " ", "\n": " ", "\u200b": " ", "\u2028": " ", "\u0085": " "}
    pairs = {a: b for a, b in pairs.items() if a != b}
    rules.write_text(
        "".join(
            f"{' '.join(f'{ord(c):X}' for c in a)}\t{' '.join(f'{ord(c):X}' for c in b)}\n" for a, b in pairs.items()
        )
    )
    corpus = file.with_suffix(".txt")
    corpus.write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(file.with_suffix("")),
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        **({} if options.get("normalization_rule_name") else {"normalization_rule_tsv": str(rules)}),
        **{"vocab_size": 700, "character_coverage": 0.98} | options,
    )
    file.with_suffix(".model").replace(file)
    for other in (rules, corpus, file.with_suffix(".vocab")):
        other.unlink()


BPE_MODEL = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "split_digits": True}
BPE_MODEL |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "vocab_size": 1000}


def saved_by_transformers(
    source: pathlib.Path, name: str, model_type: str, *, keep: tuple[str, ...] = ()
) -> pathlib.Path:
    """A folder as `save_pretrained` writes it, from one that holds the vocabulary alone."""
    target = FOLDER / name
    target.mkdir()
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(target)
    write(target / "config.json", {"model_type": model_type})
    return target


# ---- Folders -------------------------------------------------------------------------------------------------------


def make_byte_level() -> None:
    made = folder("gpt2_files", "gpt2")
    byte_level(["<|endoftext|>"]).model.save(str(made))
    made = folder("gpt2_chat", "gpt2", tokenizer_class="GPT2Tokenizer", errors="replace", model_max_length=64)
    byte_level(["<|endoftext|>"]).model.save(str(made))
    write(made / "special_tokens_map.json", {"eos_token": "<|im_end|>", "pad_token": "[PAD]"})
    write(made / "added_tokens.json", {"<|im_start|>": 420, "<|im_end|>": 421, "[PAD]": 422, "covid19": 423})
    roberta = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = folder("roberta_files", "roberta", add_prefix_space=True)
    byte_level(roberta).model.save(str(made))
    saved_by_transformers(made, "roberta", "roberta")
    made = folder("bart", "bart", tokenizer_class="BartTokenizer", model_max_length=1024)
    inner = byte_level(roberta)
    inner.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    inner.save(str(made / "tokenizer.json"))
    made = folder(
        "llama3", "llama", tokenizer_class="PreTrainedTokenizerFast", bos_token="<|begin_of_text|>", eos_token="<eos>"
    )
    inner = byte_level(["<|begin_of_text|>", "<eos>", "<|im_start|>", "<|im_end|>"])
    inner.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|>:0 $A:0",
                pair="<|begin_of_text|>:0 $A:0 <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", 0)],
            ),
        ]
    )
    inner.save(str(made / "tokenizer.json"))
    shutil.copytree(made, FOLDER / "llama3_named_llama")
    write(
        FOLDER / "llama3_named_llama/tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<eos>",
            "add_bos_token": False,
        },
    )
    made = folder(
        "qwen2",
        "qwen2",
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        added_tokens_decoder={
            str(420 + i): {
                "content": t,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
                "special": i < 3,
            }
            for i, t in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "covid19"))
        },
    )
    inner = byte_level([])
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    inner.add_tokens(["covid19"])
    inner.save(str(made / "tokenizer.json"))
    made = folder("text_is_text", "gpt2", tokenizer_class="GPT2Tokenizer", split_special_tokens=True)
    byte_level(["<|endoftext|>"]).save(str(made / "tokenizer.json"))
    made = folder("prefix_space", "gpt2", tokenizer_class="GPT2Tokenizer", add_prefix_space=True, add_bos_token=True)
    byte_level(["<|endoftext|>"]).model.save(str(made))


def make_wordpiece() -> None:
    made = folder("bert_uncased", "bert")
    wordpiece(True).model.save(str(made))
    made = folder("electra_cased", "electra", do_lower_case=False, strip_accents=False, tokenize_chinese_chars=False)
    wordpiece(False).model.save(str(made))
    saved = saved_by_transformers(FOLDER / "bert_uncased", "bert_recased", "bert")
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    write(saved / "tokenizer_config.json", settings | {"do_lower_case": False, "clean_up_tokenization_spaces": True})
    made = folder(
        "bert_markers",
        "bert",
        tokenizer_class="BertTokenizer",
        additional_special_tokens=["[E1]", "[/E1]"],
        strip_accents=False,
    )
    inner = wordpiece(True)
    inner.add_special_tokens(["[E1]", "[/E1]"])
    inner.add_tokens(["covid19"])
    inner.save(str(made / "tokenizer.json"))
    made = folder("bert_legacy", "bert", do_lower_case=True)
    wordpiece(True).model.save(str(made))
    write(
        made / "special_tokens_map.json",
        {
            "additional_special_tokens": ["[E1]", "[/E1]"],
            "mask_token": {
                "content": "[MASK]",
                "lstrip": True,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            },
        },
    )
    write(made / "added_tokens.json", {"[E1]": 900, "[/E1]": 901, "covid19": 902})


def make_unigram() -> None:
    t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    made = folder("t5_model", "t5", extra_ids=5)
    spm(made / "spiece.model", **t5)
    saved_by_transformers(made, "t5", "t5")
    made = folder("t5_user", "mt5", tokenizer_class="T5Tokenizer", extra_ids=0, model_max_length=512)
    spm(made / "spiece.model", **t5, user_defined_symbols=["<n>", "①", "Ａ"])
    albert = {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": "[CLS],[SEP],[MASK]",
        "pad_piece": "<pad>",
    }
    made = folder("albert_model", "albert")
    spm(made / "spiece.model", **albert)
    saved = saved_by_transformers(made, "albert", "albert")
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    write(saved / "tokenizer_config.json", settings | {"do_lower_case": False, "keep_accents": True})
    made = folder("xlm_roberta_model", "xlm-roberta")
    spm(made / "sentencepiece.bpe.model")
    saved_by_transformers(made, "xlm_roberta", "xlm-roberta")
    made = folder("camembert_model", "camembert")
    spm(made / "sentencepiece.bpe.model", user_defined_symbols=["</s>NOTUSED"], vocab_size=600)
    made = folder("mbart_model", "mbart", tokenizer_class="MBartTokenizer", src_lang="en_XX", tgt_lang="de_DE")
    spm(made / "sentencepiece.bpe.model")
    saved_by_transformers(made, "mbart", "mbart")
    made = folder("mbart50_model", "mbart", tokenizer_class="MBart50Tokenizer", src_lang="de_DE", tgt_lang="en_XX")
    spm(made / "sentencepiece.bpe.model")
    saved_by_transformers(made, "mbart50", "mbart")
    made = folder("marian", "marian", tokenizer_class="MarianTokenizer", source_lang="en", target_lang="de")
    pieces = {"</s>": 0, "<unk>": 1, ">>deu<<": 2}
    for side in ("source.spm", "target.spm"):
        spm(made / side, **({} if side == "source.spm" else {"vocab_size": 620}))
        processor = sentencepiece.SentencePieceProcessor(model_file=str(made / side))
        for i in range(3, processor.get_piece_size()):
            if i % 10 < 9:
                pieces.setdefault(processor.id_to_piece(i), len(pieces))
    write(made / "vocab.json", pieces | {"<pad>": len(pieces)})


def make_sentencepiece_bpe() -> None:
    llama = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1} | BPE_MODEL
    made = folder(
        "llama2_model", "llama", tokenizer_class="LlamaTokenizer", add_bos_token=True, add_eos_token=False, legacy=False
    )
    spm(made / "tokenizer.model", **llama)
    saved_by_transformers(made, "llama2", "llama")
    made = folder(
        "llama2_legacy",
        "llama",
        tokenizer_class="LlamaTokenizerFast",
        add_bos_token=True,
        legacy=True,
        clean_up_tokenization_spaces=False,
    )
    shutil.copyfile(FOLDER / "llama2_model/tokenizer.model", made / "tokenizer.model")
    made = folder("gemma_model", "gemma", tokenizer_class="GemmaTokenizer", add_bos_token=True)
    gemma = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"} | BPE_MODEL
    spm(
        made / "tokenizer.model",
        **gemma | {"add_dummy_prefix": False},
        user_defined_symbols=["<mask>", "<start_of_turn>"],
    )
    saved_by_transformers(made, "gemma", "gemma")


def expected(name: str, asked: list[str]) -> dict[str, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / name)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    roles = {
        role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    }
    return {
        "class": type(tokenizer).__name__,
        "length": len(tokenizer),
        "roles": roles,
        "ids": ids,
        "framed": [tokenizer(text)["input_ids"] for text in asked[:8]],
        "decoded": [tokenizer.decode(one) for one in ids],
        **(
            {"pieces": spm_pieces(name, asked)}
            if name.endswith(("_model", "_user")) and name[:5] not in ("llama", "gemma")
            else {}
        ),
    }


def spm_pieces(name: str, asked: list[str]) -> list[list[str]]:
    """What SentencePiece itself makes of the texts."""
    file = next(file for file in (FOLDER / name).iterdir() if file.suffix == ".model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [processor.encode(text, out_type=str) for text in asked]


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    make_byte_level()
    make_wordpiece()
    make_unigram()
    make_sentencepiece_bpe()
    asked = texts()
    names = sorted(path.name for path in FOLDER.iterdir())
    values = {name: expected(name, asked) for name in names}
    versions = {m.__name__: m.__version__ for m in (transformers, tokenizers, sentencepiece)}
    data = json.dumps(
        {"versions": versions, "texts": asked, "folders": values}, ensure_ascii=False, separators=(",", ":")
    )
    (FOLDER / "expected.json.gz").write_bytes(gzip.compress(data.encode(), 9, mtime=0))
    print(len(names), "folders", len(asked), "texts")
