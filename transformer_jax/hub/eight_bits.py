"""Kernels of eight bits in a Hugging Face folder, in the format "int-quantized" of compressed-tensors.

A Linear's `weight` is int8 [out, in], beside `weight_scale` [out, 1]; config.json states it in "quantization_config".
Reading gives float32 kernels, from which `compress.Int8` makes the same integers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer_jax.errors import InputError
from transformer_jax.hub import mapping
from transformer_jax.nn import params as params_lib

WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
# What else may be there, with the values that do not change the function.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("group_size", "block_structure", "actorder", "scale_dtype", "zp_dtype"), (None,)),
    **{"observer": ("minmax", "memoryless_minmax", "mse", None), "observer_kwargs": ({}, None)},
}


def write(
    table: mapping.Table, declaration: Any, params: Any, tensors: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the tensors with those of eight bits in place of their floats, the "quantization_config" of config.json).

    Args:
      table: the table of the format.
      declaration: the family's tree of `nn.params.Param`.
      params: the parameters, with int8 kernels.
      tensors: the tensors of the same parameters in float32 (`mapping.write_params`).

    Raises:
      InputError: an int8 kernel that is no Linear of Transformers, such as GPT-2's.
    """
    flat = params_lib.flatten(params)
    shapes = {path: p.shape for path, p in params_lib.flatten(declaration).items()}
    made, ignored = dict(tensors), [name.removesuffix(".weight") for name in table.tied if name.endswith(".weight")]
    for name, held in mapping.by_tensor(shapes, table).items():
        small = [flat[row.leaf].dtype == np.int8 for row, _ in held]
        row = held[0].row
        if not any(small):
            if row.leaf.endswith("/kernel") and row.transpose and not row.unfolded:
                ignored.append(name.removesuffix(".weight"))
            continue
        if not all(small) or not row.transpose or row.unfolded:
            raise InputError(
                f"compressed-tensors has kernels of eight bits in a Linear alone, and {name} of this model is none: "
                "leave it out (convert int8 --target), or export the run that has it in float32"
            )
        scales = [np.asarray(flat[f"{row.leaf.removesuffix('kernel')}scale"]) for row, _ in held]
        kernel = np.concatenate([_layer(np.asarray(flat[row.leaf]), i) for row, i in held], axis=-1)
        scale = np.concatenate([_layer(s, i) for s, (_, i) in zip(scales, held, strict=True)])
        made[name] = (kernel.size, lambda kernel=kernel: np.ascontiguousarray(kernel.T))
        made[f"{name}_scale"] = (4 * scale.size, lambda scale=scale: np.ascontiguousarray(scale[:, None]))
    group: dict[str, Any] = {
        "targets": ["Linear"],
        "weights": WEIGHTS,
        "input_activations": None,
        "output_activations": None,
    }
    group |= {"format": "int-quantized"}  # without it the library takes weights alone for packed ones
    return made, {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(set(ignored)),
    }


def _layer(leaf: np.ndarray, layer: int | None) -> np.ndarray:
    return leaf if layer is None else leaf[layer]


def read(stated: Mapping[str, Any] | None, tensors: dict[str, Any], where: str) -> dict[str, Any]:
    """The tensors, with those of eight bits as floats.

    Args:
      stated: "quantization_config" of config.json; None: there are none.
      tensors: {name: slice} of `weights.open_tensors`.
      where: names config.json in messages.

    Raises:
      InputError: another method, format or number of bits.
    """
    if stated is None:
        return tensors
    method, form = stated.get("quant_method"), stated.get("format")
    if (method, form) != ("compressed-tensors", "int-quantized"):
        raise InputError(
            f'{where}: "quantization_config" is of {method!r} and format {form!r}; read is compressed-tensors in the '
            "format int-quantized"
        )
    for group in stated.get("config_groups", {}).values():
        given = group.get("weights") or {}
        accepted = {name: (value,) for name, value in WEIGHTS.items()} | _NEUTRAL
        wrong = [name for name, value in given.items() if value not in accepted.get(name, ())]
        wrong += [name for name in ("input_activations", "output_activations") if group.get(name)]
        if wrong:
            raise InputError(
                f'{where}: "quantization_config" has {wrong[0]!r}: {given.get(wrong[0], group.get(wrong[0]))!r}; read '
                "are weights of 8 bits alone, symmetric, with a scale for each channel"
            )
    scales = {name.removesuffix("_scale"): part for name, part in tensors.items() if name.endswith(".weight_scale")}
    left = {name: part for name, part in tensors.items() if not name.endswith(".weight_scale")}
    for name in scales:
        if name not in left or left[name].get_dtype() != "I8":
            raise InputError(f"{where}: {name}_scale is there, but no int8 tensor {name}; copy the folder again")
    return {name: _Unpacked(part, scales[name]) if name in scales else part for name, part in left.items()}


class _Unpacked:
    """A slice of an int8 tensor, which is read as float32."""

    def __init__(self, weight: Any, scale: Any) -> None:
        self.weight, self.scale = weight, scale

    def get_shape(self) -> list[int]:
        """That of the weight."""
        return self.weight.get_shape()

    def get_dtype(self) -> str:
        """That of what is read."""
        return "F32"

    def __getitem__(self, index: Any) -> np.ndarray:
        whole = np.asarray(self.weight[:], np.float32) * np.asarray(self.scale[:], np.float32)
        return whole[index]
