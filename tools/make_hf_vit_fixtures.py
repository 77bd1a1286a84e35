"""Golden fixtures of ViT and DeiT for `transformer_jax.hub`, made by Transformers; and the check of our exports.

Runs where torch and Transformers are installed (the library needs neither), from the project root:

    python tools/make_hf_vit_fixtures.py                       # rewrites tests/data/hf/vision/<name>/
    python tools/make_hf_vit_fixtures.py --check-export DIR    # Transformers loads DIR/<name>

A fixture is a snapshot folder as `save_pretrained` writes it (tiny, float32, random weights, every parameter redrawn so
that logits are near 1), its image processor's settings, and `expected.npz`: two images, and what Transformers makes of
them: all hidden states, attention weights, pooled state, logits, and the logits of larger images under
`interpolate_pos_encoding`. `positions.npz` holds that interpolation alone, 224 to 384 pixels with patches of 16.

The exports for `--check-export` come from an environment with the library:

    from pathlib import Path
    from transformer_jax import hub
    for folder in Path("tests/data/hf/vision").glob("*/"):
        config, params, _ = hub.load(folder)
        more = dict(labels=hub.labels(folder), preprocess=hub.preprocessing(folder))
        hub.export(f"DIR/{folder.name}", config, params, **more)
"""

import argparse
import pathlib
import shutil
from typing import Any

import numpy as np
import torch
import transformers

FIXTURES = pathlib.Path("tests/data/hf/vision")
SIZES = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=24,
    patch_size=8,
    initializer_range=0.03,  # not the default
)
LABELS = {0: "crane", 1: "lantern", 2: "teapot"}
NAMED = dict(id2label=LABELS, label2id={name: i for i, name in LABELS.items()})
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
LARGER = 40  # pixels: 5 patches a side in place of 3

# name: architecture, its arguments, settings of config.json and of the image processor
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "ViTForImageClassification": ("ViTForImageClassification", {}, NAMED, dict(size=dict(height=24, width=24))),
    "ViTModel": ("ViTModel", {}, dict(pooler_output_size=10, qkv_bias=False, num_channels=1), {}),
    "ViTModel-unpooled": ("ViTModel", dict(add_pooling_layer=False), dict(hidden_act="gelu_new"), {}),
    "DeiTForImageClassification": ("DeiTForImageClassification", {}, NAMED, {}),
    "DeiTForImageClassificationWithTeacher": (
        "DeiTForImageClassificationWithTeacher",
        {},
        NAMED | dict(layer_norm_eps=1e-6),
        dict(size=dict(shortest_edge=28), crop_size=dict(height=24, width=24), **IMAGENET),
    ),
    "DeiTModel": ("DeiTModel", {}, {}, {}),
}


def redraw(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter anew: kernels at 1/sqrt(fan in), norm scales around 1, biases around 0."""
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            draw = rng.normal(0, 0.3, p.shape)
        elif "token" in name or "position" in name:
            draw = rng.normal(0, 1.0, p.shape)
        elif p.ndim >= 2:
            draw = rng.normal(0, (2.0 if len(p) == len(LABELS) else 1.2) * np.prod(p.shape[1:]) ** -0.5, p.shape)
        else:
            draw = rng.uniform(0.5, 1.5, p.shape)
        p.data.copy_(torch.from_numpy(draw.astype(np.float32)))


def outputs_of(model: torch.nn.Module, images: np.ndarray, larger: np.ndarray) -> dict[str, np.ndarray]:
    """What the model makes of images [B, Y, X, C], under our names; hidden states before the final norm."""
    pixels, more = (torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))) for x in (images, larger))
    with torch.no_grad():
        trunk = model.base_model(pixels, output_hidden_states=True, output_attentions=True)
        resized = model.base_model(more, interpolate_pos_encoding=True)
        made = {
            "states": torch.stack(trunk.hidden_states),
            "weights": torch.stack(trunk.attentions),
            "hidden": trunk.last_hidden_state,
            "pooled": getattr(trunk, "pooler_output", None),
            "larger_hidden": resized.last_hidden_state,
        }
        if not type(model).__name__.endswith("Model"):
            top = model(pixels)
            made |= {name: getattr(top, name, None) for name in ("logits", "cls_logits", "distillation_logits")}
            made["larger_logits"] = model(more, interpolate_pos_encoding=True).logits
    return {name: value.numpy() for name, value in made.items() if value is not None}


def make(name: str, seed: int) -> None:
    architecture, arguments, settings, processor = CASES[name]
    folder, stem = FIXTURES / name, architecture[:4].removesuffix("F").removesuffix("M")
    shutil.rmtree(folder, ignore_errors=True)
    config = getattr(transformers, f"{stem}Config")(**SIZES | settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, architecture)(config, **arguments).eval()
    redraw(model, seed)
    model.save_pretrained(folder)
    if processor:
        getattr(transformers, f"{stem}ImageProcessorPil")(**processor).save_pretrained(folder)
    rng = np.random.default_rng(seed)
    images, larger = (
        rng.standard_normal((2, side, side, config.num_channels)).astype(np.float32) for side in (24, LARGER)
    )
    expected = outputs_of(model, images, larger)
    versions = np.array(f"torch {torch.__version__}, transformers {transformers.__version__}")
    arrays: dict[str, Any] = {"versions": versions, "images": images, "larger": larger, **expected}
    np.savez_compressed(folder / "expected.npz", **arrays)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size / 1000:.0f} kB,", ", ".join(f"{k} {v.std():.2f}" for k, v in expected.items()))


def make_positions() -> None:
    """The table of a ViT with patches of 16 for 224 pixels, and what becomes of it for 384 (and for 160)."""
    config = transformers.DeiTConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    embeddings = transformers.DeiTModel(config).embeddings
    table = np.random.default_rng(0).standard_normal((1, 2 + 14 * 14, 4)).astype(np.float32)
    embeddings.position_embeddings.data.copy_(torch.from_numpy(table))
    made = {"224": table[0]}
    for size in (384, 160):
        tokens = torch.zeros(1, 2 + (size // 16) ** 2, 4)
        with torch.no_grad():
            made[str(size)] = embeddings.interpolate_pos_encoding(tokens, size, size)[0].numpy()
    np.savez_compressed(FIXTURES / "positions.npz", **made)


def check_export(folder: pathlib.Path) -> None:
    """Transformers loads each export without a missing or unexpected tensor and computes what the fixture says."""
    for name, (architecture, arguments, settings, processor) in CASES.items():
        with np.load(FIXTURES / name / "expected.npz") as file:
            expected = dict(file)
        load = getattr(transformers, architecture).from_pretrained
        model, report = load(
            folder / name, attn_implementation="eager", output_loading_info=True, local_files_only=True, **arguments
        )
        wrong = {k: v for k, v in report.items() if v}
        assert not wrong, f"{name}: {wrong}"
        assert model.config.architectures == [architecture], model.config.architectures
        if settings.keys() >= NAMED.keys():
            assert model.config.id2label == LABELS, model.config.id2label
        if processor:
            kind = getattr(transformers, f"{architecture[:4].removesuffix('F')}ImageProcessorPil")
            theirs, ours = (kind.from_pretrained(path) for path in (FIXTURES / name, folder / name))
            image = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
            made = [processor(image, return_tensors="np")["pixel_values"] for processor in (theirs, ours)]
            assert made[0].shape == (1, 3, 24, 24) and np.array_equal(*made), f"{name}: {theirs} {ours}"
        theirs, ours = load(FIXTURES / name, dtype=torch.float32, **arguments).state_dict(), model.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs), name
        found = outputs_of(model.eval(), expected["images"], expected["larger"])
        differences = {key: np.abs(value - expected[key]).max() for key, value in found.items()}
        assert max(differences.values()) <= 1e-6, f"{name}: {differences}"
        print(f"{name}: {len(ours)} tensors equal to the bit; largest difference {max(differences.values()):.0e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check-export", type=pathlib.Path, metavar="DIR", help="holds one export per fixture")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    if arguments.check_export:
        check_export(arguments.check_export)
    else:
        for seed, name in enumerate(CASES):
            make(name, seed)
        make_positions()
