"""The sections of a run's page."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformer_jax import pages
from transformer_jax.observe.report import curves
from transformer_jax.observe.report.recorded import Recorded, as_number, flat, interval
from transformer_jax.observe.terminal import duration
from transformer_jax.pages import Html

MOST_BYTES = 2_000_000  # the largest page
LONGEST = 2000  # characters of a value
MOST_ROWS = 300  # the most rows of a table
MOST_SAMPLES = 30
SAMPLE_CHARACTERS = 10_000

Section = tuple[str, Html]


def render(run: Recorded, *, refresh: int = 0, lead: Any = "") -> str:
    """The page of a run, of at most `MOST_BYTES` bytes: pictures that would make it longer are named.

    Args:
      run: what is known of it.
      refresh: seconds after which a browser loads the page again; 0: never.
      lead: stands below the title.
    """
    title = f"Run {run.name}"
    makers: tuple[Callable[[Recorded], Section | None], ...] = (
        _summary,
        curves.learning,
        _numbers,
        _samples,
        _data,
        curves.optimisation,
        _diagnosis,
        _time,
        _settings,
        _launches,
        _continue,
    )
    sections = [made for maker in makers if (made := maker(run)) is not None]
    head = pages.join([pages.element("p", pages.element("strong", state(run))), lead])
    footer = "Written by transformer_jax. This file needs no network and has no script."
    groups = {"Of the evaluation": run.pictures, "Drawn during training": run.drawn}
    left = MOST_BYTES - len(pages.page(title, sections, lead=head, footer=footer, refresh=refresh).encode())
    if (pictures := _pictures(groups, left - 20_000)) is not None:
        sections.insert(3, pictures)
    return pages.page(title, sections, lead=head, footer=footer, refresh=refresh)


def state(run: Recorded) -> str:
    """How far `run` is, in words."""
    steps = as_number(_field(run.config, "train", "steps"))
    of = f" of {pages.number(steps)}" if math.isfinite(steps) else ""
    if run.owner:
        return f"Running: step {pages.number(run.last_step)}{of}, by {run.owner}"
    if run.results and run.results.get("step", -1) >= run.last_step:
        early = " after an evaluation without a better number" if run.results.get("stopped_by_patience") else ""
        took = as_number(run.results.get("seconds"))
        time = f", in {duration(took)}" if 0 <= took < 1e9 else ""
        return f"Complete at step {pages.number(run.results.get('step'))}{of}{early}{time}"
    return f"Not complete: step {pages.number(run.last_step)}{of}; no process is known to train it"


def _summary(run: Recorded) -> Section:
    newest = run.launches[-1] if run.launches else {}
    commit = _text(newest.get("commit")) or "not known"
    changed = " with changes that are not committed" if newest.get("commit_changed") else ""
    parts = {part: _field(run.config, part, "type") for part in ("model", "data", "task", "optim")}
    facts = {
        "command": newest.get("command") or run.results.get("command"),
        "started": newest.get("at"),
        "commit of the code": commit + changed if newest else None,
        **parts,
        "parameters": newest.get("parameters") or run.results.get("parameters"),
        "started from": run.config.get("init_from") or "scratch",
        "seed": run.config.get("seed"),
        "devices": newest.get("devices") or run.results.get("devices"),
        "machine": newest.get("machine"),
        "versions": ", ".join(f"{k} {_text(v)}" for k, v in _mapping(newest.get("versions")).items())
        or (f"jax {_text(run.results['jax'])}" if "jax" in run.results else None),
        "skipped steps": run.results.get("skipped_steps"),
    }
    rows = [(name, pages.number(_cell(value))) for name, value in facts.items() if value is not None]
    notes = [pages.note(problem) for problem in run.problems]
    return pages.section("What it was", pages.table("The run", ["fact", "value"], rows), *notes)


def _numbers(run: Recorded) -> Section | None:
    """The final numbers, with their intervals; of a run that trains, those of its last evaluation."""
    tables = []
    reports = {"validation": run.results.get("report"), "test": run.results.get("test")}
    step, best = run.results.get("step"), run.results.get("best_step")
    where = {"validation": f"step {_text(step)}", "test": f"step {_text(step if best is None else best)}"}
    if not run.results:
        reports = {"validation": _last_evaluation(run, "validation/")}
        where = {"validation": "the last evaluation"}
    for name, report in reports.items():
        if isinstance(report, Mapping) and report:
            tables.append(_report_table(f"{name.capitalize()} set, {where[name]}", report))
    for name, report in run.evaluation.items():
        if name not in ("step", "overrides") and isinstance(report, Mapping) and report:
            of = f"step {_text(run.evaluation.get('step'))}"
            which = "validation" if name == "report" else name
            caption = f"Evaluated afterwards: {which} set, {of} {_text(run.evaluation.get('overrides') or '')}"
            tables.append(_report_table(caption, report, hidden=True))
    return pages.section("Numbers", *tables) if tables else None


def _last_evaluation(run: Recorded, prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): x.last[1] for name, x in run.series.items() if name.startswith(prefix) and x.last
    }


def _report_table(caption: str, report: Mapping[str, Any], *, hidden: bool = False) -> Html:
    ends = {name: found for name in report if (found := interval(name, report))}
    rows: list[tuple[Any, ...]] = [
        (name, _cell(value)) for name, value in report.items() if all(name not in pair for pair in ends.values())
    ]
    header = ["number", "value"]
    if ends:
        header.append("95 % interval")
        texts = {name: " to ".join(pages.number(report[end]) for end in pair) for name, pair in ends.items()}
        rows = [(*row, texts.get(row[0])) for row in rows]
    shown = [(name.replace("_", " "), *rest) for name, *rest in rows[:MOST_ROWS]]
    return pages.table(caption, header, shown, hidden=hidden)


def _samples(run: Recorded) -> Section | None:
    samples = list(run.samples)
    if not samples and isinstance(run.results.get("sample"), str) and run.results["sample"]:
        samples = [(as_number(run.results.get("step")), run.results["sample"])]
    if not samples:
        return None
    spread = range(0, len(samples), math.ceil(len(samples) / MOST_SAMPLES))
    chosen = sorted({*spread, len(samples) - 1})
    items = [(f"step {pages.number(samples[i][0])}", samples[i][1][:SAMPLE_CHARACTERS]) for i in chosen]
    return pages.section("Samples", pages.sheet(items))


def _pictures(groups: Mapping[str, Sequence[tuple[str, bytes]]], room: int) -> Section | None:
    """The pictures of the run, {title: (name, bytes)}, as many as fit into `room` bytes; of a group the last ones."""
    parts, left = [], []
    for title, pictures in groups.items():
        shown: list[Html] = []
        for name, data in reversed(pictures):
            size = len(data) * 4 // 3 + 1000
            if size > room:
                left.append(f"{name} ({len(data) / 1000:,.0f} KB)")
                continue
            room -= size
            shown.insert(0, pages.picture(data, name.rpartition(".")[0].replace("_", " "), caption=name))
        if shown:
            parts += [pages.element("h3", title), pages.pictures(*shown)]
    if left:
        parts.append(pages.note(f"Too large for this page, in the run's folder: {', '.join(left)}"))
    return pages.section("Pictures", *parts) if parts else None


def _data(run: Recorded) -> Section | None:
    facts = run.results.get("facts") or (run.launches[-1].get("data") if run.launches else None)
    if not isinstance(facts, Mapping) or not facts:
        return None
    rows = [(name.replace("_", " "), _cell(value)) for name, value in list(facts.items())[:MOST_ROWS]]
    return pages.section("Data", pages.table("What is known of the data", ["fact", "value"], rows))


def _diagnosis(run: Recorded) -> Section | None:
    """What was found out about steps that were not finite."""
    if not run.diagnosis:
        return None
    rows: list[tuple[Any, ...]] = [(name, _cell(value)) for name, value in flat(run.diagnosis).items()][:MOST_ROWS]
    title = "Steps that were not finite"
    return pages.section(title, pages.table("diagnosis.json", ["field", "value"], rows, hidden=True))


def _time(run: Recorded) -> Section | None:
    """Throughput, and where the time went."""
    figures, whole = [], as_number(run.results.get("seconds"))
    parts = {k: as_number(v) for k, v in _mapping(run.results.get("seconds_by_activity")).items()}
    text = []
    if 0 < whole < 1e12:
        goodput = as_number(run.results.get("goodput"))
        stepping = {"steps": goodput * whole} if math.isfinite(goodput) else {}
        known = sum(x for x in [*parts.values(), *stepping.values()] if math.isfinite(x))
        rest = {"starting, compiling, scoring": whole - known} if whole > known else {}
        figures.append(pages.shares("Where the time went", {**stepping, **parts, **rest}, unit="s"))
        text.append(f"Goodput {goodput:.1%}: the share of {duration(whole)} that was spent in steps.")
        first = as_number(run.results.get("seconds_to_first_step"))
        compiling = as_number(run.results.get("seconds_compiling"))
        text.append(f"First step after {first:.1f} s, of which {compiling:.1f} s compiled it. Of the last launch.")
    figures += curves.speed(run)
    above = [pages.element("p", " ".join(text))] if text else []
    return pages.section("Time and throughput", *above, pages.grid(*figures)) if figures else None


def _settings(run: Recorded) -> Section | None:
    if not run.config:
        return None
    changed = run.launches[-1].get("changed") if run.launches else None
    parts = []
    if isinstance(changed, list):
        rows = [tuple(map(_json, row)) for row in changed if isinstance(row, list) and len(row) == 3][:MOST_ROWS]
        text = "The command, the data and the recipe decide a run; these fields are not as the recipe's file has them."
        caption = "Fields that differ from the recipe"
        table = pages.table(caption, ["field", "recipe", "this run"], rows) if rows else None
        parts.append(pages.element("p", text) if rows else pages.element("p", "All fields are as the recipe has them."))
        parts += [table] if table else []
    everything = [(name, _json(value)) for name, value in flat(run.config).items()]
    caption = f"All {len(everything):,} fields of config.json"
    parts.append(pages.table(caption, ["field", "value"], everything[:1000], hidden=True))
    return pages.section("Settings", *parts)


def _launches(run: Recorded) -> Section | None:
    if len(run.launches) < 2:
        return None
    names = ("at", "step", "steps", "command", "commit", "devices")
    rows = [[_cell(launch.get(name)) for name in names] for launch in run.launches[-50:]]
    header = ["started", "from step", "to step", "command", "commit", "devices"]
    return pages.section("Launches", pages.table("Each start of the run", header, rows))


def _continue(run: Recorded) -> Section:
    name, steps = run.name, run.steps
    command = _text(run.launches[-1].get("command")) if run.launches else _text(run.results.get("command") or "")
    lines: list[tuple[str, str]] = []
    if command:
        lines.append((command, "resumes the run; a complete one wants more --train.steps"))
    lines += [
        (f"transformer-jax evaluate {name}", "its numbers again, or on other files with --data"),
        (f"transformer-jax predict {name}", "answers to your own inputs"),
        (f"transformer-jax convert hf {name} DST", "a Hugging Face folder of it"),
        (f"transformer-jax train RECIPE --init-from {name}", "another run that starts from these parameters"),
    ]
    rows = [(pages.element("code", text), what) for text, what in lines]
    saved = f"Saved steps: {', '.join(f'{step:,}' for step in steps[-20:])}." if steps else "No step is saved."
    table = pages.table("Commands", ["command", "gives"], rows)
    return pages.section("How to continue", pages.element("p", saved), table)


# ---- Values of a run, whose types are not known


def _field(tree: Mapping[str, Any], *names: str) -> Any:
    found: Any = tree
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _cell(value: Any) -> Any:
    """A value for a table: a number, or a text of bounded length."""
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)):
        return as_number(value) if isinstance(value, float) or abs(value) > 2**53 else value
    return None if value is None else _text(value)


def _json(value: Any) -> str:
    return "-" if value is None else _text(value)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value) if isinstance(value, Iterable) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"
