"""Whether `watch` slows the run that it follows: steps with a page asked for all the time, against steps without.

    tools/run tools.bench.watch [--pairs 30] [--seconds 2]

A training step runs in this process; `transformer-jax watch` serves, in another one, the page of a run of 2,000 rows.
Each pair is two blocks of steps that are neighbours in time, in random order: in one of them the page is asked for once
a second, ten times as often as a browser does. Printed is the mean ratio of the two blocks' times, with its 95 %
interval by the bootstrap over the pairs.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from tools import bench
from tools.bench import step as bench_step

ROWS = 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a block")
    parser.add_argument("--shape", default="gpt-4x128", help=", ".join(bench.SHAPES))
    arguments = parser.parse_args()
    run, _, _ = bench_step.prepare(bench.SHAPES[arguments.shape](), [])
    steps = max(3, round(arguments.seconds / np.median(run(5))))
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder))
        command = [sys.executable, "-m", "transformer_jax", "watch", folder, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = re.findall(r"http://\S+", server.stdout.readline())[0]
                ratios, pages = pairs(run, steps, arguments.pairs, url)
            finally:
                server.terminate()
    low, high = interval(ratios)
    mean = float(np.exp(np.mean(np.log(ratios))))
    result = {"pairs": len(ratios), "pages": pages, "ratio": mean, "low": low, "high": high}
    print(json.dumps(result | {"shape": arguments.shape, "steps_of_a_block": steps, "machine": bench.machine()}))
    return 0


def make_run(folder: Path) -> None:
    """A folder with the rows of a run that goes on, as far as a page reads them."""
    (folder / "config.json").write_text(json.dumps({"type": "Experiment", "train": {"steps": 10 * ROWS}}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, ROWS + 1):
            names = ("loss", "accuracy", "learning_rate", "grad_norm", "skipped", "seconds_per_step", "data_wait")
            row = {"step": step} | {name: random.random() for name in (*names, "tokens_per_second", "seconds_left")}
            file.write(json.dumps(row) + "\n")


def pairs(run: bench_step.Block, steps: int, count: int, url: str) -> tuple[list[float], int]:
    """The ratio of each pair, time with requests / time without; and how many pages were served."""
    ratios, pages = [], 0
    for _ in range(count):
        seconds = {}
        for asked in random.sample((True, False), 2):
            with_page = Asking(url) if asked else None
            seconds[asked] = sum(run(steps + 1)[1:])
            pages += with_page.stop() if with_page else 0
        ratios.append(seconds[True] / seconds[False])
    return ratios, pages


class Asking:
    """Asks for a page once a second, in a thread, until `stop`, which returns how many were served."""

    def __init__(self, url: str) -> None:
        self.url, self.pages, self.ended = url, 0, threading.Event()
        self.thread = threading.Thread(target=self._ask)
        self.thread.start()

    def _ask(self) -> None:
        while not self.ended.is_set():
            began = time.monotonic()
            with urllib.request.urlopen(self.url, timeout=60) as answer:
                self.pages += bool(answer.read())
            self.ended.wait(max(0.0, 1.0 - (time.monotonic() - began)))

    def stop(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.pages


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 95 % interval of the geometric mean, by 10,000 resamples of the pairs."""
    logs, generator = np.log(ratios), np.random.default_rng(0)
    means = logs[generator.integers(0, len(logs), (10_000, len(logs)))].mean(axis=1)
    low, high = np.exp(np.percentile(means, [2.5, 97.5])).tolist()
    return low, high


if __name__ == "__main__":
    sys.exit(main())
