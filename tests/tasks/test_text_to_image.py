"""Pictures from words: codes, rows, the loss, guided drawing, a run from its path alone, and what is refused."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import transformer_jax
from tools.targets import collectives
from transformer_jax import restore, tasks
from transformer_jax.__main__ import main
from transformer_jax.data import tokenizers
from transformer_jax.decoding import decode, sets
from transformer_jax.decoding.guidance import Guided
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Optim
from transformer_jax.tasks.contrastive import paired
from transformer_jax.tasks.text_to_image import Draw, captioned, codes
from transformer_jax.tasks.text_to_image.tokenizer import PictureTokenizer, TextAndCodes
from transformer_jax.train import loop

T, K, S = 3, 4, 4  # tokens of a caption, codes, codes of a picture
MODEL = gpt.Config(vocab_size=65, max_length=T + S, width=16, num_layers=1, num_heads=2, mlp_width=32, init_std=0.3)
COLOURS = {"red": (220, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 220), "white": (255, 255, 255)}


@pytest.fixture
def source(tmp_path):
    """Pictures of one colour, eight of each, and a table with their captions."""
    rows = []
    for i in range(32):
        name = list(COLOURS)[i % 4]
        rows.append({"file": f"{i}.png", "caption": f"a {name}"})
        Image.fromarray(np.full((10, 12, 3), COLOURS[name], np.uint8)).save(tmp_path / f"{i}.png")
    table = tmp_path / "captions.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paired.Table((str(table),), (str(table),), "file", "caption", pictures=str(tmp_path))


def data(source, **changes):
    spec = TextAndCodes(tokenizers.TrainWordPiece(60), num_codes=K, patch=4, size=8)
    return captioned.Captioned(source, dataclasses.replace(spec, **changes), caption_length=T)


# ---- Codes ---------------------------------------------------------------------------------------------------------


def test_codes_are_the_nearest_patches():
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (6, 8, 12, 3), np.uint8)
    patches = codes.split(seen, 4)
    assert patches.shape == (6, 6, 48)
    np.testing.assert_array_equal(patches[2, 4].reshape(4, 4, 3), seen[2, 4:8, 4:8])  # row 1, column 1
    square = seen[:, :, :8]
    np.testing.assert_array_equal(codes.join(codes.split(square, 4), 4, 8), square)
    book = codes.fit(square, patch=4, num_codes=5)
    again = codes.fit(square, patch=4, num_codes=5)
    np.testing.assert_array_equal(book.patches_KP, again.patches_KP)
    flat = codes.split(square, 4).astype(np.float64) / 255
    distance = np.square(flat[:, :, None] - book.patches_KP.astype(np.float64)).sum(-1)
    np.testing.assert_array_equal(codes.encode(square, book), distance.argmin(-1))
    drawn = codes.decode(codes.encode(square, book), book)
    np.testing.assert_array_equal(codes.encode(drawn, book), distance.argmin(-1))
    assert np.abs(drawn[0, :4, :4] / 255 - book.patches_KP[distance[0, 0].argmin()].reshape(4, 4, 3)).max() <= 0.5 / 255


def test_baselines_are_those_of_counts():
    """Left and above decide a code that a rule makes of them; the code alone says nothing."""
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 3, (4000, 4, 4))
    for y in range(1, 4):
        for x in range(1, 4):
            grid[:, y, x] = (grid[:, y - 1, x] + grid[:, y, x - 1]) % 3
    flat = grid.reshape(-1, 16)
    found = captioned.baselines(flat[:3000], flat[3000:], 3)
    assert found["baseline_nats_by_code_alone"] == pytest.approx(np.log(3), abs=0.01)
    assert found["baseline_nats_by_left"] == pytest.approx(np.log(3), abs=0.01)
    assert found["baseline_nats_by_left_and_above"] == pytest.approx(7 / 16 * np.log(3), abs=0.01)
    unseen = captioned.baselines(np.zeros((1, 4), int), np.full((1, 4), 2), 3)  # counts of nothing are no infinity
    assert unseen["baseline_nats_by_code_alone"] == pytest.approx(np.log(4 + 3))
    assert np.isfinite(unseen["baseline_nats_by_left_and_above"])


# ---- Rows and the loss ---------------------------------------------------------------------------------------------


def test_rows_and_the_loss(source):
    made, task = data(source), tasks.TextToImage(caption_dropout=0.5)
    task = task.settle(made)
    prepared = task.prepare(made, MODEL, seed=0)
    tokenizer: PictureTokenizer = prepared.tokenizer
    examples = prepared.validation.examples
    batch = examples.stacked(range(8))
    assert {name: (x.shape[1:], x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in task.example(made).items()
    }
    assert tokenizer.decode(batch["caption"][1]) == "a green" and tokenizer.decode(batch["codes"][1]) == ""
    assert (batch["codes"] == batch["codes"][:, :1]).all() and len(np.unique(batch["codes"])) == 4
    np.testing.assert_array_equal(batch["other"], examples.stacked(range(17, 25))["caption"])  # 16 has the same
    np.testing.assert_allclose(
        codes.decode(batch["codes"][:4], tokenizer.codebook)[:, 0, 0], list(COLOURS.values()), atol=1
    )

    params = gpt.init(jax.random.key(0), MODEL)
    batch["weights"][5] = 0
    blank = {**batch, "caption": np.full_like(batch["caption"], K)}
    loss = jax.jit(lambda params, batch, key: task.loss(params, MODEL, batch, key=key))
    evaluate = jax.jit(lambda params, batch: task.evaluate(params, MODEL, batch)[0])

    def expected(batch):
        row = np.concatenate([np.full((8, 1), K), batch["caption"], batch["codes"]], 1)
        logits = np.asarray(gpt.apply(params, MODEL, row[:, :-1]), np.float64)

        def nats(logits, labels):
            return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]

        of_codes = nats(logits[:, T:, :K], batch["codes"]).mean(1)
        is_text = batch["caption"] > K
        of_text = nats(logits[:, :T, K:], batch["caption"] - K) * is_text
        return of_codes, of_text.sum(1) / np.maximum(is_text.sum(1), 1)

    of_codes, of_text = expected(batch)
    used = np.arange(8) != 5
    sums = evaluate(params, batch)
    np.testing.assert_allclose(sums["nats_per_code"], (of_codes[used].sum(), 7), rtol=1e-5)
    np.testing.assert_allclose(sums["nats_per_text_token"], (of_text[used].sum(), 7), rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], ((of_codes * 7 / 8 + of_text / 8)[used].sum(), 7), rtol=1e-5)
    swapped = expected({**batch, "caption": batch["other"]})[0]
    np.testing.assert_allclose(sums["nats_per_code_with_other_caption"], (swapped[used].sum(), 7), rtol=1e-5)
    without = expected(blank)[0]
    _, weight, sums = loss(params, batch, jax.random.key(1))
    kept = int(sums["nats_per_code"][1])
    assert kept in (3, 4) and sums["nats_without_caption"][1] == 7 - kept
    assert weight == pytest.approx(kept + (7 - kept) * 7 / 8)
    rows = np.where(used)[0].tolist()
    chosen = [
        keep
        for keep in range(1 << 7)
        if keep.bit_count() == kept
        and np.isclose(sum(of_codes[r] for i, r in enumerate(rows) if keep >> i & 1), sums["nats_per_code"][0], 1e-5)
    ]
    assert chosen, "the rows with a caption are those that were not dropped"
    dropped = sum(without[r] for i, r in enumerate(rows) if not chosen[0] >> i & 1)
    np.testing.assert_allclose(sums["nats_without_caption"][0], dropped, rtol=1e-5)


# ---- Guided drawing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2.5, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (0.0, 1.0))])
def test_guidance_is_that_of_a_naive_loop(scale):
    params = gpt.init(jax.random.key(0), MODEL)
    prompts = np.array([[K, 7, 9, 30], [K, 11, K, K]], np.int32)
    sampling = decode.Sampling(S, temperature=0.0)
    guided = Guided(gpt, scale, blank=K, outputs=K)
    made = sets.continuations(guided, params, MODEL, list(prompts), sampling, key=jax.random.key(0), batch_size=2)
    apply = jax.jit(gpt.apply, static_argnums=1)
    rows, drawn = np.zeros((2, 2, T + S), np.int32), np.zeros((2, S), np.int32)
    rows[0, :, : T + 1], rows[1, :, : T + 1] = prompts, K  # with the caption, without
    for i in range(S):
        with_it, without = (np.asarray(apply(params, MODEL, row), np.float64)[:, T + i, :K] for row in rows)
        drawn[:, i] = (without + scale * (with_it - without)).argmax(-1)
        if i + 1 < S:
            rows[:, :, T + 1 + i] = drawn[:, i]
    np.testing.assert_array_equal(np.stack(made), drawn)
    assert (guided.init_cache(MODEL, 2, 7).k_LBKSH.shape[1] == 2) == (scale == 1)


# ---- A run ---------------------------------------------------------------------------------------------------------


def test_a_run_draws_what_it_is_told(source, tmp_path, capsys):
    """Four colours are learnt in a few steps; the path alone is enough to resume and to draw."""
    experiment = Experiment(
        model=MODEL,
        data=data(source),
        task=tasks.TextToImage(),
        optim=Optim(peak_lr=0.03, warmup_steps=5),
        train=Train(steps=60, batch_size=16),
        evaluate=Evaluate(batch_size=16),
        checkpoint=Checkpoint(every=30),
        sample=Draw(guidance=2.0, top_k=2),
    )
    run = tmp_path / "run"
    report = loop.run(experiment, run, load=restore.load).report
    assert report["nats_per_code"] < 0.1 and report["caption_worth_nats_per_code"] > 1
    assert list((run / "drawn").glob("*_drawn.png"))
    loaded = transformer_jax.load(run)
    assert loaded.tokenizer.fingerprint == transformer_jax.load(run / "checkpoints" / "60").tokenizer.fingerprint
    out = tmp_path / "out.png"
    capsys.readouterr()
    assert main(["predict", str(run), "a red", "a blue", "--out", str(out), "--count", "3", "--top-k", "1"]) == 0
    assert "6 pictures of 2 captions" in capsys.readouterr().out
    seen = np.asarray(Image.open(out))
    assert seen.shape == (2 * 64 + 2, 3 * 64 + 4, 3)
    np.testing.assert_allclose(seen[[32, 32, -32], [32, 96, 32]], [COLOURS[x] for x in ("red", "red", "blue")], atol=1)
    more = dataclasses.replace(experiment, train=Train(steps=61, batch_size=16))
    assert loop.run(more, run, load=restore.load).step == 61  # the codebook is read, not made again
    for arguments, message in (
        (["a red", "--out", str(tmp_path / "a.jpg")], r"a.jpg: the name must end in"),
        (["a red", "--out", str(tmp_path / "none" / "a.png")], "in a folder that exists"),
        ([" ", "--out", str(out)], "input 1: the input is empty"),
        (["a red", "--guidance", "-1"], "guidance = -1.0"),
        (["a red", "--count", "0"], "count = 0"),
    ):
        assert main(["predict", str(run), *arguments]) == 2
        assert message in capsys.readouterr().err
    (run / "tokenizer" / "codes.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"codes.npz is no codebook"):
        transformer_jax.load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, r"size = 8 must be a multiple of patch = 3"),
        ({"num_codes": 1}, r"num_codes = 1 must be"),
        ({"channels": 2}, r"channels = 2 must be"),
    ],
)
def test_refused_settings(source, change, message):
    with pytest.raises(InputError, match=message):
        data(source, **change)


def test_refused_data(source):
    task = tasks.TextToImage().settle(data(source))
    few: Any = data(source, num_codes=9)
    with pytest.raises(InputError, match=r"4 different patches of 4 x 4 pixels, fewer than"):
        task.prepare(few, dataclasses.replace(MODEL, vocab_size=99), seed=0)
    with pytest.raises(InputError, match=r"3 tokens and 4 codes, but model.max_length is 6"):
        task.check(dataclasses.replace(MODEL, max_length=6), data(source))
    with pytest.raises(InputError, match=r"no codes of pictures"):
        captioned.build_tokenizer(data(source), source.pairs("train"), tokenizers.ByteTokenizer())
    with pytest.raises(InputError, match=r"guidance is -1"):
        Guided(gpt, -1.0, blank=K)
    with pytest.raises(InputError, match=r"task.caption_dropout = 1.0"):
        tasks.TextToImage(caption_dropout=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data8", "fsdp8", "data2-fsdp2-tensor2", "fsdp2-sequence4"])
def test_a_step_on_eight_devices_is_that_of_one(mesh):
    spec = TextAndCodes(tokenizers.Bytes(), num_codes=8, patch=4, size=8)
    experiment = Experiment(
        model=dataclasses.replace(MODEL, vocab_size=8 + 264, max_length=8, tie_embeddings=False, num_heads=4),
        data=captioned.Captioned(paired.Table(("none.csv",), pictures="."), spec, caption_length=4),
        task=tasks.TextToImage(),
        optim=Optim(peak_lr=1e-3),
        train=Train(steps=2, batch_size=8),
    )
    rng = np.random.default_rng(0)
    caption = np.where(rng.random((8, 4)) < 0.7, rng.integers(9, 265, (8, 4)), 8).astype(np.int32)
    codes_BS = rng.integers(0, 8, (8, 4)).astype(np.int32)
    batch = {"caption": caption, "other": caption, "codes": codes_BS, "weights": np.ones(8, np.float32)}

    def numbers(sizes):
        program, step = collectives.compile_step(experiment, sizes)
        with jax.set_mesh(collectives.mesh_of(sizes)):
            state = program.create(gpt.init(jax.random.key(0), program.model))
            placed = jax.device_put(batch, jax.tree.map(lambda leaf: leaf.sharding, program.batch))
            state, metrics = step(state, placed, jax.random.key(1))
            return [float(metrics[name]) for name in ("loss", "grad_norm")]

    np.testing.assert_allclose(numbers(collectives.MESHES[mesh]), numbers((1, 1, 1, 1)), rtol=1e-5)
