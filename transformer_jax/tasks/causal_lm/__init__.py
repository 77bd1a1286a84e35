"""Causal language modelling: predict each token of a corpus from those before it.

Reported are nats and perplexity per token, which depend on the tokenizer, and bits per byte of the original text, which
does not: it compares with any model and with any compressor of the same bytes.
"""

import dataclasses
import itertools
import math
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from transformer_jax import losses, models
from transformer_jax.contracts import LAUNCH, Evaluation, Input, Outputs, Prepared, Progress, Sums, no_progress
from transformer_jax.data import corpus, tokenizers
from transformer_jax.decoding import decode
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks.text import TextTask

SAMPLES = "sampling (--sample.max-new-tokens 0 leaves it out)"
DECODES = ("init_cache", "prefill", "decode_step", "for_decoding")  # what a family defines to be sampled from
GZIP_AT_MOST = 64 << 20  # bytes of validation text that are worth compressing for comparison: about 3 s


@dataclass(frozen=True)
class Reference:
    """What bits per byte need to know of the validation text: the UTF-8 bytes that the model predicts, and gzip's
    figure where the text was worth compressing."""

    predicted_bytes: int
    gzip_bits_per_byte: float | None = None


@dataclass(frozen=True)
class Sample:
    """The text printed when training ends, and the defaults of `predict`. `decode.Sampling` says more."""

    prompt: str = ""
    """Text to continue; empty: the end-of-text token, or a newline where the tokenizer has none."""
    max_new_tokens: int = 200
    """New tokens at most; 0: no sample."""
    temperature: float = 0.8
    """Divides the logits; 0: greedy."""
    top_k: int = 0
    """Draw from the k likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that hold this share of the probability."""
    min_p: float = 0.0
    """Draw from the tokens at least this likely, as a share of the likeliest one."""
    repetition_penalty: float = 1.0
    """Makes tokens that are already there less likely; 1: not."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise InputError(f"sample.max_new_tokens = {self.max_new_tokens}: must be 0 or more")
        self.sampling()

    def sampling(self, *, max_new_tokens: int = 1, stop_ids: tuple[int, ...] = ()) -> decode.Sampling:
        """These settings for `decode`. Errors: `InputError` for one outside its range."""
        return decode.Sampling(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop_ids=stop_ids,
        )


@dataclass(frozen=True)
class Continue(Sample):
    """The options of `predict`."""

    seed: int = 0
    """Another seed gives another text."""


@dataclass(frozen=True)
class CausalLM(TextTask):
    """Cross-entropy of the next token."""

    label_smoothing: float = 0.0
    """Share of the target spread over the vocabulary (Szegedy et al. 2016, section 7). Not in what is reported."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end what is sampled, besides the tokenizer's end of text: the end of a turn, in imported models."""
    defaults: Sample = field(default_factory=Sample, metadata=LAUNCH)
    """What to ask of the model when nothing is said: in imported models as their generation_config.json has it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"task.label_smoothing = {self.label_smoothing}: must be in [0, 1)")

    def check(self, model_cfg: Any, data: corpus.TextCorpus) -> None:
        """Raises `InputError` for a model without `hidden` and `head`, and examples longer than its positions."""
        models.require(model_cfg, "task CausalLM", ("hidden", "head"), ("vocab_size", "max_length", "width"))
        super().check(model_cfg, data)

    def example(self, data: corpus.TextCorpus) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example, [T]."""
        T = data.length
        dtypes = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}
        return {name: jax.ShapeDtypeStruct((T,), dtype) for name, dtype in dtypes.items()}

    def prepare(self, data: corpus.TextCorpus, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """Tokenises the corpus (once: it is cached) and makes the train and validation sets.

        Arguments:
          workdir_tokenizer: the one that the parameters were trained with; None: as `data.tokenizer` says.
        Errors: `InputError` for a missing, empty or too short corpus, and a tokenizer with more ids than the model.
        """
        made = corpus.prepare(data, seed=seed, tokenizer=workdir_tokenizer)
        if made.tokenizer.vocab_size > model_cfg.vocab_size:
            raise InputError(
                f"the tokenizer has ids up to {made.tokenizer.vocab_size - 1}, but model.vocab_size is "
                f"{model_cfg.vocab_size}; give --model.vocab-size {made.tokenizer.vocab_size} or more"
            )
        validation = data.source.documents("validation")
        facts: dict[str, Any] = {
            "vocabulary": made.tokenizer.vocab_size,
            "training_tokens": len(made.train_tokens.tokens),
            "training_bytes": made.train_tokens.bytes,
            "validation_tokens": len(made.validation_tokens.tokens),
            "validation_bytes": made.validation_tokens.bytes,
        }
        if validation.nbytes <= GZIP_AT_MOST:
            facts["gzip_bits_per_byte"] = gzip_bits_per_byte(validation)
        reference = Reference(made.validation_tokens.predicted_bytes, facts.get("gzip_bits_per_byte"))
        return Prepared(
            made.train,
            Evaluation(made.validation, reference),
            facts,
            made.tokenizer,
            identity=made.train_tokens.content + made.validation_tokens.content,
        )

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss": (sum, weight)}) in nats over the batch's targets; dropout only with a key.

        The first pair is what training minimises, the one in the dict plain cross-entropy without smoothing and z-loss.
        The logits are never whole in memory when they are large: `losses.linear_cross_entropy` decides.
        """
        family = models.family(model_cfg)
        x_BTD = family.hidden(params, model_cfg, batch["inputs"], segments=batch.get("segments"), key=key)
        kernel_DV = family.head(params, model_cfg)
        total, weight, plain = losses.linear_cross_entropy(
            x_BTD,
            kernel_DV,
            batch["targets"],
            batch["weights"],
            label_smoothing=self.label_smoothing,
        )
        return total, weight, {"loss": (plain, weight)}

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The numbers of an evaluation, from the sums over the whole validation set."""
        nats, reference = sums["loss"][0] / sums["loss"][1], evaluation.reference
        report = {
            "loss_nats_per_token": nats,
            "perplexity_per_token": math.exp(min(nats, 700.0)),
            "bits_per_byte": sums["loss"][0] / math.log(2) / reference.predicted_bytes,
        }
        if reference.gzip_bits_per_byte is not None:
            report["gzip_bits_per_byte"] = reference.gzip_bits_per_byte
        return report

    def flops(self, model_cfg: Any, data: corpus.TextCorpus) -> float:
        """FLOPs of one training step on one example, forward and backward (PaLM, appendix B).

        For each of the T tokens 6 for each parameter that multiplies it (kernels and the output matrix; embeddings are
        looked up), and 12 * L * N * H * T for attention, its masked half included.
        """
        T = data.length
        head = 6.0 * model_cfg.width * model_cfg.vocab_size * T  # the tied table is no kernel
        scores = config.attention_width(model_cfg) * T * T
        declaration = models.family(model_cfg).declare(model_cfg)
        return head + params_lib.flops(declaration, lambda path: T * (path != "head/kernel"), scores)

    def default_sample(self) -> Sample:
        """A text to continue."""
        return self.defaults

    def snapshot_settings(self) -> dict[str, Any]:
        """What a Hugging Face folder says of this task."""
        return {"stop_ids": self.stop_ids}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> corpus.TextCorpus:
        """The embedded corpus."""
        return corpus.TextCorpus(tokenizer=tokenizer, length=min(model_cfg.max_length, 1024))

    def predict_options(self, defaults: Sample) -> "Continue":
        """How to continue a prompt."""
        return Continue(**dataclasses.asdict(defaults))

    def respond(
        self, loaded: Any, inputs: Sequence[Input], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[str]:
        """The prompt and its continuation, as it is made. Raises `InputError` for several prompts."""
        if len(inputs) > 1:
            raise InputError(
                f"a language model continues one prompt, {len(inputs)} are given; quote a prompt with spaces"
            )
        options = dataclasses.replace(options, prompt=inputs[0].query)
        yield from self.sample(loaded.params, loaded.config, loaded.tokenizer, options, seed=options.seed)
        yield "\n"

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Sample) -> None:
        """Raises `InputError` for a model that cannot decode, and a prompt that the tokenizer cannot encode."""
        if options.max_new_tokens:
            models.require(model_cfg, SAMPLES, DECODES)
            tokenizers.prompt_ids(tokenizer, options.prompt)

    def sample(self, params: Any, model_cfg: Any, tokenizer: Any, options: Any, *, seed: int) -> Iterator[str]:
        """The prompt and its continuation as text, in pieces as it is made.

        Arguments:
          options: a `Sample`.
        A prompt that leaves no room for the new tokens loses its beginning (`decode.fit`), and stderr says so.
        """
        family, asked = models.family(model_cfg), options.max_new_tokens
        if asked == 0:
            return
        models.require(model_cfg, SAMPLES, DECODES)
        if jax.default_backend() == "cpu":  # scanned layers cost a copy of their weights for every token there
            model_cfg = config.unrolled(model_cfg)
        eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        stop_ids = tuple(dict.fromkeys((*eos, *self.stop_ids)))
        ids = tokenizers.prompt_ids(tokenizer, options.prompt)
        kept, new = decode.fit(len(ids), asked, model_cfg.max_length)
        if kept < len(ids) or new < asked:
            print(
                f"the prompt's {len(ids)} tokens and {asked} new ones exceed the context of {model_cfg.max_length}: "
                f"reading the last {kept} of the prompt, making {new}",
                file=sys.stderr,
            )
        # Prompts of about the same length share one compilation.
        columns = min(-(-kept // 32) * 32, model_cfg.max_length + 1 - new)
        tokens_B = decode.stream(
            family,
            params,
            model_cfg,
            family.init_cache(model_cfg, 1, columns + new - 1),
            decode.left_pad([ids[-kept:]], length=columns),
            decode.row_keys(jax.random.key(seed), 1),
            options.sampling(max_new_tokens=new, stop_ids=stop_ids),
        )
        made = itertools.takewhile(lambda token: token not in stop_ids, (int(token_B[0]) for token_B in tokens_B))
        yield options.prompt
        said = ids[1:] if ids[:1] == [tokenizer.bos_id] else ids
        yield from tokenizers.stream_decode(tokenizer, made, after=said if options.prompt else ())


def gzip_bits_per_byte(documents: Iterable[tuple[str, str]]) -> float:
    """What `gzip -9` needs for these documents, each compressed by itself: all its bits over all their bytes.

    Arguments:
      documents: (name, text); consecutive pieces with one name are one document.
    """
    read = written = 0
    name, compressor = None, None
    for piece_name, text in documents:
        if piece_name != name or compressor is None:
            written += len(compressor.flush()) if compressor else 0
            name, compressor = piece_name, zlib.compressobj(9, wbits=31)  # 31: with gzip's header and checksum
        piece = text.encode()
        read += len(piece)
        written += len(compressor.compress(piece))
    written += len(compressor.flush()) if compressor else 0
    return 8 * written / max(read, 1)
