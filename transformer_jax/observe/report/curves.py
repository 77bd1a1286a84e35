"""The curves of a run's page: training beside evaluation, the optimiser, the speed."""

from collections.abc import Sequence

from transformer_jax import pages
from transformer_jax.observe.report.recorded import Recorded, interval
from transformer_jax.pages import Html, Line

SETS = ("validation", "test")
SPEED = ("seconds_per_step", "data_wait", "mfu")
MOST = 24  # pictures of a section


def learning(run: Recorded) -> tuple[str, Html] | None:
    """Losses and scores of `run`, of training batches and of evaluations: one picture for each name."""
    training = [name for name in run.series if "/" not in name and not _is_other(name)]
    training.sort(key=lambda name: name != "loss")
    figures, used = [], set[str]()
    for name in training:
        pair = [evaluated for evaluated in _evaluated(run) if _pairs(name, evaluated)]
        first = pair[:1] if name == "loss" else pair
        used |= set(first)
        lines = [_line(run, name, "training batch"), *(_line(run, x, _set_of(x)) for x in first)]
        figures.append(pages.curves(_title(first[0] if name == "loss" and first else name), lines, x="step"))
    for name in _evaluated(run):
        if name not in used and name.startswith("validation/"):
            figures.append(pages.curves(_title(name), [_line(run, name, "validation")], x="step"))
    if not figures:
        return None
    shown, folded = figures[:6], figures[6:MOST]
    more = [_folded(f"{len(folded)} further numbers", folded)] if folded else []
    left = len(figures) - len(shown) - len(folded)
    notes = [pages.note(f"{left:,} further numbers are in metrics.jsonl")] if left else []
    return pages.section("Curves", _thinned(run), pages.grid(*shown), *more, *notes)


def optimisation(run: Recorded) -> tuple[str, Html] | None:
    """The learning rate of `run`, and the norms of gradients and whatever else a row calls a norm."""
    names = [name for name in run.series if name == "learning_rate" or ("norm" in name and "/" not in name)]
    figures = [_alone(run, name) for name in names[:MOST]]
    skipped = run.series.get("skipped")
    if skipped is not None and skipped.last and skipped.last[1]:
        figures.append(_alone(run, "skipped"))
    return pages.section("Gradients and learning rate", pages.grid(*figures)) if figures else None


def speed(run: Recorded) -> list[Html]:
    """Figures of the throughput of `run`, of the wait for data and of the share of the chip's peak."""
    names = [name for name in run.series if name in SPEED or name.endswith("_per_second")]
    return [_alone(run, name) for name in names[:MOST]]


def _is_other(name: str) -> bool:
    """Whether a training row's number is of the optimiser or of the speed."""
    others = (*SPEED, "learning_rate", "skipped", "seconds_left")
    return name in others or name.endswith("_per_second") or "norm" in name


def _evaluated(run: Recorded) -> list[str]:
    """The names of evaluations, without the ends of intervals."""
    names = [name for name in run.series if name.partition("/")[0] in SETS and "/" in name]
    ends = {end for name in names for end in interval(name, run.series) or ()}
    return [name for name in names if name not in ends]


def _pairs(name: str, evaluated: str) -> bool:
    plain = evaluated.partition("/")[2]
    return plain == name or (name == "loss" and plain.startswith("loss"))


def _set_of(name: str) -> str:
    return f"{name.partition('/')[0]} set"


def _title(name: str) -> str:
    plain = name.partition("/")[2] or name
    return plain.replace("_", " ").replace("seconds per second", "seconds of sound per second")


def _line(run: Recorded, name: str, label: str) -> Line:
    """A series; its band is its interval where it has one, else the extremes of the points that are joined."""
    series = run.series[name]
    ends, band = interval(name, run.series), series.band()
    if ends and not band:
        low, high = (run.series[end].points() for end in ends)
        band = [(x, a, b) for (x, a), (_, b) in zip(low, high, strict=False) if a is not None and b is not None]
        label += ", 95 % interval"
    return Line(label, series.points(), band=band, marks="/" in name)


def _alone(run: Recorded, name: str) -> Html:
    return pages.curves(_title(name), [_line(run, name, _title(name))], x="step")


def _folded(summary: str, figures: Sequence[Html]) -> Html:
    return pages.element("details", pages.element("summary", summary), pages.grid(*figures))


def _thinned(run: Recorded) -> Html:
    """Says so where a point of a curve is more than one row."""
    joined = any(series.band() for series in run.series.values())
    text = f"{run.rows:,} rows. A line is the mean of neighbouring rows; the band behind it is their extremes."
    return pages.element("p", text) if joined else Html("")
