"""Detectors that Transformers wrote give Transformers' logits and boxes, for images of two shapes; exports come back to
the bit; image processors make the same pixels; settings that we do not compute are refused in one line.

The fixtures in tests/data/hf/detection are made by tools/fixtures/make_hf_detection.py, which also checks that
Transformers loads our exports.
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from transformer_jax import hub, models, restore
from transformer_jax.contracts import Predict
from transformer_jax.data import image_files
from transformer_jax.errors import InputError
from transformer_jax.models import detr, eomt, vit
from transformer_jax.models.detr import detr as detr_format
from transformer_jax.models.detr import resnet
from transformer_jax.models.vit import yolos
from transformer_jax.nn import params as param_tree
from transformer_jax.tasks import Detection, Segmentation

FIXTURES = Path(__file__).parents[1] / "data" / "hf" / "detection"
LABELS = ("crane", "lantern", "teapot")


def expected_of(name):
    with np.load(FIXTURES / name / "expected.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("name", ["YolosTi", "YolosS", "Detr"])
def test_logits_and_boxes_are_transformers(name):
    config, params, _ = hub.load(FIXTURES / name)
    assert config.num_queries == 5 and config.num_classes == 3
    if name != "Detr":
        assert config.detector == "queries" and config.image_size == (16, 24)
        assert config.layer_positions == (name == "YolosS")
    expected = expected_of(name)
    detect = jax.jit(models.family(config).detect, static_argnums=1)
    for prefix, images in (("", expected["images"]), ("larger_", expected["larger"]))[name == "Detr" :]:
        found = detect(params, config, images)
        assert expected[f"{prefix}logits"].std() > 0.5, "the bound below means something at this scale only"
        np.testing.assert_allclose(found.logits, expected[f"{prefix}logits"], rtol=0, atol=2e-5)
        np.testing.assert_allclose(found.boxes, expected[f"{prefix}boxes"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["YolosTi", "YolosS", "Detr"])
def test_exports_come_back_to_the_bit(name, tmp_path):
    loaded = restore.load(FIXTURES / name)
    assert isinstance(loaded.task, Detection) and loaded.task.labels == LABELS
    preprocess = loaded.task.preprocess
    hub.export(tmp_path / "out", loaded.config, loaded.params, labels=LABELS, preprocess=preprocess)
    again = restore.load(tmp_path / "out")
    assert again.config == loaded.config and again.task == loaded.task
    for (path, x), y in zip(param_tree.flatten(loaded.params).items(), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)


def test_predictions_keep_the_aspect_ratio(tmp_path):
    """An imported model reads each image at its own shape, and its boxes are in the pixels of the file."""
    loaded = restore.load(FIXTURES / "YolosTi")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (31, 45, 3), np.uint8)).save(tmp_path / "a.png")
    options = dataclasses.replace(loaded.task.predict_options(Predict()), threshold=0.0)
    (answer,) = loaded.task.answers(loaded, [str(tmp_path / "a.png")], options)
    pixels = image_files.pixels((tmp_path / "a.png").read_bytes(), loaded.task.preprocess)
    assert pixels.shape == (32, 32, 3) and len(answer["objects"]) == 5
    normalised = ((pixels / 255.0 - loaded.task.preprocess.mean) / loaded.task.preprocess.std).astype(np.float32)
    found = jax.jit(vit.detect, static_argnums=1)(loaded.params, loaded.config, normalised[None])
    scores = np.asarray(jax.nn.softmax(found.logits))[0, :, :-1].max(-1)
    x, y, w, h = np.asarray(found.boxes)[0, scores.argmax()] * (45, 31, 45, 31)
    left, top = max(x - w / 2, 0), max(y - h / 2, 0)
    wanted = [left, top, min(x + w / 2, 45) - left, min(y + h / 2, 31) - top]
    np.testing.assert_allclose(answer["objects"][0]["box"], wanted, atol=1e-3)


@pytest.mark.parametrize(("name", "shape"), [("YolosTi", (32, 32, 3)), ("Detr", (32, 46, 3))])
def test_pixels_are_the_image_processors(name, shape):
    expected, preprocess = expected_of(name), hub.preprocessing(FIXTURES / name)
    pixels = image_files.pixels(expected["photograph"], preprocess)
    found = (pixels / 255.0 - np.array(preprocess.mean)) / np.array(preprocess.std)
    assert found.shape == expected["pixels"].shape == shape
    assert np.abs((found - expected["pixels"]) * np.array(preprocess.std)).max() <= 1 / 255 + 1e-6
    published = hub.preprocessing(FIXTURES / "YolosS")
    assert published.inside(480, 640) == (800, 1056) and published.inside(400, 1000) == (528, 1328)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_detection_tokens": None}, 'lacks "num_detection_tokens"'),
        (
            {"num_detection_tokens": 4},
            r"vit.embeddings.position_embeddings has shape \(1, 12, 16\), but its config.json",
        ),
        ({"use_mid_position_embeddings": False}, "the unexpected vit.encoder.mid_position_embeddings"),
        ({"rope_theta": 3}, '"rope_theta": 3 is an unknown setting'),
    ],
)
def test_what_is_not_computed_is_refused(settings, message, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "YolosS", folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(InputError, match=message):
        hub.load(folder)


def test_a_detector_of_patches_has_no_folder():
    cfg = vit.Config(image_size=16, patch_size=8, width=8, num_layers=1, num_heads=2, detector="patches", num_classes=3)
    assert yolos.holds(cfg)
    with pytest.raises(InputError, match="model.detector is 'patches'.*no Hugging Face folder can be written"):
        yolos.write_config(cfg)


def test_a_classifier_becomes_a_detector():
    """The positions of a trained ViT are kept and those of new queries are zeros; fewer queries keep the first ones."""
    plain = vit.Config(image_size=16, patch_size=8, width=8, num_layers=1, num_heads=2, num_classes=3)
    wanted = dataclasses.replace(plain, image_size=(16, 24), detector="queries", num_queries=4)
    params, said = jax.jit(vit.init, static_argnums=1)(jax.random.key(0), plain), []
    found = vit.resized(params, plain, wanted, said.append)
    table = np.asarray(found["embed"]["position"]["embedding"])
    assert table.shape == (1 + 6 + 4, 8) and not table[7:].any() and table[0].any()
    assert said == ["from images of 16 pixels to (16, 24)", "from 0 queries to 4"]
    fewer = dataclasses.replace(wanted, num_queries=2)
    both = jax.jit(vit.init, static_argnums=1)(jax.random.key(1), wanted)
    less = vit.resized(both, wanted, fewer, said.append)
    np.testing.assert_array_equal(less["queries"]["embedding"], both["queries"]["embedding"][:2])
    np.testing.assert_array_equal(less["embed"]["position"]["embedding"], both["embed"]["position"]["embedding"][:9])


# ---- DETR ------------------------------------------------------------------------------------------------------------


def changed(name, tmp_path, settings, tensors=lambda given: given):
    """A copy of a fixture with other settings in config.json (None: removed) and other tensors."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / name, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    save_file(tensors(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


def test_a_backbone_with_the_names_of_timm(tmp_path, monkeypatch):
    """The folders that were published first: their backbone has timm's names, and config.json only its name."""

    def timm(name):
        name = re.sub(r"embedder\.embedder\.(convolution|normalization)", r"\1", name)
        name = name.replace("model.convolution.", "model.conv1.").replace("model.normalization.", "model.bn1.")
        name = re.sub(r"encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}.", name)
        numbered = (("convolution", "conv"), ("normalization", "bn"))
        for theirs, short in numbered:
            name = re.sub(rf"\.layer\.(\d)\.{theirs}", lambda m, short=short: f".{short}{int(m[1]) + 1}", name)
        return name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")

    def renamed(tensors):
        counted = {
            "model.backbone.conv_encoder.model.layer1.0.downsample.1.num_batches_tracked": np.zeros(1, np.float32)
        }
        return {timm(k) if "conv_encoder" in k else k: v for k, v in tensors.items()} | counted

    settings = {"backbone_config": None, "backbone": "resnet50", "use_timm_backbone": True}
    folder = changed("Detr", tmp_path, settings, renamed)
    with pytest.raises(InputError, match="layers, but|compared with its config.json|implies"):
        hub.load(folder)  # a real ResNet-50 has other sizes
    wanted, params, _ = hub.load(FIXTURES / "Detr")
    sizes = {name: getattr(wanted, name) for name in ("channels", "stem_width", "stage_depths", "stage_widths")}
    monkeypatch.setattr(detr_format, "_backbone", lambda *_: sizes)
    config, found, _ = hub.load(folder)
    assert config == wanted
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_resnet_is_read_and_begins_a_detr(tmp_path):
    config, params, _ = hub.load(FIXTURES / "Resnet")
    expected = expected_of("Resnet")
    assert config.num_queries == 0 and set(params) == set(detr.TRUNK) and restore.load(FIXTURES / "Resnet").task is None
    features = jax.jit(resnet.features, static_argnums=1)(params["backbone"], config, expected["larger"])
    np.testing.assert_allclose(features, expected["larger_features"], rtol=0, atol=2e-5)
    hub.export(tmp_path / "out", config, params)
    again, same, _ = hub.load(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    started = dataclasses.replace(config, width=16, num_heads=2, num_queries=5)
    assert param_tree.flatten(detr.declare(started)).keys() > param_tree.flatten(params).keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position_embedding_type": "learned"}, "only 'sine' is supported"),
        ({"dilation": True}, '"dilation" is True; only False is supported'),
        ({"decoder_ffn_dim": 48}, '"encoder_ffn_dim" is 24 and "decoder_ffn_dim" 48; only equal sizes'),
        ({"backbone_config": None, "backbone": "swin"}, "the backbone is 'swin'; supported are a ResNet, resnet50"),
        ({"d_model": 32}, "model.decoder.layernorm.weight has shape"),
    ],
)
def test_what_detr_does_not_compute_is_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        hub.load(changed("Detr", tmp_path, settings))


def test_labels_that_are_there_twice_get_numbers(tmp_path):
    folder = changed("Detr", tmp_path, {"id2label": {"0": "N/A", "1": "crane", "2": "N/A"}})
    assert restore.load(folder).task.labels == ("N/A", "crane", "N/A 2")


# ---- EoMT ------------------------------------------------------------------------------------------------------------


def test_masks_of_eomt_are_transformers(tmp_path):
    config, params, _ = hub.load(FIXTURES / "Eomt")
    expected = expected_of("Eomt")
    found, scores = jax.jit(
        lambda p, x: (eomt.predict_masks(p, config, x), eomt.segment(p, config, x)), static_argnums=()
    )(params, expected["images"])
    assert min(expected["logits"].std(), expected["masks"].std()) > 0.5
    np.testing.assert_allclose(found.logits, expected["logits"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.masks, expected["masks"], rtol=2e-5, atol=2e-5 * np.abs(expected["masks"]).max())
    p = np.exp(expected["logits"]) / np.exp(expected["logits"]).sum(-1, keepdims=True)
    wanted = np.einsum("bqk,bqyx->byxk", p[..., :-1], 1 / (1 + np.exp(-expected["masks"])))
    np.testing.assert_allclose(np.exp(scores), wanted, atol=1e-4)
    hub.export(tmp_path / "out", config, params, labels=LABELS)
    again, same, _ = hub.load(tmp_path / "out")
    assert again == config and isinstance(restore.load(tmp_path / "out").task, Segmentation)
    for (path, x), y in zip(param_tree.flatten(params).items(), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)


def test_masked_attention_is_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "Eomt", folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"attn_mask_probs": np.array([0, 1], np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="attn_mask_probs is not zero; the attention of its queries is masked"):
        hub.load(folder)
