"""`convert hf RUN DST --card --push`: the model card of a run, and the upload of an exported folder to the Hub."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_jax import compress, config_json, extras, files, hf, hub
from transformer_jax.errors import InputError
from transformer_jax.hub import card as cards
from transformer_jax.runs import saved
from transformer_jax.runs import workdir as workdirs


@dataclass(frozen=True)
class Options:
    card: bool = False
    """Write README.md, the model card."""
    license: str = ""
    """The license that the card states, by the Hub's id, such as apache-2.0; empty: none."""
    push: str = ""
    """ORGANISATION/NAME: upload the folder, with its card, into this repository of the Hub."""
    public: bool = False
    """Create the repository as a public one."""


def check(options: Options) -> None:
    """Refuses options before anything is read or written.

    Args:
      options: the options of the command.

    Raises:
      InputError: a license or a repository that is no name, or there is no token to push with.
    """
    cards.check(options.push or "name", options.license)
    if (options.license or options.public) and not (options.card or options.push):
        raise InputError("--license and --public are of a card; give --card, or --push ORGANISATION/NAME")
    if options.push:
        extras.need("huggingface_hub", "--push")
        import huggingface_hub

        if "/" not in options.push:
            raise InputError(f"--push {options.push} names no organisation; give --push ORGANISATION/{options.push}")
        if huggingface_hub.get_token() is None:
            raise InputError("--push: no token of the Hub is here; log in: hf auth login, or HF_TOKEN")
    elif options.card:
        extras.need("huggingface_hub", "--card")


def card(folder: Path, loaded: Any, options: Options, title: str) -> Callable[[Mapping[str, Any]], str]:
    """The function from an exported config.json to the card's text, for `hub.export`.

    Args:
      folder: a workdir, or one of its steps.
      loaded: the checkpoint that is exported.
      options: the options of the command.
      title: the title of the card, where the model is not pushed.

    Raises:
      InputError: files of the run that are not what a run writes.
    """
    workdir = folder.parent.parent if (folder / "meta").is_dir() else folder
    meta = saved.read_meta(workdir / "checkpoints" / str(loaded.step))
    results = workdirs.read_results(workdir)
    run = cards.Run(
        config=meta["config"],
        results=results,
        numbers=_numbers(workdir, results, loaded.step),
        step=loaded.step,
        versions=meta.get("versions", {}),
        pipeline_tag=getattr(loaded.task, "pipeline_tag", ""),
        base=_base(meta["config"]),
    )
    return lambda settings: cards.text(options.push or title, settings, run, license=options.license)


def _numbers(workdir: Path, results: Mapping[str, Any], step: int) -> dict[str, Mapping[str, Any]]:
    """{set: its numbers} of this step alone, from results.json, or else from evaluation.json."""
    found = {}
    if results.get("step") == step and results.get("report"):
        found["validation"] = results["report"]
    if results.get("test") and (results.get("best_step") or results.get("step")) == step:
        found["test"] = results["test"]
    if not found and (workdir / "evaluation.json").exists():
        evaluated = files.read_json(workdir / "evaluation.json", inside=workdir)
        if isinstance(evaluated, dict) and evaluated.get("step") == step:
            names = {"report": "validation", "test": "test"}
            found = {name: evaluated[key] for key, name in names.items() if isinstance(evaluated.get(key), dict)}
    return found


def _base(config: Mapping[str, Any], steps: int = 8) -> str:
    """The name on the Hub of the model that a run started from, perhaps by way of other runs of this machine."""
    origin = config.get("init_from") or ""
    if hf.named(origin) or not origin or steps == 0:
        return str(origin)
    if "://" in origin or hub.is_snapshot(origin):
        return ""
    try:
        return _base(config_json.to_json(config_json.load(Path(origin) / "config.json")), steps - 1)
    except InputError:
        return ""


def refuse_changed(folder: str, loaded: Any) -> None:
    """Reads an exported folder back, and refuses it where it is not the model that was exported.

    Args:
      folder: the exported folder.
      loaded: what was exported.

    Raises:
      InputError: a parameter differs, or the folder cannot be read.
    """
    _, params, _ = hub.load(folder)
    same = jax.tree.map(
        lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), params, compress.unpack(loaded.params)
    )
    if not all(jax.tree.leaves(same)):
        raise InputError(f"{folder} does not hold the parameters that were exported; nothing was pushed; export again")


def push(folder: str, options: Options) -> str:
    """Uploads a folder and returns a line that says where it is.

    Args:
      folder: the exported folder.
      options: the options of the command.

    Raises:
      InputError: the Hub refuses it, or cannot be reached.
    """
    extras.need("huggingface_hub", "--push")
    import huggingface_hub

    api = huggingface_hub.HfApi(library_name="transformer_jax")
    with hf.explained(f"--push {options.push}", options.push), hf.quiet(progress=True):
        api.create_repo(options.push, private=not options.public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=options.push, folder_path=folder, commit_message="A model trained with transformer_jax"
        )
    return f"{api.endpoint}/{options.push}: pushed as commit {commit.oid}; it loads as hf://{options.push}@{commit.oid}"
