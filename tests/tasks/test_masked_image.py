"""Masked autoencoders: what the encoder sees, the loss, and a classifier that begins from one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_jax
from transformer_jax import restore, sharding, tasks
from transformer_jax.data.image_sources import Digits
from transformer_jax.data.images import ImageSet
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import vit
from transformer_jax.nn import params as params_lib
from transformer_jax.optim import Optim
from transformer_jax.tasks.masked_image import EPS
from transformer_jax.train import loop, start

SIZES: Any = {"width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 32, "scan_layers": False}
MODEL = vit.Config(
    image_size=8, patch_size=2, channels=1, num_classes=0, decoder=vit.Decoder(1, 24, 3), init_std=0.2, **SIZES
)
TASK = tasks.MaskedImage(preprocess=Preprocess(size=8, resize=8, mean=(0.3,), std=(0.38,)))


def test_the_encoder_sees_the_visible_patches_alone():
    params = vit.init(jax.random.key(0), MODEL)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 16) for i in range(2)])

    @jax.jit
    def both(x, order):
        found = vit.reconstruct(params, MODEL, x, order, 4)
        grads = jax.grad(lambda x: jnp.abs(vit.reconstruct(params, MODEL, x, order, 4).patches).sum())(x)
        return found, grads

    found, grads = both(x, order)
    assert found.patches.shape == (2, 16, 4)
    for row in range(2):
        assert set(np.flatnonzero(found.is_masked[row] == 0)) == set(np.asarray(order[row, :4]))
    moved = np.abs(vit.patches(MODEL, grads)).sum(-1)
    np.testing.assert_array_equal(moved == 0, np.asarray(found.is_masked) == 1)
    mixed = order.at[:, :4].set(order[:, 3::-1]).at[:, 4:].set(order[:, :3:-1])  # the same sets in another order
    np.testing.assert_allclose(both(x, mixed)[0].patches, found.patches, atol=1e-5)
    np.testing.assert_array_equal(vit.unsplit(MODEL, vit.patches(MODEL, x)), x)
    np.testing.assert_array_equal(vit.patches(MODEL, x)[0, 5].reshape(2, 2), x[0, 2:4, 2:4, 0])


def test_the_loss_and_what_is_masked_in_evaluations():
    params = vit.init(jax.random.key(0), MODEL)
    rng = np.random.default_rng(0)
    batch = {"images": rng.integers(0, 256, (3, 8, 8, 1), np.uint8), "weights": np.array([1, 1, 0], np.float32)}
    evaluate = jax.jit(lambda batch: TASK.evaluate(params, MODEL, batch)[0])
    sums = evaluate(batch)
    order = np.argsort(TASK._noise(MODEL, batch), axis=1)
    x = batch["images"].astype(np.float64) / 255
    found = vit.reconstruct(params, MODEL, jnp.asarray((x - 0.3) / 0.38, jnp.float32), order, 4)
    cells = x.reshape(3, 4, 2, 4, 2).swapaxes(2, 3).reshape(3, 16, 4)
    target = (cells - cells.mean(-1, keepdims=True)) / np.sqrt(cells.var(-1, keepdims=True) + EPS)
    masked = np.asarray(found.is_masked) > 0
    assert (masked.sum(1) == 12).all()
    for name, predicted in (("loss", np.asarray(found.patches, np.float64)), ("baseline", np.zeros_like(target))):
        each = [np.square(predicted[b] - target[b])[masked[b]].mean() for b in range(2)]
        np.testing.assert_allclose(sums[name], (sum(each), 2), rtol=1e-5)
    flipped = {"images": batch["images"][::-1], "weights": batch["weights"][::-1]}
    np.testing.assert_allclose(evaluate(flipped)["loss"], sums["loss"], rtol=1e-5)  # in another place of the batch


PRETRAINING = Experiment(
    model=MODEL,
    data=ImageSet(Digits()),
    task=TASK,
    optim=Optim(peak_lr=0.01, warmup_steps=5),
    train=Train(steps=40, batch_size=64),
    evaluate=Evaluate(batch_size=64),
)


def classifier(path: str) -> Experiment:
    return dataclasses.replace(
        PRETRAINING,
        model=dataclasses.replace(MODEL, num_classes=10, decoder=vit.Decoder()),
        task=tasks.ImageClassification(preprocess=TASK.preprocess),
        optim=Optim(peak_lr=1e-9),
        train=Train(steps=1, batch_size=64),
        checkpoint=Checkpoint(),
        init_from=path,
    )


def test_a_classifier_drops_the_decoder():
    fine, lines = classifier("mae"), []
    adopted = start.adopt(fine, MODEL, lines.append, task=TASK)
    assert adopted.model == fine.model and not lines
    found, declaration = vit.init(jax.random.key(0), MODEL), vit.declare(fine.model)
    made = start.transfer(found, declaration, adopted, jax.random.key(1), sharding.make_mesh(), lines.append)
    assert made.keys() == declaration.keys() and (np.asarray(made["head"]["kernel"]) == 0).all()
    assert all(made[name] is found[name] for name in ("embed", "blocks", "final_norm"))
    assert [line.split(":")[0] for line in lines] == ["head 'head'", "head 'decoder' of mae"]


@pytest.mark.slow
def test_a_run_begins_from_another(tmp_path):
    report = loop.run(PRETRAINING, tmp_path / "mae", load=restore.load).report
    assert report["error_of_masked_patches"] < 0.9 * report["baseline_error_of_their_means"]
    assert list((tmp_path / "mae" / "drawn").glob("*_reconstructed.png"))
    loop.run(classifier(str(tmp_path / "mae")), tmp_path / "fine", load=restore.load)
    before, after = (transformer_jax.load(tmp_path / name).params for name in ("mae", "fine"))
    assert "decoder" not in after and "head" not in before
    trunk = {path: leaf for path, leaf in params_lib.flatten(after).items() if not path.startswith("head")}
    for path, leaf in trunk.items():
        np.testing.assert_allclose(leaf, params_lib.flatten(before)[path], atol=1e-6)


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        ({"decoder": vit.Decoder()}, {}, r"needs a model with a decoder; give --model.decoder.layers"),
        ({"image_size": 16}, {}, r"model.image_size is 16, but task.preprocess.size is 8"),
        ({}, {"masked": 0.99}, r"leaves 0 of 16 patches visible"),
    ],
)
def test_refused(model, task, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TASK, **task).check(dataclasses.replace(MODEL, **model), ImageSet(Digits()))


def test_refused_settings():
    with pytest.raises(InputError, match=r"task.masked = 1.0"):
        tasks.MaskedImage(masked=1.0)
    with pytest.raises(InputError, match=r"its width must be a multiple of its heads"):
        vit.Config(decoder=vit.Decoder(1, 30, 4))
