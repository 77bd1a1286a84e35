"""Translation of a whole set: sources of any lengths through `beam.search`, batch by batch, on all devices.

    for hypotheses in translate.translate(seq2seq, params, cfg, sources, Beam(4, stop_ids=(cfg.eos_id,))):
        tokenizer.decode(hypotheses[0].tokens)                      # the best of this source, in the order of `sources`

The sources are sorted by length and split into batches of few shapes: a batch is padded to the next of `LENGTHS`, and a
budget of padded tokens decides its number of rows. Each shape is compiled once per process, at its first batch. The
rows are sharded over the devices. Each device stops when its own rows are done and starts its part of the next batch.

A source's hypotheses depend only on the source: its limit of new tokens follows from its own length, and neither the
padding nor the other rows change the search, up to the rounding of matrix products.

B sources of a batch, S source length, T tokens of the decoder's prompt, K hypotheses, M new tokens at most.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax import sharding
from transformer_jax.decoding import beam as beam_search
from transformer_jax.decoding.beam import Beam, Hypotheses
from transformer_jax.decoding.decode import Prompts
from transformer_jax.errors import InputError

LENGTHS = tuple(size for n in range(3, 20) for size in (2**n, 3 * 2 ** (n - 1)))  # 8, 12, 16, 24, 32, 48, ...
BATCH_TOKENS = 1024


class Hypothesis(NamedTuple):
    """One translation.

    Attributes:
      tokens: int32 [n], the tokens after the decoder's prompt, the stop token included if there is one.
      score: their log-probability over the length penalty.
    """

    tokens: np.ndarray
    score: float


class Batch(NamedTuple):
    """Sources that are searched in one batch.

    Attributes:
      numbers: int [B], indices of sources; surplus rows repeat the last one, so that they end when it ends.
      length: S, the length that they are padded to.
    """

    numbers: np.ndarray
    length: int


def translate(
    model: Any,
    params: Any,
    cfg: Any,
    sources: Sequence[Sequence[int] | np.ndarray],
    beam: Beam,
    *,
    start: Sequence[int] = (),
    extra_tokens: int = 50,
    mesh: Mesh | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[list[Hypothesis]]:
    """The nbest best hypotheses of each source, best first, in the order of `sources`.

    Args:
      model: an encoder-decoder family.
      params: its parameter tree.
      cfg: its Config.
      sources: token ids, as the encoder reads them.
      beam: the settings of the search.
      start: the decoder's prompt; (): its start token.
      extra_tokens: by how many tokens a hypothesis may be longer than its source (Vaswani et al. 2017, section 6.1),
        within beam.max_new_tokens and the model's max_length.
      mesh: the devices; None: all of this process.
      batch_tokens: padded source tokens per batch and device; it affects only speed and memory.
      progress: called with (sources done, total) after each batch.

    Raises:
      InputError: before anything is computed: a source is empty or longer than cfg.max_length, or the model has no
        start token, or the prompt does not fit.
    """
    prompt = tuple(start) or (cfg.decoder_start_id,)
    if None in prompt:
        raise InputError("the model's config has no decoder_start_id; give the decoder's first tokens as start=")
    most = min(beam.max_new_tokens, cfg.max_length + 1 - len(prompt))  # + 1: the last token is never read
    if most < 1:
        raise InputError(f"a decoder's prompt of {len(prompt)} tokens fills the model's max_length of {cfg.max_length}")
    if extra_tokens < 0:
        raise InputError(f"extra_tokens is {extra_tokens}; it must be at least 0")
    for number, source in enumerate(sources):
        if not 0 < len(source) <= cfg.max_length:
            raise InputError(f"sources[{number}] has {len(source)} tokens; the model reads from 1 to {cfg.max_length}")
    if mesh is None:
        mesh = sharding.make_mesh(devices=jax.local_devices())
    # Once for all batches: the layers are unstacked for decoding, and replicated on every device.
    params = jax.device_put(model.for_decoding(params, cfg), NamedSharding(mesh, PartitionSpec()))

    def search(batch: Batch) -> Hypotheses:
        tokens_BS, lengths_B = padded([sources[number] for number in batch.numbers], batch.length)
        M = min(batch.length + extra_tokens, most)
        settings = dataclasses.replace(beam, max_new_tokens=M, min_new_tokens=min(beam.min_new_tokens, M))
        prompt_BT = np.tile(np.array(prompt, np.int32), (len(tokens_BS), 1))
        rows = (tokens_BS, lengths_B, np.minimum(lengths_B + extra_tokens, most).astype(np.int32), prompt_BT)
        rows = jax.device_put(rows, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
        with jax.set_mesh(mesh):
            return _search(model, params, cfg, *rows, settings, mesh)

    plan = batches(np.array([len(source) for source in sources], int), batch_tokens, mesh.size, cfg.max_length)
    return _in_order(plan, search, len(sources), progress)


def batches(lengths: np.ndarray, batch_tokens: int, devices: int, longest: int) -> list[Batch]:
    """The batches of sources, the longest first, so that a batch that does not fit in memory fails at once.

    Args:
      lengths: int [sources].
      batch_tokens: padded tokens per batch and device.
      devices: how many.
      longest: the longest source that the model can read.
    """
    order, plan = np.argsort(-lengths, kind="stable"), []
    while len(order):
        length = min(next(size for size in LENGTHS if size >= lengths[order[0]]), longest)
        rows = max(1, batch_tokens // length)
        if (
            len(order) <= rows * devices // 2
        ):  # the last batch: rows are a power of two, so that few shapes are compiled
            rows = 1 << (-(-len(order) // devices) - 1).bit_length()
        taken, order = order[: rows * devices], order[rows * devices :]
        taken = taken[np.minimum(np.arange(rows * devices), len(taken) - 1)]
        # Strided over the devices: each one gets its share of the long sources, so that they finish at the same time.
        plan.append(Batch(taken.reshape(rows, devices).T.reshape(-1), length))
    return plan


def padded(sources: Sequence[Sequence[int] | np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The `sources` as one array, int32 [B, `length`], padded on the right with 0, and their lengths, int32 [B]."""
    tokens_BS = np.zeros((len(sources), length), np.int32)
    for row, source in zip(tokens_BS, sources, strict=True):
        row[: len(source)] = source
    return tokens_BS, np.array([len(source) for source in sources], np.int32)


@functools.partial(jax.jit, static_argnames=("model", "cfg", "settings", "mesh"))
def _search(model, params, cfg, tokens_BS, lengths_B, limit_B, prompt_BT, settings, mesh) -> Hypotheses:
    """Encodes and searches each device's rows, without communication."""

    def one(params, tokens_BS, lengths_B, limit_B, prompt_BT):
        x_BSD = model.encode(params, cfg, tokens_BS, lengths=lengths_B)
        slots = prompt_BT.shape[1] + settings.max_new_tokens - 1
        cache = model.init_cache(params, cfg, x_BSD, lengths_B, slots)
        prompts = Prompts(prompt_BT, jnp.zeros_like(lengths_B))
        found = beam_search.search(model, params, cfg, cache, prompts, settings, limit_B=limit_B)
        return dataclasses.replace(found, step=found.step[None])

    rows = PartitionSpec(mesh.axis_names)
    # check_vma is off: the loop's initial state is replicated, and its final state differs between devices.
    one = jax.shard_map(one, mesh=mesh, in_specs=(PartitionSpec(), *[rows] * 4), out_specs=rows, check_vma=False)
    return one(params, tokens_BS, lengths_B, limit_B, prompt_BT)


def _in_order(
    plan: list[Batch],
    search: Callable[[Batch], Hypotheses],
    total: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[list[Hypothesis]]:
    """The hypotheses of each source, in order. While the host reads one batch, the devices search the next."""
    found: dict[int, list[Hypothesis]] = {}
    running: deque[tuple[Batch, Hypotheses]] = deque()
    yielded = done = 0
    for batch in (*plan, None):
        if batch is not None:
            running.append((batch, search(batch)))
        while running and (batch is None or len(running) > 1):
            read, hypotheses = running.popleft()
            found.update(zip(read.numbers.tolist(), _lists(hypotheses), strict=True))
            done += len(np.unique(read.numbers))
            if progress is not None:
                progress(done, total)
        while yielded in found:
            yield found.pop(yielded)
            yielded += 1


def _lists(found: Hypotheses) -> Iterator[list[Hypothesis]]:
    """The hypotheses of each row as a list."""
    arrays = (np.asarray(found.tokens_BKM), np.asarray(found.length_BK), np.asarray(found.score_BK))
    for row in zip(*arrays, strict=True):
        yield [Hypothesis(tokens[:n].copy(), float(score)) for tokens, n, score in zip(*row, strict=True) if n]
