"""Drills of data: the same training from every format and place, and token stores by many writers that are killed.

    python -m tools.drills.data formats             # a folder of text, JSONL, Parquet, Arrow, WebDataset; disk, GCS, S3
    python -m tools.drills.data large --mb 2000     # a large Parquet file: bytes before the first row, memory, a store
    python -m tools.drills.data writers --mb 300    # a store by one process, by arrays of jobs, by Beam: digests, rates
    python -m tools.drills.data kills --mb 300      # killed ten times

They are run in an environment with `pip install -e '.[all,data-drill]'`, and `writers` in that of
`tools/drills/check_integrations beam`.

The text is random lines of the standard library. Servers are on the loopback: the bucket of `bucket.py`, S3 by moto.
`writers` compares the processor's time with that of a plain loop over the tokenizer, on one core.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from tools.drills import bucket
from transformer_jax.data import sources, tokenizers, tokens

GROUP = 16 << 20  # bytes of a row group
DOCUMENT = 60  # lines of a document
BEAM = ["--beam", "--runner", "apache_beam.runners.portability.fn_api_runner.FnApiRunner"]
RECIPE = """
import dataclasses
from transformer_jax.data import corpus, sources, tokenizers
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Sample, Train
from transformer_jax.models import gpt

def experiment(source=sources.TextFiles(("train",), validation=("validation",))) -> Experiment:
    return Experiment(
        model=gpt.Config(vocab_size=4096, max_length=32, width=16, num_layers=1, num_heads=2),
        data=corpus.TextCorpus(source, tokenizers.TokenizerFile("tokenizer/tokenizer.json"), length=32),
        train=Train(steps=20, batch_size=8, log_every=1),
        evaluate=Evaluate(every=0, batch_size=8), sample=Sample(max_new_tokens=0), checkpoint=Checkpoint(every=20),
    )

def records() -> Experiment:
    return experiment(sources.Records(("text.parquet",), validation=("validation.parquet",)))

def of_bytes() -> Experiment:
    made = records()
    return dataclasses.replace(made, data=dataclasses.replace(made.data, tokenizer=tokenizers.Bytes()))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drills", nargs="+", choices=["formats", "large", "writers", "kills"])
    parser.add_argument("--mb", type=int, default=300, help="megabytes of text")
    parser.add_argument("--keep", type=Path, help="a folder that stays; a text that is there is used again")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = (options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        os.environ["TRANSFORMER_JAX_CACHE"] = str(folder / "cache")
        begin(folder)
        for drill in options.drills:
            globals()[drill](folder, options.mb)
    return 0


# ---- The text and the recipe ---------------------------------------------------------------------------------------


def begin(folder: Path) -> None:
    """Writes the recipe and its tokenizer, a BPE of 4,096 tokens trained on the standard library."""
    (folder / "mine.py").write_text(RECIPE)
    if not (folder / "tokenizer").is_dir():
        text = sources.Embedded().documents("train")
        made = tokenizers.build(tokenizers.TrainBPE(4096), text, tokens.cache_dir())
        made.save(folder / "tokenizer")


def documents(mb: float, seed: int) -> Iterator[str]:
    """Texts of so many megabytes."""
    lines = [line for _, text in sources.Embedded().documents("train") for line in text.splitlines() if line.strip()]
    rng, size = np.random.default_rng(seed), 0
    while size < mb * 1e6:
        text = "\n".join(lines[i] for i in rng.integers(len(lines), size=DOCUMENT))
        size += len(text.encode())
        yield text


def write_parquet(path: Path, mb: float, seed: int) -> None:
    """Writes a text column, and one that is not read, of a sixteenth of its size."""
    import pyarrow as pa
    from pyarrow import parquet

    if path.exists():
        return
    schema = pa.schema([("text", pa.string()), ("unwanted", pa.string())])
    with parquet.ParquetWriter(path.with_suffix(".part"), schema, compression="none", use_dictionary=False) as writer:
        held: list[str] = []
        for text in documents(mb, seed):
            held.append(text)
            if len(held) * len(text) > GROUP:
                writer.write_table(pa.table({"text": held, "unwanted": [t[: len(t) // 16] for t in held]}, schema))
                held = []
        writer.write_table(pa.table({"text": held, "unwanted": [t[: len(t) // 16] for t in held]}, schema))
    path.with_suffix(".part").rename(path)


# ---- Formats and places --------------------------------------------------------------------------------------------


def formats(folder: Path, mb: int) -> None:
    """Trains the recipe from each format in each place: the losses and the parameters have the same bits."""
    from transformer_jax import load
    from transformer_jax.cli.main import main as command
    from transformer_jax.nn import params as params_lib

    names = {side: write_formats(folder / "formats", side, seed) for seed, side in enumerate(("train", "validation"))}
    found: dict[str, str] = {}
    for place, root in places(folder / "formats"):
        for kind, name in names["train"].items():
            workdir = folder / "runs" / f"{place}-{kind}"
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.rmtree(tokens.cache_dir() / "tokens", ignore_errors=True)  # so that every run reads its files
            flags = ["--data.source.paths", f"{root}/{name}"]
            flags += ["--data.source.validation", f"{root}/{names['validation'][kind]}"]
            variant = [] if kind == "text" else ["records"]
            with contextlib.redirect_stdout(io.StringIO()):
                assert command(["train", "mine.py", *variant, "--workdir", str(workdir), *flags]) == 0
            rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
            digest = hashlib.sha256(json.dumps([row.get("loss") for row in rows]).encode())
            for leaf, array in sorted(params_lib.flatten(load(workdir).params).items()):
                digest.update(leaf.encode() + np.asarray(array).tobytes())
            found[f"{place} {kind}"] = digest.hexdigest()[:16]
            print(f"{place:5} {kind:13} {root}/{name}: losses and parameters {found[f'{place} {kind}']}", flush=True)
    assert len(set(found.values())) == 1, "the runs differ"
    print(f"  {len(found)} runs, the same bits")


def write_formats(folder: Path, side: str, seed: int) -> dict[str, str]:
    """{format: its file or folder} of the same texts."""
    import pyarrow as pa
    from pyarrow import parquet

    texts = list(documents(0.2, seed))
    (folder / side).mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / side / f"{number:05}.txt").write_text(text)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / f"{side}.jsonl.zst").write_bytes(bytes(pa.Codec("zstd").compress(lines.encode())))
    table = pa.table({"text": texts})
    parquet.write_table(table, folder / f"{side}.parquet", row_group_size=20)
    with pa.ipc.new_file(str(folder / f"{side}.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    with tarfile.open(folder / f"{side}.tar", "w") as archive:
        for number, text in enumerate(texts):
            member = tarfile.TarInfo(f"{number:05}.text")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    endings = {"jsonl": ".jsonl.zst", "parquet": ".parquet", "arrow": ".arrow", "webdataset": ".tar"}
    return {"text": side, **{kind: side + ending for kind, ending in endings.items()}}


def places(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, folder or URL) of a disk, a bucket of Google Cloud Storage and one of S3, with the files of a folder."""
    from moto.server import ThreadedMotoServer

    yield "disk", str(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with bucket.serve("mine") as server:
        for path in files:
            server.put(path.relative_to(folder).as_posix(), path.read_bytes())
        settings(server.environment)
        yield "GCS", "gs://mine"
    s3 = ThreadedMotoServer(port=0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    settings({"FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}", **keys})
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.mkdir("mine")
    for path in files:
        fs.pipe_file(f"mine/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield "S3", "s3://mine"
    s3.stop()


def settings(environment: dict[str, str]) -> None:
    """Gives fsspec these settings, as a process that begins with them has."""
    import fsspec

    os.environ.update(environment)
    fsspec.config.set_conf_env(fsspec.config.conf)


# ---- A large file --------------------------------------------------------------------------------------------------


def large(folder: Path, mb: int) -> None:
    """A Parquet file at a URL: what is read before the first row, counted by the server; the memory of reading all of
    it; the store of its bytes by an array of two jobs."""
    write_parquet(folder / "text.parquet", mb, 0)
    write_parquet(folder / "validation.parquet", 2, 1)
    size = (folder / "text.parquet").stat().st_size
    read = (
        "import sys; from transformer_jax.data import sources; u = sys.argv[1];"
        "d = iter(sources.Records(u, validation=u).documents('train')); n = len(next(d)[1]);"
        "print(n if sys.argv[2] == 'first' else n + sum(len(t) for _, t in d))"
    )
    with web(folder) as (url, sent):
        for how in ("first", "all"):
            sent.clear()
            used = run([sys.executable, "-c", read, f"{url}/text.parquet", how])
            answers = f"{sent['bytes'] / 1e6:,.2f} MB in {sent['requests']:,} requests"
            print(f"{how} rows of {size / 1e6:,.0f} MB: {answers}, {used}", flush=True)
    shutil.rmtree(folder / "large", ignore_errors=True)
    cpu = peak = 0.0
    for job in range(2):
        used = run(prepare("large", "--shards", f"{job}/2", variant="of_bytes"))
        cpu, peak = cpu + used.cpu, max(peak, used.peak)
        print(f"job {job} of 2: {used}", flush=True)
    assert (folder / "large/store.json").exists()
    print(f"store of the bytes of {mb:,} MB: {mb / cpu:.0f} MB/s a core; {peak:.0f} MB at most")


@contextlib.contextmanager
def web(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """(URL, what was sent: bytes and requests) of a server of a folder's files, or ranges of them."""
    sent: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = folder / self.path.strip("/")
            size = path.stat().st_size
            first, last = 0, size - 1
            span = self.headers.get("Range")
            if span:
                first, last = (int(part) for part in span.removeprefix("bytes=").split("-"))
                last = min(last, size - 1)
            self.send_response(206 if span else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            if self.command == "HEAD":
                return
            with path.open("rb") as file:
                file.seek(first)
                data = file.read(last + 1 - first)
            sent.update(bytes=len(data), requests=1)
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", sent
    server.shutdown()


# ---- Writers -------------------------------------------------------------------------------------------------------


def writers(folder: Path, mb: int) -> None:
    """The store of one process, of arrays of jobs and of Beam's local runner: the same digests, and MB/s a core."""
    write_parquet(folder / "text.parquet", mb, 0)
    write_parquet(folder / "validation.parquet", 2, 1)
    loop = rate(folder)
    print(f"plain loop over the tokenizer: {loop:.2f} MB/s a core", flush=True)
    ways: dict[str, list[list[str]]] = {
        "array of 1 job": [prepare("array1", "--shards", "0/1")],
        "array of 4 jobs": [prepare("array4", "--shards", f"{job}/4") for job in range(4)],
    }
    for workers in (1, 2, 4):
        beam = [*BEAM, "--direct_num_workers", str(workers), "--direct_running_mode", "multi_processing"]
        ways[f"Beam, {workers} workers"] = [prepare(f"beam{workers}", *beam)]
    found = set()
    for way, commands in ways.items():
        out = folder / commands[0][commands[0].index("--out") + 1]
        shutil.rmtree(out, ignore_errors=True)
        used = [run(command) for command in commands]
        cpu = sum(one.cpu for one in used)
        found.add((out / "store.json").read_bytes())
        digest = hashlib.sha256((out / "store.json").read_bytes()).hexdigest()[:16]
        print(
            f"{way}: {digest}, {sum(one.seconds for one in used):.0f} s, {mb / cpu:.2f} MB/s a core "
            f"({mb / cpu / loop:.2f} of the loop), {max(one.peak for one in used):.0f} MB at most",
            flush=True,
        )
    assert len(found) == 1, "the stores differ"


def prepare(out: str, *flags: str, variant: str = "records") -> list[str]:
    """The command that writes a store."""
    return [sys.executable, "-m", "transformer_jax", "prepare", "mine.py", variant, "--out", out, *flags]


def rate(folder: Path) -> float:
    """MB per second of one core that encodes 20 MB of texts in a plain loop."""
    code = (
        "import time; from tools.drills import data; from transformer_jax.data import tokenizers;"
        "t = tokenizers.load('tokenizer'); d = list(data.documents(20, 0)); b = time.process_time();"
        "[t.encode_batch(d[i : i + 1000]) for i in range(0, len(d), 1000)];"
        "print(sum(len(x.encode()) for x in d) / 1e6 / (time.process_time() - b))"
    )
    one = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=one)
    return float(done.stdout.split()[-1])


@dataclasses.dataclass(frozen=True)
class Used:
    """What a command took."""

    seconds: float
    cpu: float
    """Seconds of all cores."""
    peak: float
    """Megabytes of its largest process."""

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, {self.cpu:.0f} s of a core, {self.peak:.0f} MB at most"


def run(command: list[str]) -> Used:
    """Runs a command that must succeed."""
    began = time.monotonic()
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said.decode()[-2000:]
    return Used(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


def kills(folder: Path, mb: int) -> None:
    """A store by two processes of this machine, all killed ten times: complete shards are not written
    again, and the digests are those of one that was not killed."""
    write_parquet(folder / "text.parquet", mb, 0)
    write_parquet(folder / "validation.parquet", 2, 1)
    if not (folder / "array1/store.json").exists():
        run(prepare("array1"))
    out, rng = folder / "killed", random.Random(0)
    shutil.rmtree(out, ignore_errors=True)
    shards: dict[str, int] = {}

    def written() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(out.glob("*/*/header.json"))}

    for number in range(10):
        process = subprocess.Popen(
            prepare("killed", "--workers", "2"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + (
            rng.uniform(3, 20) if number % 2 else 900
        )  # every second time once a shard is complete
        while time.monotonic() < end and len(written()) == len(shards):
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 3))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = written()
        assert all(now[name] == at for name, at in shards.items()), "a complete shard was written again"
        shards = now
        print(f"kill {number + 1}: {len(shards)} shards are complete", flush=True)
    run(prepare("killed", "--workers", "2"))
    assert all(written()[name] == at for name, at in shards.items()), "a complete shard was written again"
    assert (out / "store.json").read_bytes() == (folder / "array1/store.json").read_bytes(), "the stores differ"
    print("  no complete shard was written again; the digests of one that was not killed")


if __name__ == "__main__":
    raise SystemExit(main())
