"""Span QA against NumPy and hand-made logits: the loss, the best span over windows, predictions where they stand."""

import jax
import numpy as np
import pytest

from tests.data_room.test_questions import LONG, PIECES, SHORT, squad_file
from transformer_jax.data.tokenizers import TokenizerFile, load
from transformer_jax.errors import InputError
from transformer_jax.models import bert
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.span_qa import SpanQA, _answers, questions, span_scores
from transformer_jax.tasks.span_qa.questions import Questions, SquadJson

TASK = SpanQA(max_answer_tokens=4)
CFG = bert.Config(
    vocab_size=len(PIECES), max_length=12, width=16, num_layers=1, num_heads=2, heads=("span",), init_std=0.5
)
LOSS, EVALUATE, APPLY = (jax.jit(f, static_argnums=1) for f in (TASK.loss, TASK.evaluate, bert.apply))


@pytest.fixture(scope="module")
def params():
    return jax.jit(bert.init, static_argnums=1)(jax.random.key(1), CFG)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return str(tmp_path)


def data(tmp_path, folder, *asked, length=12, stride=3) -> Questions:
    path = squad_file(tmp_path / "a.json", *asked)
    return Questions(SquadJson(path, path, path), TokenizerFile(folder), length, stride)


def stacked(examples) -> dict[str, np.ndarray]:
    rows = [examples[i] for i in range(len(examples))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_loss_is_the_mean_over_start_and_end_among_the_context(tmp_path, folder, params):
    given = data(tmp_path, folder, SHORT, LONG)
    prepared = TASK.prepare(given, CFG, seed=0)
    batch = stacked(prepared.validation.examples)
    example = TASK.example(given)
    assert {n: (a.shape[1:], a.dtype) for n, a in batch.items()} == {n: (a.shape, a.dtype) for n, a in example.items()}
    batch = {name: np.concatenate([array, np.zeros_like(array[:1])]) for name, array in batch.items()}  # a padded row
    total, weight, sums = LOSS(params, CFG, batch)
    x_BTD = APPLY(params, CFG, batch["tokens"], types=batch["types"], lengths=batch["lengths"])
    logits_BT2 = np.asarray(bert.spans(params, CFG, x_BTD), np.float64)
    wanted = 0.0
    for row in range(len(batch["lengths"]) - 1):
        can = [0, *(t for t in range(batch["lengths"][row]) if batch["types"][row, t])]
        for side, name in enumerate(("starts", "ends")):
            logits = logits_BT2[row, can, side]
            wanted -= (logits[can.index(batch[name][row])] - np.log(np.exp(logits).sum())) / 2
    assert float(weight) == len(batch["lengths"]) - 1
    np.testing.assert_allclose(float(total), wanted, rtol=1e-5)
    assert sums == {"loss": (total, weight)}
    _, outputs = EVALUATE(params, CFG, batch)
    assert outputs["start_logits"].shape == outputs["end_logits"].shape == (len(batch["lengths"]), 12)
    np.testing.assert_allclose(outputs["end_logits"][0, 6], logits_BT2[0, 6, 1], rtol=1e-5)


def test_span_scores_stay_in_the_context():
    windows = [questions.Window(0, first=0, size=3, begin=2)]
    starts, ends = np.arange(6.0)[None], 10 * np.arange(6.0)[None]
    scores = span_scores(starts, ends, windows, max_tokens=2)[0]
    inf = -np.inf
    np.testing.assert_array_equal(scores, [[inf, inf], [inf, inf], [22, 32], [33, 43], [44, inf], [inf, inf]])


def test_the_best_span_of_all_windows_is_the_answer(tmp_path, folder):
    """Of LONG's windows the first says "the the" with 5 + 1, the second "Denver Broncos" with 4 + 3, which wins; high
    logits of [CLS], the question and padding, and of a span that is longer than 4 tokens or ends before it starts count
    for nothing. SHORT's answer is "The  Denver": token F1 with "Denver Broncos" 2/3 after the article is dropped.
    """
    prepared = TASK.prepare(data(tmp_path, folder, SHORT, LONG, length=13, stride=4), CFG, seed=0)
    windows = prepared.validation.reference.windows
    assert [(w.question, w.first, w.size) for w in windows] == [(0, 0, 7), (1, 0, 7), (1, 4, 7), (1, 8, 4)]
    starts, ends = np.zeros((2, 4, 13), np.float32)
    starts[:, :5], ends[:, :5] = 99, 99  # [CLS] who won ? [SEP]
    starts[3, 9:], ends[3, 9:] = 99, 99  # past the context
    starts[0, 5], ends[0, 7] = 8, 8  # the den ##ver
    starts[1, 5], ends[1, 6] = 5, 1
    starts[1, 11], ends[1, 7] = 6.5, 1.5  # 8, but ends before it starts
    starts[2, 7], ends[2, 10] = 4, 3  # den ##ver bron ##cos: tokens 6 to 9 of the context
    starts[2, 6], ends[2, 11] = 4.5, 3.5  # 8, but 6 tokens long
    outputs = {"start_logits": starts, "end_logits": ends}
    report = TASK.report({"loss": (6.0, 4.0)}, outputs, prepared.validation)
    f1 = 100 * (2 / 3 + 1) / 2
    assert report == pytest.approx({"loss_nats_per_window": 1.5, "exact_match_percent": 50, "f1_percent": f1})
    assert TASK.report({"loss": (6.0, 4.0)}, outputs, prepared.test) == report
    longer = SpanQA(max_answer_tokens=1).report({"loss": (6.0, 4.0)}, outputs, prepared.validation)
    assert longer["exact_match_percent"] == 0


def test_predict_is_the_best_of_all_spans(folder, params):
    """Against a loop over all windows and spans of a context that takes several."""
    _, question, context, _ = LONG
    tokenizer = load(folder)
    (found,) = TASK.predict(params, CFG, tokenizer, [f"{question}\t{context}"], top=3)
    asked, (ids, offsets) = tokenizer.encode(question), tokenizer.encode_with_offsets(context)
    scores: dict[tuple[int, int], list[float]] = {}
    for first in range(0, 12, 4):  # windows of 12 - 3 - 3 = 6 tokens, 12 - 4 - 4 = 4 apart
        shown = ids[first : first + 6]
        row = np.concatenate([[2], asked, [3], shown, [3]]).astype(np.int32)
        row, length = np.pad(row, (0, 12 - len(row))), len(row)
        types = (np.arange(12) >= 5) & (np.arange(12) < length)
        x = APPLY(params, CFG, row[None], types=types[None].astype(np.int32), lengths=np.array([length]))
        logits = np.asarray(bert.spans(params, CFG, x), np.float64)[0]
        for a in range(len(shown)):
            for b in range(a, min(a + 4, len(shown))):
                scores.setdefault((first + a, first + b), []).append(logits[5 + a, 0] + logits[5 + b, 1])
        if first + 6 >= len(ids):
            break
    total = sum(np.exp(max(of_span)) for of_span in scores.values())
    ranked: list[tuple[int, int]] = []
    for a, b in sorted(scores, key=lambda span: -max(scores[span])):
        if all(b < first or a > last for first, last in ranked):
            ranked.append((a, b))
    assert len(ranked) >= 3
    for (a, b), answer in zip(ranked[:3], [found, *found["others"]], strict=True):
        assert (answer["start"], answer["end"]) == (offsets[a, 0], offsets[b, 1])
        assert answer["answer"] == context[answer["start"] : answer["end"]]
        assert answer["probability"] == pytest.approx(np.exp(max(scores[a, b])) / total, rel=1e-4)
    assert found["question"] == question and set(found) == {
        *("question", "answer", "probability", "start", "end", "others")
    }
    assert TASK.describe(found).startswith(f"{question} {found['answer']} (")
    (single,) = TASK.predict(params, CFG, tokenizer, [f"{question}\t{context}"], top=1)
    assert single["others"] == [] and single["answer"] == found["answer"]


@pytest.mark.parametrize("line", ["Who won?", "Who won?\t ", "\tDenver won", ""])
def test_predict_needs_a_question_a_tab_and_a_context(folder, params, line):
    found, good = TASK.predict(params, CFG, load(folder), [line, ("Who won?", "Denver won")], top=1)
    assert "give a question, a TAB and the context" in found["error"] and good["answer"]


def test_models_and_settings_that_do_not_fit(tmp_path, folder):
    given = data(tmp_path, folder, SHORT)
    with pytest.raises(InputError, match="this task needs --model.heads span"):
        TASK.prepare(given, bert.Config(vocab_size=99), seed=0)
    with pytest.raises(InputError, match="ids up to 13, but model.vocab_size is 9"):
        TASK.prepare(given, bert.Config(vocab_size=9, heads=("span",)), seed=0)
    with pytest.raises(InputError, match="max_answer_tokens = 0"):
        SpanQA(max_answer_tokens=0)


def test_roberta_has_no_second_type(tmp_path, folder):
    """With one type for all tokens the context is still told from the question."""
    cfg = bert.Config(
        vocab_size=len(PIECES), max_length=12, width=16, num_layers=1, num_heads=2, heads=("span",), num_types=1
    )
    batch = stacked(TASK.prepare(data(tmp_path, folder, SHORT), cfg, seed=0).validation.examples)
    params = jax.jit(bert.init, static_argnums=1)(jax.random.key(1), cfg)
    _, outputs = EVALUATE(params, cfg, batch)
    x_BTD = APPLY(params, cfg, batch["tokens"], lengths=batch["lengths"])
    np.testing.assert_allclose(outputs["start_logits"][0, 5:], bert.spans(params, cfg, x_BTD)[0, 5:, 0], rtol=1e-5)
    assert (np.asarray(outputs["start_logits"])[:, 1:5] < -1e30).all()


@pytest.mark.parametrize("stride", [10, 5])
def test_an_answer_in_several_windows_is_one_answer(stride):
    """The certain answer of a context is certain, however many windows show it."""
    tokens, length = 45, 38
    around = labelled.Around(np.zeros(1), np.zeros(1), np.zeros(1))
    windows = questions.windows(0, np.zeros(5), np.arange(tokens), around, length, stride)
    at = [20 - window.first + window.begin for window in windows]
    inside = [w.begin <= p < w.begin + w.size for w, p in zip(windows, at, strict=True)]
    assert len(windows) > 2 and all(inside)
    logits = np.full((len(windows), length), -10.0, np.float32)
    logits[range(len(windows)), at] = 10.0
    offsets = np.stack([np.arange(tokens), np.arange(tokens) + 1], 1)
    found = _answers(span_scores(logits, logits, windows, 10), windows, offsets, "x" * tokens, 2)
    assert (found["start"], found["end"]) == (20, 21) and found["probability"] > 0.999
