"""DeiT (Touvron et al. 2021) as Hugging Face stores it: `model_type: deit`, ViT with a distillation token.

Its tensors decide whether that token has a head of its own: `cls_classifier` and `distillation_classifier`, or
`classifier` alone.
"""

from collections.abc import Collection, Mapping
from typing import Any

from transformer_jax.hub.mapping import Table, dense
from transformer_jax.models import vit
from transformer_jax.models.vit import vit as vit_format

MODEL_TYPES = ("deit",)
IMAGE_PROCESSORS = {"DeiT": {"size": 256, "resample": 3, "do_center_crop": True}}

RENAMED_MODULES = vit_format.RENAMED_MODULES

task = vit_format.task


def table(cfg: vit.Config) -> Table:
    """Where each leaf lives."""
    if cfg.distillation == "head":
        heads = dense("head", "cls_classifier") + dense("distillation_head", "distillation_classifier")
    else:
        heads = dense("head", "classifier")
    return vit_format.make_table(cfg, "deit", heads)


def read_config(given: Mapping[str, Any], names: Collection[str], where: str) -> vit.Config:
    """The config of a config.json's object and the tensors' names. Errors: `InputError` for what `vit` does not
    compute."""
    two_heads = "distillation_classifier.weight" in names
    fields = vit_format.read_fields(given, names, where, classifies=two_heads or "classifier.weight" in names)
    return vit.Config(**fields, distillation="head" if two_heads else "token")


def holds(cfg: Any) -> bool:
    """Whether this is the format to try for a config."""
    return isinstance(cfg, vit.Config) and cfg.distillation != "none"


def write_config(cfg: vit.Config) -> dict[str, Any]:
    """config.json's settings for `cfg`, of those that DeiT has."""
    classifies = "DeiTForImageClassification" + "WithTeacher" * (cfg.distillation == "head")
    return vit_format.write_fields(cfg, "deit", classifies if cfg.num_classes else "DeiTModel")
