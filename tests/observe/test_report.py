"""The page of a run: what it says, what a hostile folder can do to it, and who the server of it answers."""

import contextlib
import html
import http.client
import json
import math
import os
import re
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest

from transformer_jax import contracts, observe
from transformer_jax.cli.main import main
from transformer_jax.errors import InputError
from transformer_jax.observe import report
from transformer_jax.observe.report import live, recorded
from transformer_jax.observe.report.thinned import POINTS, Series
from transformer_jax.runs import launch

EVIL = "</script><script>alert('x')</script>"


def png(size=0):
    """A PNG of one pixel, with `size` random bytes in a chunk that viewers skip."""

    def chunk(kind, data):
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    head = chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\0\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"zzZz", os.urandom(size)) + chunk(b"IDAT", zlib.compress(b"\0\0"))


CONFIG = {"type": "Experiment", "model": {"type": "gpt.Config", "num_layers": 2}, "train": {"steps": 40}, "seed": 3}


def rows():
    for step in range(1, 41):
        yield {"step": step, "loss": 4.0 / step, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens_per_second": 100.0}
        if step % 10 == 0:
            numbers = {
                "loss_nats_per_token": 5.0 / step,
                "accuracy": step / 80,
                "accuracy_low": 0.1,
                "accuracy_high": 0.9,
            }
            yield {"step": step} | {f"validation/{name}": value for name, value in numbers.items()}


RESULTS = {
    "step": 40,
    "report": {
        "loss_nats_per_token": 0.125,
        "accuracy": 0.5,
        "accuracy_low": 0.1,
        "accuracy_high": 0.9,
        "bleu": "sig|v2",
    },
    "best_step": 30,
    "test": {"accuracy": 0.4375, "wer_new_texts": 0.25, "wer_low_new_texts": 0.2, "wer_high_new_texts": 0.3},
    "facts": {"training_tokens": 12345},
    "sample": "once upon",
    "seconds": 120.0,
    "goodput": 0.75,
    "seconds_by_activity": {"evaluating": 12.0},
    "command": "transformer-jax train x.y",
}


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(CONFIG))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (run / "results.json").write_text(json.dumps(RESULTS))
    (run / "test_confusion.png").write_bytes(png())
    return run


def words(page):
    """The text of a page, without its markup."""
    body = re.sub(r"(?s)<style>.*?</style>", "", page)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def test_what_a_page_says(folder):
    page = report.made(folder)
    text = words(page)
    for said in (
        "Complete at step 40 of 40, in 2:00",
        "training batch: from 4 at 1 to 0.1 at 40, lowest 0.1 at 40",
        "validation set: from 0.5 at 10 to 0.125 at 40",
        "accuracy 0.5 0.1 to 0.9",
        "Test set, step 30 number value 95 % interval accuracy 0.4375 wer new texts 0.25 0.2 to 0.3",
        "bleu sig|v2",
        "once upon",
        "training tokens 12,345",
        "steps 75.0% (90 s)",
        "starting, compiling, scoring 15.0% (18 s)",
        "model.num_layers 2",
        "transformer-jax train x.y",
        "No step is saved.",
    ):
        assert said in text, said
    assert page.count("data:image/png;base64,") == 1 and 'http-equiv="refresh"' not in page


def test_pictures_of_the_course_of_a_run(folder):
    (folder / "drawn").mkdir()
    for step in range(0, 100, 5):
        (folder / "drawn" / f"{step:07d}.png").write_bytes(png())
    run = recorded.read(folder, folder)
    assert [name for name, _ in run.drawn] == [f"{step:07d}.png" for step in (0, 15, 25, 40, 55, 70, 80, 95)]
    page = report.render(run)
    assert page.index("Of the evaluation") < page.index("Drawn during training") < page.index("0000015.png")


def test_a_run_that_goes_on(folder):
    (folder / "results.json").unlink()
    text = words(report.made(folder))
    assert "Not complete: step 40 of 40; no process is known to train it" in text
    assert "Validation set, the last evaluation number value 95 % interval loss nats per token 0.125" in text
    (folder / "lock").write_text(json.dumps({"host": "h", "pid": 7, "started": "today"}))
    assert "Running: step 40 of 40, by process 7 on h, started today" in words(report.made(folder))


def test_a_run_of_scripts(folder):
    """Every text of the folder has a script in it."""

    def evil(value):
        if isinstance(value, dict):
            return {
                f"{EVIL}{key}" if key in ("accuracy", "training_tokens") else key: evil(x) for key, x in value.items()
            }
        return value + EVIL if isinstance(value, str) else value

    (folder / "config.json").write_text(json.dumps(evil(CONFIG) | {EVIL: EVIL}))
    (folder / "results.json").write_text(json.dumps(evil(RESULTS)))
    lines = [{"step": 1, EVIL: 1.0, "loss": 2.0, f"validation/{EVIL}": 3.0}, {"step": 2, "loss": 1.0, EVIL: 1.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    launches = {"step": 0, "command": EVIL, "commit": EVIL, "machine": [EVIL], "versions": {EVIL: EVIL}}
    launches |= {"changed": [[EVIL, EVIL, EVIL], "no row"], "data": {EVIL: EVIL}}
    (folder / "launches.jsonl").write_text((json.dumps(launches) + "\n") * 2)
    (folder / "samples.jsonl").write_text(json.dumps({"step": 1, "text": EVIL}) + "\n")
    (folder / f"{EVIL.replace('/', '')}.png").write_bytes(png())
    page = report.made(folder)
    assert "<script" not in page and "alert" in page and words(page).count(EVIL) > 15


def test_a_hostile_run(folder, tmp_path):
    """Files that are missing, broken, elsewhere or of another kind: the page is made, and says so."""
    nested = "[" * 100_000
    outside = tmp_path / "secret.png"
    outside.write_bytes(png())
    (folder / "config.json").write_text(nested)
    (folder / "results.json").write_text('{"report": 3}')
    (folder / "evaluation.json").write_text("[]")
    (folder / "link.png").symlink_to(outside)
    (folder / "folder.png").mkdir()
    (folder / "markup.png").write_text("<svg onload='alert(1)'/>")
    (folder / "launches.jsonl").mkdir()
    lines = [
        '{"step": 1, "loss": NaN, "text": "no number", "list": [1], "flag": true, "n": null}',
        '{"step": 2, "loss": 1e999, "n": 1' + "0" * 400 + "}",
        '{"step": 1e999, "loss": 1.0}',
        '{"step": "3"}',
        "no json",
        '{"step": 4, "loss": 2.5, "n": 7}',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = recorded.read(folder, folder)
    assert run.rows == 4 and run.series["loss"].points() == [(1, None), (2, None), (4, 2.5)]
    assert run.series["n"].points() == [(1, None), (2, None), (4, 7.0)]
    page = report.render(run)
    for said in (
        "config.json is nested too deep",
        "results.json has a wrong value of 'report'",
        "evaluation.json holds no object",
        "link.png is a link to",
        "folder.png is a folder",
        "launches.jsonl is a folder",
        "markup: not a PNG",
        "4 values are no numbers",
        "2 values that are not finite are not drawn",
    ):
        assert said in words(page), said
    assert page.count("data:image") == 1, "the picture outside of the folder is not there"
    for name in ("config.json", "results.json", "evaluation.json", "test_confusion.png"):
        (folder / name).unlink()
    (folder / "metrics.jsonl").write_text("")
    text = words(report.made(folder))
    assert "config.json is missing" in text and "metrics.jsonl is missing or has no rows" in text
    with pytest.raises(InputError, match="holds no config"):
        report.made(tmp_path)


def test_a_page_has_at_most_two_megabytes(folder):
    for i in range(4):
        (folder / f"large_{i}.png").write_bytes(png(600_000))
    (folder / "huge.png").write_bytes(png(recorded.PICTURE_BYTES))
    names = [f"n{i}" for i in range(recorded.MOST_NAMES + 5)]
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(150):
            file.write(json.dumps({"step": step} | {f"validation/{name}": step * 1.1 for name in names}) + "\n")
    samples = [json.dumps({"step": i, "text": "word " * 10_000}) for i in range(300)]
    (folder / "samples.jsonl").write_text("\n".join(samples) + "\n")
    page = report.made(folder)
    assert len(page.encode()) <= 2_000_000 and page.count("data:image") >= 1
    text = words(page)
    assert "Too large for this page" in text and "huge.png has" in text
    assert f"names beyond the first {recorded.MOST_NAMES} are left out" in text and "step 299" in text


def test_a_long_series_keeps_its_extremes_and_its_mean():
    generator = np.random.default_rng(0)
    values = generator.normal(size=100_003)
    values[54_321], values[99_999] = 50.0, -40.0
    values[7::1000] = math.nan
    series = Series()
    for step, value in enumerate(values.tolist()):
        series.add(step, value)
    points, band = series.points(), series.band()
    assert POINTS / 2 < len(points) <= 2 * POINTS and len(series._steps) == 0
    assert max(high for *_, high in band) == 50.0 and min(low for _, low, _ in band) == -40.0
    assert series.count == len(values) and series.not_finite == np.isnan(values).sum()
    assert series.last == (100_002, values[-1])
    starts = [int(step) for step, _ in points]
    for i in (0, 5, len(points) // 2, len(points) - 2):
        part = values[starts[i] : starts[i + 1]]
        assert points[i][1] == pytest.approx(np.nanmean(part)) and band[i][1:] == (np.nanmin(part), np.nanmax(part))


def test_a_short_series_is_as_it_was():
    series = Series()
    for step in range(5):
        series.add(step, float(step**2))
    assert series.points() == [(0, 0.0), (1, 1.0), (2, 4.0), (3, 9.0), (4, 16.0)] and series.band() == []


def facts(folder, first_step=0, **changes):
    known = {
        "workdir": str(folder),
        "run_id": "a1",
        "config": CONFIG,
        "steps": 40,
        "metric": "f1",
        "devices": "2 x cpu",
    }
    return contracts.RunFacts(folder, first_step=first_step, **(known | changes))


def test_what_a_run_records(tmp_path):
    """A killed run resumes from step 2: what it recorded after that step is removed."""
    recipe = CONFIG | {"train": {"steps": 30}, "seed": 3}
    with observe.start((), facts(tmp_path, recipe=recipe, data={"tokens": 5}), primary=True) as observing:
        for step in (2, 3):
            observing.row({"step": step, "loss": 2.5})
            observing.sample(step, f"text {step}")
    assert "step 3; no process" in words((tmp_path / "report.html").read_text())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with observe.start((), facts(tmp_path, first_step=2), primary=True) as observing:
        observing.row({"step": 3, "loss": 1.5})
        observing.sample(2, "again")
        observing.sample(3, "another")
        (tmp_path / "results.json").write_text(json.dumps(RESULTS | {"step": 3}))
        observing.end(RESULTS)
    first, second = observe.read_rows(tmp_path / "launches.jsonl")
    assert first["changed"] == [["train.steps", 30, 40]] and second["changed"] is None
    assert first["data"] == {"tokens": 5} and (first["step"], second["step"]) == (0, 2)
    assert first["command"] and first["machine"] and first["versions"]["jax"] and len(first["source"]) == 12
    samples = observe.read_rows(tmp_path / "samples.jsonl")
    assert samples == [{"step": 2, "text": "text 2"}, {"step": 3, "text": "another"}]
    text = words((tmp_path / "report.html").read_text())
    assert "Complete at step 3 of 40" in text and "Each start of the run" in text and "another" in text


def test_the_commit_of_the_code(tmp_path):
    def git(*command):
        settings = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
        subprocess.run(("git", "-C", str(tmp_path), *settings, *command), check=True, capture_output=True)

    (tmp_path / "package").mkdir()
    file = tmp_path / "package" / "__init__.py"
    file.write_text("")
    assert launch.commit(tmp_path / "package") == ("", False), "no repository"
    git("init")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-m", "one")
    assert launch.commit(tmp_path / "package") == ("", False), "in a repository that does not track it"
    git("add", "package")
    git("commit", "-m", "two")
    name, changed = launch.commit(tmp_path / "package")
    assert re.fullmatch("[0-9a-f]{40}", name) and not changed
    file.write_text("x = 1\n")
    assert launch.commit(tmp_path / "package") == (name, True)


# ---- The server -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(folder):
    with live.server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()

        def ask(where="/", method="GET", host="127.0.0.1", headers=()):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
            connection.putrequest(method, where, skip_host=True)
            for name, value in ([("Host", host)] if host is not None else []) + list(headers):
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), dict(answer.getheaders())

        try:
            yield ask
        finally:
            server.shutdown()
            thread.join()


def test_the_server_answers_this_machine_alone(folder):
    (folder / "results.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with serving(folder) as ask:
        for host in ("127.0.0.1", "localhost:8765", "[::1]:1"):
            status, page, headers = ask(host=host)
            assert status == 200 and "Not complete: step 40" in words(page)
        assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["X-Frame-Options"] == "DENY"
        assert 'http-equiv="refresh" content="10"' in page
        status, page, _ = ask("/?still")
        assert status == 200 and 'http-equiv="refresh"' not in page
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "", None, "127.0.0.1@evil.example"):
            status, page, _ = ask(host=host)
            assert status == 403 and "step" not in page, host
        two = [("Host", "evil.example")]
        assert ask(headers=two)[0] == 403
        outside = ("/../secret", "/config.json", "//etc/passwd", "/%2e%2e/secret", "/?x", "/metrics.jsonl", "http://x/")
        for where in outside:
            assert ask(where)[0] == 404, where
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            assert ask(method=method)[0] == 501, method
        status, page, headers = ask(method="HEAD")
        assert status == 200 and page == "" and int(headers["Content-Length"]) > 1000
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_server_follows_the_run(folder, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0)
    results = (folder / "results.json").read_text()
    (folder / "results.json").unlink()
    with serving(folder) as ask:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 41, "loss": 0.01}\n')
        assert "step 41" in words(ask()[1])
        (folder / "results.json").write_text(results.replace('"step": 40', '"step": 41'))
        assert "Complete at step 41" in words(ask()[1]) and 'http-equiv="refresh"' not in ask()[1]
        (folder / "config.json").unlink()
        (folder / "metrics.jsonl").unlink()
        status, page, _ = ask()
        assert status == 503 and "holds no config.json" in page


# ---- Commands -------------------------------------------------------------------------------------------------------


def test_the_command(folder, tmp_path, capsys):
    assert main(["report", str(folder)]) == 0 and (folder / "report.html").is_file()
    out = tmp_path / "a.html"
    assert main(["report", str(folder), "--out", str(out)]) == 0 and f"{out}: " in capsys.readouterr().out
    for arguments, said in (
        (["report", str(tmp_path)], "holds no config.json"),
        (["report", str(folder), "--to", "x"], "unexpected argument '--to'"),
        (["report", str(folder), "--out", str(tmp_path / "none" / "a.html")], "cannot be written"),
        (["watch", str(folder), "--port", "x"], "the command is: transformer-jax watch"),
        (["watch", str(folder), "--port", "70000"], "cannot be opened"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


MILLION = """
import json, resource, sys, time
from pathlib import Path
from transformer_jax.observe import report
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
page = report.made(Path(sys.argv[1]))
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps({"seconds": time.process_time() - began, "mib": used, "bytes": len(page.encode())}))
assert "1,000,000 rows" in page and "the band around it spans 2 to 99" in page
"""


@pytest.mark.slow
def test_a_million_rows(folder, capsys):
    """Read in bounded memory; a spike in one of them is still there."""
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1_000_000):
            row = {"step": step, "loss": 99.0 if step == 777_777 else 2.0, "accuracy": 0.25, "learning_rate": 1e-3}
            row |= {"grad_norm": 0.5, "skipped": 0.0, "seconds_per_step": 0.1, "data_wait": 0.0}
            file.write(json.dumps(row | {"tokens_per_second": 100.0, "seconds_left": 5.0}) + "\n")
    done = subprocess.run([sys.executable, "-c", MILLION, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with capsys.disabled():
        print(found)
    assert found["seconds"] < 60 and found["mib"] < 64 and found["bytes"] < 500_000
