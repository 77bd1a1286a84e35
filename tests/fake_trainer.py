"""Stands for the process of a sweep's run: writes what `train` writes, one evaluation every few milliseconds.

    python tests/fake_trainer.py PARENT train EXPERIMENT ... --workdir DIR

The loss falls from 2 to the learning rate in --train.steps steps. A run with --seed 13 fails. SIGTERM ends it after its
step, and the next call goes on from there.
"""

import json
import signal
import sys
import time
from pathlib import Path

stopped = False


def stop(number, frame):
    global stopped
    stopped = True


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def main() -> int:
    folder, steps, rate = Path(option("--workdir")), int(option("--train.steps")), float(option("--optim.peak-lr"))
    if "--seed" in sys.argv and option("--seed") == "13":
        print("error: a run that fails")
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"type": "Experiment", "optim": {"type": "Optim", "peak_lr": rate}}
    (folder / "config.json").write_text(json.dumps(settings))
    path = folder / "metrics.jsonl"
    done = path.read_text().count("\n") if path.exists() else 0
    for step in range(done + 1, steps + 1):
        time.sleep(0.03)
        with path.open("a") as file:
            file.write(
                json.dumps({"step": step, "validation/loss_nats_per_token": 2 - (2 - rate) * step / steps}) + "\n"
            )
        if stopped:
            return 143
    (folder / "results.json").write_text(json.dumps({"step": steps, "report": {}}))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main())
