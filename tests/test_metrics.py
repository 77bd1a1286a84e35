"""Metrics against numbers worked out by hand, published examples and the definitions."""

import math

import numpy as np
import pytest

from transformer_jax import figures, metrics

# ---- Classification


def test_binary_scores_by_hand():
    """tp 3, fp 1, fn 2, tn 4: precision 3/4, recall 3/5, F1 2/3, Matthews (3*4 - 1*2) / sqrt(4*5*5*6)."""
    labels = np.array([1] * 5 + [0] * 5)
    predicted = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    logits = np.stack([1.0 - predicted, predicted], -1).astype(np.float32)
    scores = metrics.classification(logits, labels, ("negative", "positive"))
    assert scores["accuracy"] == scores["f1_micro"] == scores["precision_micro"] == scores["recall_micro"] == 0.7
    assert (scores["precision"], scores["recall"]) == (3 / 4, 3 / 5)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["matthews"] == pytest.approx(10 / math.sqrt(600))
    assert scores["precision_macro"] == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert scores["recall_macro"] == pytest.approx((3 / 5 + 4 / 5) / 2)
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 8 / 11) / 2)
    assert scores["roc_auc"] == pytest.approx(0.7)  # (recall of 1 + recall of 0) / 2: one threshold
    assert all(type(value) is float for value in scores.values())


def test_roc_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    score = rng.integers(0, 9, 40) / 8  # with ties
    binary = metrics.classification(np.stack([-score, score], -1), labels % 2, ("a", "b"))
    assert binary["roc_auc"] == pytest.approx(pairs_in_order(score, labels % 2 == 1))
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rest = [pairs_in_order(shares[:, c], labels == c) for c in range(3)]
    assert metrics.classification(logits, labels, "abc")["roc_auc"] == pytest.approx(np.mean(rest))


def pairs_in_order(score, positive) -> float:
    difference = score[positive][:, None] - score[~positive]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def test_three_classes_by_hand():
    """Rows right, columns predicted: [[2, 1, 0], [0, 1, 0], [0, 1, 0]]; Gorodkin's R_K of it."""
    labels, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 1])
    scores = metrics.classification(np.eye(3)[predicted], labels, ("a", "b", "c"))
    assert scores["accuracy"] == 0.6
    assert scores["f1_macro"] == pytest.approx((0.8 + 0.5 + 0.0) / 3)
    assert scores["precision_macro"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert scores["recall_macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    right, n, t, p = 3, 5, np.array([3, 1, 1]), np.array([2, 3, 0])
    assert scores["matthews"] == pytest.approx((right * n - t @ p) / math.sqrt((n**2 - p @ p) * (n**2 - t @ t)))
    assert "f1" not in scores


@pytest.mark.filterwarnings("error")
def test_a_class_without_examples_leaves_roc_auc_out_and_nothing_is_nan():
    logits = np.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    scores = metrics.classification(logits, np.array([0, 0]), ("a", "b", "c"))
    assert "roc_auc" not in scores and scores["accuracy"] == 1 and scores["f1_macro"] == 1
    assert scores["matthews"] == 0
    scores = metrics.classification(logits[:, :2], np.array([1, 1]), ("a", "b"))
    assert "roc_auc" not in scores and scores["f1"] == 0
    assert all(math.isfinite(value) for value in scores.values())


def test_wilson_interval():
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3)."""
    assert [round(x, 4) for x in metrics.wilson(81, 263)] == [0.2553, 0.3662]
    assert [round(x, 4) for x in metrics.wilson(15, 148)] == [0.0624, 0.1605]
    assert [round(x, 4) for x in metrics.wilson(0, 20)] == [0.0, 0.1611]
    assert [round(x, 4) for x in metrics.wilson(29, 29)] == [0.8830, 1.0]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 2)), np.array([0, 2]), r"label 2 of example 1 is none of 2 \(no, yes\)"),
        (np.zeros((2, 2)), np.array([-1, 0]), r"label -1 of example 0"),
        (np.zeros((2, 3)), np.array([0, 1]), r"logits \(2, 3\) for 2 labels of 2 classes"),
        (np.zeros((0, 2)), np.zeros(0, int), r"int64\(0,\)"),
    ],
)
def test_classification_refuses(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.classification(logits, labels, ("no", "yes"))


# ---- Regression


def test_regression_by_hand():
    """Pearson of (1, 2, 3, 5) and (1, 2, 3, 10); the ranks agree."""
    predicted, wanted = np.array([1.0, 2.0, 3.0, 5.0]), np.array([1.0, 2.0, 3.0, 10.0])
    scores = metrics.regression(predicted, wanted)
    assert scores["pearson"] == pytest.approx(20 / math.sqrt(8.75 * 50))
    assert scores["spearman"] == pytest.approx(1)
    assert scores["mean_squared_error"] == 6.25
    assert metrics.regression(-predicted, wanted)["spearman"] == pytest.approx(-1)
    tied = metrics.regression(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))  # ranks 1.5, 1.5, 3
    assert tied["spearman"] == pytest.approx(math.sqrt(3) / 2)


@pytest.mark.filterwarnings("error")
def test_a_model_that_has_diverged_is_scored_all_the_same():
    """scikit-learn refuses what is not finite, which would end the run."""
    scores = metrics.classification(np.array([[0.0, 1.0], [np.nan, 0.0]]), np.array([1, 0]), ("a", "b"))
    assert "roc_auc" not in scores and all(map(math.isfinite, scores.values()))
    scores = metrics.regression(np.array([1.0, np.inf]), np.array([1.0, 2.0]))
    assert scores == {"pearson": 0.0, "spearman": 0.0, "mean_squared_error": math.inf}


def test_correlation_with_a_constant_is_zero():
    scores = metrics.regression(np.full(3, 0.1, np.float32), np.array([1.0, 2.0, 3.0]))
    assert scores["pearson"] == scores["spearman"] == 0 and scores["mean_squared_error"] > 0
    assert metrics.regression(np.ones(1), np.ones(1)) == {"pearson": 0, "spearman": 0, "mean_squared_error": 0}
    with pytest.raises(ValueError, match=r"\(2,\) predictions for \(3,\)"):
        metrics.regression(np.ones(2), np.ones(3))


# ---- Entities


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-PER I-PER O B-LOC", [("PER", 1, 3), ("LOC", 4, 5)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),  # I- after another type begins one
        ("I-LOC I-LOC O I-LOC", [("LOC", 0, 2), ("LOC", 3, 4)]),  # IOB1
        ("I-LOC B-LOC I-LOC", [("LOC", 0, 1), ("LOC", 1, 3)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
        ("S-PER S-PER B-PER E-PER", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 4)]),  # BIOES
        ("B-PER I-PER E-PER I-PER", [("PER", 0, 3), ("PER", 3, 4)]),
        ("U-LOC B-LOC L-LOC L-LOC", [("LOC", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)]),  # BILOU
        ("O O", []),
    ],
)
def test_entity_spans(tags, spans):
    assert metrics.entity_spans(tags.split()) == spans


def test_entities_of_seqevals_readme():
    """Its example: one entity right of two wanted and two found; F1 0.50."""
    wanted = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    tags = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert metrics.entities(tags, wanted) == {"entity_precision": 0.5, "entity_recall": 0.5, "entity_f1": 0.5}


def test_entities_of_conllevals_documentation():
    """Its sample output: 459 phrases, 539 found, 371 correct; precision 68.83, recall 80.83, FB1 74.35 (in percent)."""
    right, missed, made_up = (["B-NP"], ["B-NP"]), (["O"], ["B-NP"]), (["B-NP"], ["O"])
    sentences = [right] * 371 + [missed] * (459 - 371) + [made_up] * (539 - 371)
    tags, wanted = zip(*sentences, strict=True)
    assert [round(100 * value, 2) for value in metrics.entities(tags, wanted).values()] == [68.83, 80.83, 74.35]


def test_entities_need_type_and_both_ends():
    wanted = [["B-PER", "I-PER", "O", "B-LOC", "O", "B-ORG"], ["O", "B-LOC", "I-LOC"]]
    tags = [["B-PER", "I-PER", "O", "B-ORG", "O", "O"], ["O", "B-LOC", "O"]]
    scores = metrics.entities(tags, wanted)  # one right of 3 found and 4 wanted
    assert scores == pytest.approx({"entity_precision": 1 / 3, "entity_recall": 1 / 4, "entity_f1": 2 / 7})
    assert metrics.entities([["O"]], [["O"]])["entity_f1"] == 0
    with pytest.raises(ValueError, match="sentence 0: 1 predicted tags for 2 words"):
        metrics.entities([["O"]], [["O", "O"]])


# ---- Answers


@pytest.mark.parametrize(
    ("answer", "rights", "exact", "f1"),
    [
        ("The Denver Broncos!", ("Denver Broncos",), 100, 100),  # article, case, punctuation
        ("an  apple,\ta day", ("apple day",), 100, 100),
        ("theory", ("ory",), 0, 0),  # an article is a word
        ("Denver", ("Denver Broncos", "the Broncos"), 0, 200 / 3),  # precision 1, recall 1/2
        ("Broncos", ("Denver Broncos", "the Broncos"), 100, 100),  # the best reference
        ("a b b c", ("b b b",), 0, 100 * 2 * (2 / 3) * (2 / 3) / (4 / 3)),  # counted with repetitions
        ("state-of-the-art", ("stateoftheart",), 100, 100),  # punctuation is dropped, not replaced
        ("", ("Denver",), 0, 0),
    ],
)
def test_squad_by_hand(answer, rights, exact, f1):
    assert metrics.squad([answer], [rights]) == pytest.approx({"exact_match_percent": exact, "f1_percent": f1})


def test_squad_is_a_mean_over_questions():
    scores = metrics.squad(["x", "Denver"], [["x"], ["Denver Broncos"]])
    assert scores == pytest.approx({"exact_match_percent": 50, "f1_percent": 100 * (1 + 2 / 3) / 2})
    with pytest.raises(ValueError, match="without a right answer"):
        metrics.squad(["x"], [[]])


# ---- Pictures


def test_pictures_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 20, 300), rng.integers(0, 20, 300)
    names = [f"a_long_name_of_$class_{i}$" for i in range(20)]  # dollars are no mathematics
    figures.confusion(labels, predicted, names, tmp_path / "confusion.png")
    figures.roc(rng.normal(size=300) + (labels > 9), (labels > 9).astype(int), tmp_path / "roc.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("confusion.png", "roc.png"))
    with pytest.raises(ValueError, match="two classes"):
        figures.roc(np.ones(3), np.ones(3, int), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


# ---- Text

SAID = ["The dog bit the man.", "It was not unexpected.", "The man bit him first.", "Nothing else happened today."]
WANTED = ["The dog had bit the man.", "No one was surprised.", "The man bit him first.", "Nothing happened today."]


def test_bleu_by_hand():
    """5 of 6 words, 3 of 5 pairs, 2 of 4 and 1 of 3; one word of 7 too short (Papineni et al. 2002, section 2.3)."""
    scores = metrics.bleu(["a b c d e f"], ["a b c d x f g"])
    brevity, precisions = math.exp(1 - 7 / 6), (5 / 6) * (3 / 5) * (2 / 4) * (1 / 3)
    assert scores["bleu"] == pytest.approx(100 * brevity * precisions**0.25)
    assert metrics.bleu(["A b c d"], ["a b c d"])["bleu"] < 100, "cased"
    assert metrics.bleu(["a b, c d."], ["a b , c d ."])["bleu"] == pytest.approx(100), "tokenised by 13a"


def test_bleu_and_chrf_are_sacrebleus():
    import sacrebleu

    found, other = metrics.bleu(SAID, WANTED), metrics.chrf(SAID, WANTED)
    assert found["bleu"] == sacrebleu.corpus_bleu(SAID, [WANTED]).score
    assert other["chrf"] == sacrebleu.corpus_chrf(SAID, [WANTED]).score
    settings, version = "nrefs:1|bs:1000|seed:12345|case:mixed", f"version:{sacrebleu.__version__}"
    assert found["bleu_signature"] == f"{settings}|eff:no|tok:13a|smooth:exp|{version}"
    assert other["chrf_signature"] == f"{settings}|eff:yes|nc:6|nw:0|space:no|{version}"


def test_chrf_of_texts_that_have_little_in_common():
    assert 0 < metrics.chrf(["a", "xyz"], ["a", "uvw"])["chrf"] < 100


def test_chrf_by_hand():
    """Of characters 2 of 3, of pairs 1 of 2, of threes none of 1, on both sides: recall and precision are one."""
    assert metrics.chrf(["abc"], ["abd"])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_the_interval_of_text_scores_is_the_same_each_time_and_narrows():
    for measure, name in ((metrics.bleu, "bleu"), (metrics.chrf, "chrf"), (metrics.rouge, "rouge2")):
        few, again, many = measure(SAID, WANTED), measure(SAID, WANTED), measure(SAID * 25, WANTED * 25)
        assert few == again
        assert few[f"{name}_low"] < few[name] < few[f"{name}_high"]
        assert many[f"{name}_high"] - many[f"{name}_low"] < 0.5 * (few[f"{name}_high"] - few[f"{name}_low"])
        assert {type(value) for value in few.values()} == {float, str}


def test_rouge_by_hand():
    """Stems: "cats" is "cat". Words: 5 of 6 and 5 of 5; pairs: 3 of 5 and 3 of 4; the longest common subsequence
    has 5 words."""
    scores = metrics.rouge(["The cat sat on the mat."], ["the cats on the mat"])
    f1 = {"rouge1": (5 / 6, 1), "rouge2": (3 / 5, 3 / 4), "rougeL": (5 / 6, 1)}
    for name, (precision, recall) in f1.items():
        assert scores[name] == pytest.approx(100 * 2 * precision * recall / (precision + recall))


def test_exact_match():
    scores = metrics.exact_match(["a b ", "a", "c"], ["a b", "A", "c"])
    assert scores["exact_match"] == 2 / 3
    assert (scores["exact_match_low"], scores["exact_match_high"]) == metrics.wilson(2, 3)


def test_texts_without_references_are_refused():
    for measure in (metrics.bleu, metrics.chrf, metrics.rouge, metrics.exact_match):
        with pytest.raises(ValueError, match="2 texts to score for 1 references"):
            measure(["a", "b"], ["a"])
        with pytest.raises(ValueError, match="0 texts to score"):
            measure([], [])


def test_the_picture_by_length_has_as_many_bars_as_there_are_groups(tmp_path):
    lengths = np.array([1] * 8 + [9])  # of one length mostly
    said = [f"a {i}" for i in range(9)]
    figures.by_length(metrics.exact_match, lengths, said, said, tmp_path / "a.png")
    figures.by_length(metrics.exact_match, lengths[:1], said[:1], said[:1], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


# ---- Top k and calibration


def test_top_counts_ties_once():
    scores_EC = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 5.0, 2.0]])
    labels_E = np.array([1, 1, 0])
    assert metrics.top(scores_EC, labels_E, 1).tolist() == [False, False, False], "the first of equals is the choice"
    assert metrics.top(scores_EC, labels_E, 2).tolist() == [True, True, False]
    assert metrics.top(scores_EC, labels_E, 3).all()


def test_calibration_by_hand():
    confidence_E, right_E = np.array([0.0, 0.45, 0.5, 0.9, 1.0]), np.array([False, True, False, True, True])
    found = metrics.calibration(confidence_E, right_E, bins=2)  # (0, 0.5] and (0.5, 1]
    np.testing.assert_array_equal(found.examples, [3, 2])
    np.testing.assert_allclose(found.confidence, [0.95 / 3, 0.95])
    np.testing.assert_allclose(found.accuracy, [1 / 3, 1])
    assert found.error == pytest.approx((3 * abs(0.95 - 1) / 3 + 2 * 0.05) / 5)
    assert metrics.calibration(np.array([]), np.array([], bool)).error == 0


# ---- Scripts


@pytest.mark.parametrize(
    ("hypothesis", "reference", "tokenizer"),
    [
        ("我们住在北京的东边。", "我们住在北京的西边。", "zh"),
        ("わたしは東京に住んでいます", "わたしは京都に住んでいます", "zh"),
        ("ฉันอาศัยอยู่ในกรุงเทพ", "ฉันอาศัยอยู่ในเชียงใหม่", "char"),
        ("मैं दिल्ली में अभी रहता हूँ", "मैं मुंबई में अभी रहता हूँ", "13a"),
        ("we live in the east of Beijing 北京", "we live in the west of Beijing 北京", "13a"),
    ],
)
def test_bleu_finds_the_words_of_any_script(hypothesis, reference, tokenizer):
    """13a takes a Chinese or Thai sentence for one word, and half a right translation for none."""
    found = metrics.bleu([hypothesis], [reference])
    assert f"tok:{tokenizer}" in str(found["bleu_signature"])
    assert metrics.bleu([reference], [reference])["bleu"] == pytest.approx(100)
    assert 10 < float(found["bleu"]) < 95


@pytest.mark.parametrize("text", ["我们住在北京", "Привет, мир", "मैं दिल्ली में", "été à Genève", "ฉันอาศัยอยู่"])
def test_rouge_knows_the_words_of_any_script(text):
    """rouge-score itself finds no word in most of them, and gives an exact copy 0."""
    found = metrics.rouge([text, text], [text, text.upper()])
    assert found["rouge1"] == found["rougeL"] == 100 and "tok:words|stem:none" in str(found["rouge_signature"])
    english = metrics.rouge(["the cats sat"], ["the cat sat"])
    assert english["rouge1"] == 100 and "stem:porter" in str(english["rouge_signature"])


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("北京市", "北京", 0, 100 * 4 / 5),  # 2 of 3 characters, 2 of 2
        ("《红楼梦》。", "红楼梦", 100, 100),
        ("दिल्ली।", "दिल्ली", 100, 100),
        ("в Москве", "Москве", 0, 100 * 2 / 3),
        ("the café", "Café", 100, 100),  # Latin: as the official script
    ],
)
def test_answers_in_any_script(answer, right, exact, f1):
    assert metrics.squad([answer], [[right]]) == {
        "exact_match_percent": exact,
        "f1_percent": pytest.approx(f1),
    }
