"""README.md of an exported folder: the model card that the Hub shows, from what a run has stored.

    text = card.text("org/name", settings, run, license="apache-2.0")

Its front matter is what the Hub reads: the task, the base model, the data sets and the numbers. The rest is for people:
the numbers with their intervals, the data, the command, the versions, and how the model is loaded.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from transformer_jax import extras, hf
from transformer_jax.errors import InputError
from transformer_jax.hub import modules

FILE = "README.md"
# Our name of a number -> the Hub's, where another metric of the Hub is meant by it.
METRICS = {"matthews": "matthews_correlation", "bleu": "sacrebleu", "word_accuracy": "accuracy"}


@dataclass(frozen=True)
class Run:
    """What a run has stored.

    Attributes:
      config: the object in its config.json.
      results: the object in its results.json; {} if the run has not ended.
      numbers: {set: {name: number, or a convention in words}}, of the exported step alone.
      step: the exported step.
      versions: {package: version} that the step was written with.
      pipeline_tag: the Hub's name of the task; "": it has none.
      base: the name on the Hub of the model that it started from; "": none.
    """

    config: Mapping[str, Any]
    results: Mapping[str, Any]
    numbers: Mapping[str, Mapping[str, Any]]
    step: int
    versions: Mapping[str, str]
    pipeline_tag: str = ""
    base: str = ""


def check(name: str, license: str) -> None:
    """Raises `InputError` for a `name` that is not ORGANISATION/NAME, or a `license` that is no id of the Hub's."""
    if (name and hf.named(name)) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"{name!r} is not the name of a model on the Hub; give ORGANISATION/NAME")
    if not re.fullmatch(r"[a-z0-9.-]*", license):
        raise InputError(f"license {license!r} is not an id of the Hub's, such as apache-2.0, mit or other")


def text(name: str, settings: Mapping[str, Any], run: Run, *, license: str = "") -> str:
    """The text of the card.

    Args:
      name: the name of the model, "org/name"; or a title, where it has no name on the Hub yet.
      settings: the object in the exported config.json.
      run: what the run has stored.
      license: an id of the Hub's; "": none is stated.
    """
    sections = [_about(name, settings, run), _numbers(run), _use(name, settings, run), _training(run), _config(run)]
    return f"---\n{_front_matter(name, settings, run, license)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


# --------------------------------------------------------------------------------------------------------- front matter


def _front_matter(name: str, settings: Mapping[str, Any], run: Run, license: str) -> str:
    extras.need("huggingface_hub", "a model card")
    from huggingface_hub import EvalResult, ModelCardData

    datasets = sorted({hf.parse(path).repository for path in _names(run.config["data"], "datasets/")})
    tag = run.pipeline_tag or None
    results = [
        EvalResult(
            task_type=tag or "other",
            dataset_type=datasets[0] if datasets else _source(run),
            dataset_name=datasets[0] if datasets else _source(run),
            dataset_split=split,
            metric_type=METRICS.get(metric, metric),
            metric_name=_words(metric),
            metric_value=value,
        )
        for split, report in run.numbers.items()
        for metric, value in _scores(report)
    ]
    card = ModelCardData(
        license=license or None,
        library_name=modules.MODEL_TYPE if settings["model_type"] == modules.MODEL_TYPE else "transformers",
        pipeline_tag=tag,
        base_model=hf.parse(run.base).repository if run.base else None,
        datasets=datasets or None,
        tags=["jax", "transformer_jax"],
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
    )
    return card.to_yaml().strip()


def _names(value: Any, prefix: str) -> Iterator[str]:
    """The names on the Hub, hf://PREFIX..., in a JSON value."""
    if isinstance(value, str) and value.startswith(hf.SCHEME + prefix):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names(one, prefix)


def _scores(report: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The numbers of a report without the ends of intervals."""
    ends = {f"{name}{end}" for name in report for end in ("_low", "_high")}
    return [(name, value) for name, value in report.items() if isinstance(value, int | float) and name not in ends]


# --------------------------------------------------------------------------------------------------------- for people


def _about(name: str, settings: Mapping[str, Any], run: Run) -> str:
    parameters = run.results.get("parameters")
    size = f" of {parameters:,} parameters" if parameters else ""
    base = f", fine-tuned from [{hf.parse(run.base).repository}]({_link(run.base)})" if run.base else ""
    return (
        f"# {name.rpartition('/')[2]}\n\nA `{settings['model_type']}` model{size}{base}, trained with "
        f"[transformer_jax](https://github.com/transformer-jax/transformer_jax) for {run.step:,} steps."
    )


def _numbers(run: Run) -> str:
    lines = ["| Set | Number | Value | 95 % interval |", "|---|---|---:|---|"]
    conventions = []
    for split, report in run.numbers.items():
        for name, value in _scores(report):
            low, high = report.get(f"{name}_low"), report.get(f"{name}_high")
            interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            lines.append(f"| {split} | {_words(name)} | {value:.4f} | {interval} |")
        conventions += [f"- {_words(name)}: `{value}`" for name, value in report.items() if isinstance(value, str)]
    if not run.numbers:
        return "## Numbers\n\nThis step was not evaluated."
    return "\n".join(["## Numbers", "", *lines, *([""] if conventions else []), *dict.fromkeys(conventions)])


def _use(name: str, settings: Mapping[str, Any], run: Run) -> str:
    model = next(iter(settings.get("architectures") or ()), "AutoModel")
    images = run.pipeline_tag == "image-classification"
    reader = "AutoImageProcessor" if images else "AutoTokenizer"
    argument = "photo.jpg" if images else '"..."'
    here = f"hf://{name}" if "/" in name else name
    library = "Transformers"
    code = f"""from transformers import {reader}, {model}

reader = {reader}.from_pretrained("{name}")
model = {model}.from_pretrained("{name}")"""
    if settings["model_type"] == modules.MODEL_TYPE:  # Transformers would read it without its pooling
        library = modules.MODEL_TYPE
        code = f"""from sentence_transformers import SentenceTransformer

embeddings = SentenceTransformer("{name}").encode(["..."])"""
    return f"""## Use

With {library}:

```python
{code}
```

With transformer_jax, where neither torch nor Transformers is needed:

```python
import transformer_jax

loaded = transformer_jax.load("{here}")
```

```sh
transformer-jax predict {here} {argument}
```"""


def _training(run: Run) -> str:
    config, results = run.config, run.results
    train = config.get("train", {})
    local = PurePath(config.get("init_from") or "").name  # the model is not on the Hub
    start = f"the parameters of `{local}`" if local else "random parameters"
    if run.base:
        start = f"[{hf.parse(run.base).repository}]({_link(run.base)})"
    pages = [f", [{hf.parse(one).page}]({_link(one)})" for one in _names(config["data"], "")]
    lines = [
        f"- Start: {start}, seed {config.get('seed', 0)}",
        f"- Data: {_source(run)}{''.join(dict.fromkeys(pages))}",
        *(f"- {_words(name).capitalize()}: {_value(value)}" for name, value in results.get("facts", {}).items()),
        f"- Task: `{config['task']['type']}`",
        f"- Optimiser: `{config['optim']['type']}`, peak learning rate {config['optim'].get('peak_lr', 'of its own')}",
        f"- Steps: {run.step:,} of {train.get('batch_size', 0):,} examples",
    ]
    if "seconds" in results:
        lines.append(f"- Time: {results['seconds'] / 60:,.1f} minutes on {results.get('devices', 'unknown devices')}")
    versions = ", ".join(f"{package} {version}" for package, version in run.versions.items())
    lines.append(f"- Versions: {versions}")
    command = results.get("command", "")
    shown = f"\n\n```sh\n{command}\n```" if command else ""
    return "\n".join(["## Training", "", *lines]) + shown


def _config(run: Run) -> str:
    settings = json.dumps(_public(run.config), indent=2, ensure_ascii=False)
    return f"<details><summary>All settings: config.json</summary>\n\n```json\n{settings}\n```\n\n</details>"


def _source(run: Run) -> str:
    """The training files, or the kind of the data's source where it names none: "train.tsv", "Stdlib"."""
    data = run.config["data"]
    source = data["source"] if isinstance(data.get("source"), dict) else data
    paths = source.get("train") or source.get("paths") or []
    names = [PurePath(path).name for path in (paths if isinstance(paths, list) else [paths]) if isinstance(path, str)]
    return ", ".join(names[:3]) or str(source.get("type", "data")).rpartition(".")[2]


def _link(name: str) -> str:
    """The page of a name on the Hub, at its commit."""
    parts = hf.parse(name)
    return f"https://huggingface.co/{parts.page}" + (f"/tree/{parts.revision}" if parts.revision else "")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)


def _public(value: Any) -> Any:
    """A JSON value without the folders of this machine: of an absolute path, the name alone."""
    if isinstance(value, dict):
        return {key: _public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_public(one) for one in value]
    if isinstance(value, str) and os.path.isabs(value):
        return PurePath(value).name
    return value
