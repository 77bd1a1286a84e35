"""Adapter folders of PEFT: adapter_config.json and adapter_model.safetensors, read and written strictly.

    rule, params = read(folder, config, params)                      # the base's parameters, with the adapter's leaves
    write(folder, config, params, base="downloads/bert", rule=rule)

PEFT computes y = W x + (alpha / r) B A x with A [r, in] and B [out, r]; a name in its file is that of the module in
Transformers. B begins at zero, so an adapter that is not applied changes nothing and raises no error. Here every module
that the settings name must have its two matrices, of the shapes that the base implies, and other tensors are refused.

A tensor of theirs may hold several of our kernels, such as GPT-2's query, key and value: its A is then the A of each.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import adapters, models
from transformer_jax.adapters import Lora
from transformer_jax.errors import InputError
from transformer_jax.hub import mapping, weights, writing
from transformer_jax.nn import params as params_lib

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

# Settings that are read, with PEFT's defaults.
_READ: dict[str, Any] = {
    **{"r": 8, "lora_alpha": 8, "target_modules": None, "fan_in_fan_out": False, "use_rslora": False},
    **{"use_dora": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "exclude_modules": None},
    **{"layers_to_transform": None, "layers_pattern": None, "base_model_name_or_path": None},
}
# Settings that must have the value that we support.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # the others change the base's kernels
    **dict.fromkeys(("lora_bias", "use_qalora", "ensure_weight_tying", "use_bdlora"), (False, None)),
    **dict.fromkeys(("layer_replication", "target_parameters", "trainable_token_indices"), (None, [], {})),
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config"), (None, {})),
    **dict.fromkeys(("corda_config", "eva_config", "lora_ga_config", "monteclora_config", "loftq_config"), (None, {})),
}
# Settings of training, provenance and kernels that do not change the function.
_IGNORED = {
    *("auto_mapping", "inference_mode", "lora_dropout", "megatron_config", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "runtime_config", "task_type"),
}


class Module(NamedTuple):
    """A module of theirs that may have an adapter.

    Attributes:
      rows: the kernels in it, in order.
      layer: the number of the layer; None: it is in no stack.
    """

    rows: tuple[mapping.Row, ...]
    layer: int | None


def is_adapter(folder: Path) -> bool:
    """Whether `folder` is an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The path or name of the model that the adapter in `folder` is of, as PEFT states it; "": it does not."""
    return str(weights.read_json(folder / CONFIG).get("base_model_name_or_path") or "")


def _modules(config: Any) -> tuple[dict[str, Module], mapping.Table, dict[str, tuple[int, ...]]]:
    """({name of a module: its kernels}, the table of the format, {path: shape} of the model)."""
    table = writing.format_of(config).table(config)
    flat = params_lib.flatten(models.family(config).declare(config))
    shapes = {path: p.shape for path, p in flat.items()}
    found: dict[str, list[tuple[mapping.Row, int | None]]] = {}
    for row in table.rows:
        if row.leaf not in shapes or not row.leaf.endswith("/kernel") or row.unfolded or row.one_row:
            continue
        for layer in range(row.begins, shapes[row.leaf][0]) if "{}" in row.tensor else (None,):
            found.setdefault(row.tensor.format(layer).removesuffix(".weight"), []).append((row, layer))
    return {name: Module(tuple(row for row, _ in held), held[0][1]) for name, held in found.items()}, table, shapes


def _renamed(modules: dict[str, Module], config: Any) -> dict[str, Module]:
    """The modules by the names that they have in Transformers 5, where these are not those of the checkpoint."""
    renames = getattr(writing.format_of(config), "RENAMED_MODULES", ())

    def renamed(name: str) -> str:
        for old, new in renames:
            name = re.sub(old, new, name)
        return name

    return {renamed(name): module for name, module in modules.items()}


# ----------------------------------------------------------------------------------------------------------------- read


def read(folder: Path, config: Any, params: Any) -> tuple[Lora, Any]:
    """The rule of an adapter, and the parameters of its base with the adapter's leaves.

    Args:
      folder: the folder of the adapter.
      config: the config of the base.
      params: the parameters of the base.

    Raises:
      InputError: a setting that we do not compute or do not know, a module that the base does not have, a tensor that
        is missing, unexpected or of another shape, or an adapter that changes nothing.
    """
    where = str(folder / CONFIG)
    given = _settings(weights.read_json(folder / CONFIG), where)
    modules, table, shapes = _modules(config)
    with weights.opened(folder / TENSORS) as tensors:
        named = {_full(name, table, folder): np.asarray(tensors[name][:]) for name in tensors}
    if not any(f"{name}.lora_A.weight" in named for name in modules):
        modules = _renamed(modules, config)
    chosen = [name for name in modules if _is_target(name, given, modules[name].layer)]
    if not chosen:
        raise InputError(
            f'{where}: "target_modules" {given["target_modules"]!r} names no module of this base, whose modules are '
            f"{', '.join(sorted(modules)[:6])}, ..."
        )
    _refuse_unfound(given, modules, where)
    chosen = [name for name in chosen if _has(name, named, given)]
    found = {name: _pair(name, named, given, modules[name], shapes, where) for name in chosen}
    saved = {name: tensor for name, tensor in named.items() if ".lora_" not in name}
    rest = [name for name in named if ".lora_" in name and name.partition(".lora_")[0] not in found]
    if rest:
        raise InputError(f"{folder / TENSORS}: tensor {min(rest)} is of no module that {CONFIG} and the base have")
    if not found:
        raise InputError(
            f"{folder / TENSORS}: no module of this base has a lora_A in it, so there is no adapter to read"
        )
    if not any(b.any() for _, b, _, _ in found.values()) and not saved:
        raise InputError(f"{folder / TENSORS}: every lora_B is zero, so this adapter changes nothing; was it trained?")
    leaves = params_lib.flatten(params) | _saved(saved, given, table, shapes, folder)
    rule, added = _leaves(found, modules, given, shapes)
    full = tuple(sorted({f"^{row.leaf}$" for row in table.rows if _is_saved(row.tensor, saved) and row.leaf in shapes}))
    return Lora(**rule, full=full), params_lib.nested(leaves | added)


def _settings(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key, value in given.items():
        if key in _NEUTRAL and value not in _NEUTRAL[key]:
            raise InputError(f'{where}: "{key}" is {value!r}; supported is {_NEUTRAL[key][0]!r}')
        if key not in _NEUTRAL and key not in _READ and key not in _IGNORED:
            raise InputError(f'{where}: there is no setting "{key}"; a misspelt or a newer one would be ignored')
    if "peft_type" not in given:
        raise InputError(f'{where} has no "peft_type", so it is not the adapter_config.json of PEFT')
    settings = _READ | {key: value for key, value in given.items() if key in _READ and value is not None}
    if not settings["target_modules"]:
        raise InputError(f'{where}: "target_modules" is empty, so this adapter changes nothing')
    return settings


def _full(name: str, table: mapping.Table, folder: Path) -> str:
    """The full name of a tensor: without PEFT's prefix, and with the one that a trunk alone leaves out."""
    if not name.startswith(PREFIX):
        raise InputError(f"{folder / TENSORS}: tensor {name} does not begin with {PREFIX}, so it is not PEFT's")
    name = name.removeprefix(PREFIX).replace(".modules_to_save", "").replace(".default", "")
    known = {row.tensor.split(".")[0] for row in table.rows}
    return name if name.split(".")[0] in known else table.prefix + name


def _is_target(name: str, given: Mapping[str, Any], layer: int | None) -> bool:
    """Whether PEFT adapts the module `name`."""
    wanted, without, layers = given["target_modules"], given["exclude_modules"] or (), given["layers_to_transform"]
    if layers is not None and layer not in ([layers] if isinstance(layers, int) else layers):
        return False
    if _matches(name, without):
        return False
    return wanted == "all-linear" or _matches(name, wanted)


def _matches(name: str, wanted: Any) -> bool:
    """As PEFT: a text is a regular expression of the whole name, a list has names, or the ends of names."""
    if isinstance(wanted, str):
        try:
            return re.fullmatch(wanted, name) is not None
        except re.error as error:
            raise InputError(f'"target_modules" is {wanted!r}, which is no regular expression ({error})') from None
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def _refuse_unfound(given: Mapping[str, Any], modules: Mapping[str, Module], where: str) -> None:
    wanted = given["target_modules"]
    for one in wanted if isinstance(wanted, list) else ():
        if not any(_matches(name, [one]) for name in modules):
            raise InputError(
                f'{where}: "target_modules" has {one!r}, which this base has not; its modules are '
                f"{', '.join(sorted(modules)[:6])}, ..."
            )


def _has(name: str, named: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the module is to be in the file; "all-linear" leaves out the heads, which the file alone says."""
    return given["target_modules"] != "all-linear" or f"{name}.lora_A.weight" in named


def _pair(
    name: str,
    named: Mapping[str, np.ndarray],
    given: Mapping[str, Any],
    module: Module,
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray | None]:
    """(A [in, r], B [r, out], scale, DoRA's magnitudes [out]) of a module."""
    rank = _pattern(given["rank_pattern"], name, given["r"])
    alpha = _pattern(given["alpha_pattern"], name, given["lora_alpha"])
    width_in = shapes[module.rows[0].leaf][-2]
    width_out = sum(shapes[row.leaf][-1] for row in module.rows)
    wanted: dict[str, tuple[int, ...]] = {"lora_A.weight": (rank, width_in), "lora_B.weight": (width_out, rank)}
    if given["use_dora"]:
        wanted["lora_magnitude_vector"] = (width_out,)
    tensors = []
    for part, shape in wanted.items():
        key = next((key for key in (f"{name}.{part}", f"{name}.{part}.weight") if key in named), None)
        if key is None:
            raise InputError(f"{where} names the module {name}, but {TENSORS} has no {name}.{part}")
        tensor = named[key]
        if tensor.shape != shape:
            hint = "; it is transposed" if tensor.shape == shape[::-1] else "; is this another base, or another rank?"
            raise InputError(
                f"{TENSORS}: {key} has shape {list(tensor.shape)}, and the base implies {list(shape)}{hint}"
            )
        tensors.append(tensor.astype(np.float32))
    a, b, *magnitude = tensors
    scale = alpha / (math.sqrt(rank) if given["use_rslora"] else rank)
    return a.T, b.T, scale, magnitude[0] if magnitude else None


def _pattern(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _leaves(
    found: Mapping[str, Any], modules: Mapping[str, Module], given: Mapping[str, Any], shapes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """(the settings of a rule, {path: leaf}): the layers of a stack share a rank, so that lower ones get zeros, and a
    scale, so that B is multiplied by the quotient."""
    ranks: dict[str, int] = {}
    for name, (a, _, _, _) in found.items():
        for row in modules[name].rows:
            ranks[row.leaf] = max(ranks.get(row.leaf, 0), a.shape[1])
    rank = given["r"] if given["r"] in ranks.values() else max(ranks.values())
    alpha, root = float(given["lora_alpha"]), bool(given["use_rslora"])
    own = tuple((f"^{leaf}$", one) for leaf, one in sorted(ranks.items()) if one != rank)
    target = "^(" + "|".join(sorted(leaf.removesuffix("/kernel") for leaf in ranks)) + ")/kernel$"
    rule: dict[str, Any] = {"rank": rank, "alpha": alpha, "target": target, "ranks": own}
    rule |= {"rank_stabilised": root, "dora": bool(given["use_dora"])}
    leaves: dict[str, np.ndarray] = {}
    for leaf, one in ranks.items():
        *lead, D, F = shapes[leaf]
        at = leaf.removesuffix("kernel")
        leaves[f"{at}lora_a"] = np.zeros((*lead, D, one), np.float32)
        leaves[f"{at}lora_b"] = np.zeros((*lead, one, F), np.float32)
        leaves[f"{at}lora_scale"] = np.full(lead, Lora(**rule).of(leaf)[1], np.float32)
        if given["use_dora"]:
            leaves[f"{at}lora_magnitude"] = np.ones((*lead, F), np.float32)
    for name, (a, b, scale, magnitude) in found.items():
        begin = 0
        for row in modules[name].rows:
            at, where = row.leaf.removesuffix("kernel"), () if modules[name].layer is None else (modules[name].layer,)
            columns = slice(begin, begin + shapes[row.leaf][-1])
            begin = columns.stop
            leaves[f"{at}lora_a"][*where, :, : a.shape[1]] = a
            quotient = scale / float(leaves[f"{at}lora_scale"].flat[0])
            leaves[f"{at}lora_b"][*where, : len(b), :] = b[:, columns] * np.float32(quotient)
            if magnitude is not None:
                leaves[f"{at}lora_magnitude"][*where] = magnitude[columns]
    return rule, {path: jnp.asarray(leaf) for path, leaf in leaves.items()}


def _is_saved(tensor: str, saved: Mapping[str, Any]) -> bool:
    return re.sub(r"\{\}", "0", tensor) in saved


def _saved(
    saved: Mapping[str, np.ndarray],
    given: Mapping[str, Any],
    table: mapping.Table,
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> dict[str, Any]:
    """{path: leaf} of the modules that were trained themselves ("modules_to_save")."""
    leaves: dict[str, Any] = {}
    wanted = given["modules_to_save"] or []
    rows = {row.tensor: row for row in table.rows if row.leaf in shapes and row.parts == 1 and not row.unfolded}
    for one in wanted:
        if not any(_matches(name.rpartition(".")[0], [one]) for name in saved):
            raise InputError(f'{folder / CONFIG}: "modules_to_save" has {one!r}, of which {TENSORS} has no tensor')
    for name, tensor in saved.items():
        row = rows.get(name)
        if row is None or not _matches(name.rpartition(".")[0], wanted):
            raise InputError(
                f"{folder / TENSORS}: tensor {name} is unexpected: neither lora_A or lora_B, nor of a module in "
                '"modules_to_save" that the base has'
            )
        ours = tensor.T if row.transpose else tensor
        if ours.shape != shapes[row.leaf]:
            raise InputError(
                f"{folder / TENSORS}: {name} has shape {list(tensor.shape)}, but the base's {row.leaf} is "
                f"{list(shapes[row.leaf])}"
            )
        leaves[row.leaf] = jnp.asarray(ours.astype(np.float32) + row.plus)
    return leaves


# ---------------------------------------------------------------------------------------------------------------- write


def write(folder: Path, config: Any, params: Any, *, base: str, rule: Lora) -> None:
    """Writes a folder that PEFT reads, and `read`.

    Args:
      folder: a new or empty folder.
      config: the config of the model.
      params: its tree, with the leaves of an adapter.
      base: the path or name of the base, as PEFT is to state it.
      rule: the rule of the adapter; the parameters in `rule.full` are written as "modules_to_save".

    Raises:
      InputError: the folder is not empty, there is no adapter, or PEFT cannot express it.
    """
    from safetensors.numpy import save_file

    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is not an empty folder; nothing is overwritten, so name another")
    if not adapters.is_adapted(params):
        raise InputError("this model has no adapter to write; convert hf writes its parameters")
    modules, table, shapes = _modules(config)
    modules = _renamed(modules, config)
    flat = {path: np.asarray(leaf) for path, leaf in params_lib.flatten(params).items()}
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    held = {path.removesuffix("lora_a") for path in flat if path.endswith("lora_a")}
    for name, module in modules.items():
        if any(row.leaf.removesuffix("kernel") in held for row in module.rows):
            ranks[name] = _write_module(name, module, flat, shapes, tensors)
    written = {row.leaf for module in modules.values() for row in module.rows}
    if lost := [path for path in held if f"{path}kernel" not in written]:
        raise InputError(f"PEFT has no adapter for {min(lost)}kernel, which is not a linear layer of Transformers")
    saved = _write_saved(rule, table, shapes, flat, tensors)
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    root = math.sqrt if rule.rank_stabilised else int
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        # The scale is in B, so that alpha / r, or alpha / sqrt(r), is 1.
        "lora_alpha": root(rank),
        "rank_pattern": {name: one for name, one in ranks.items() if one != rank},
        "alpha_pattern": {name: root(one) for name, one in ranks.items() if one != rank},
        "target_modules": sorted(ranks),
        "modules_to_save": saved or None,
        "fan_in_fan_out": not all(module.rows[0].transpose for name, module in modules.items() if name in ranks),
        "use_rslora": rule.rank_stabilised,
        "use_dora": any(path.endswith("lora_magnitude") for path in flat),
        "bias": "none",
        "lora_dropout": 0.0,
    }
    with writing.new_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file({f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, partial / TENSORS, {"format": "pt"})


def _write_module(
    name: str,
    module: Module,
    flat: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: dict[str, np.ndarray],
) -> int:
    """Adds a module's two matrices to `tensors`; returns its rank. The A of kernels that share a module are one where
    they are equal; otherwise they are stacked, and B is block diagonal."""
    at = () if module.layer is None else (module.layer,)
    parts = []
    for row in module.rows:
        path, width = row.leaf.removesuffix("kernel"), shapes[row.leaf][-1]
        if f"{path}lora_a" in flat:
            b = flat[f"{path}lora_b"][at] * flat[f"{path}lora_scale"][at]
            magnitude = flat.get(f"{path}lora_magnitude")
            parts.append((flat[f"{path}lora_a"][at], b, None if magnitude is None else magnitude[at]))
        else:
            parts.append((np.zeros((shapes[row.leaf][-2], 0), np.float32), np.zeros((0, width), np.float32), None))
    if all(np.array_equal(a, parts[0][0]) for a, _, _ in parts):
        a, b = parts[0][0], np.concatenate([b for _, b, _ in parts], axis=1)
    else:
        a = np.concatenate([a for a, _, _ in parts], axis=1)
        b = np.zeros((a.shape[1], sum(part.shape[1] for _, part, _ in parts)), np.float32)
        down = along = 0
        for _, part, _ in parts:
            b[down : down + len(part), along : along + part.shape[1]] = part
            down, along = down + len(part), along + part.shape[1]
    tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
    tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
    magnitudes = [magnitude for _, _, magnitude in parts]
    if any(m is not None for m in magnitudes):
        if any(m is None for m in magnitudes):
            raise InputError(f"PEFT has one DoRA for all of {name}, of which only some kernels have an adapter here")
        tensors[f"{name}.lora_magnitude_vector"] = np.concatenate([m for m in magnitudes if m is not None])
    return a.shape[1]


def _write_saved(
    rule: Lora,
    table: mapping.Table,
    shapes: Mapping[str, tuple[int, ...]],
    flat: Mapping[str, np.ndarray],
    tensors: dict[str, np.ndarray],
) -> list[str]:
    """Adds the parameters that were trained themselves to `tensors`; returns the names of their modules."""
    is_full = lambda leaf: any(re.search(pattern, leaf) for pattern in rule.full)  # noqa: E731
    rows = [row for row in table.rows if row.leaf in shapes]
    full = [row for row in rows if is_full(row.leaf)]
    names = {row.tensor.rpartition(".")[0] for row in full}
    for row in rows:
        module = row.tensor.rpartition(".")[0]
        simple = "{}" not in row.tensor and row.parts == 1 and not row.unfolded and not row.one_row
        if module in names and not (is_full(row.leaf) and simple):
            raise InputError(f"PEFT saves whole modules outside of the stack; {row.leaf} cannot be one: adapter.full")
    for row in full:
        tensor = flat[row.leaf] - np.asarray(row.plus, np.float32)
        tensors[row.tensor] = np.ascontiguousarray(tensor.T if row.transpose else tensor)
    return sorted(names)
