"""Causal language modelling: predict each token of a corpus from the tokens before it.

It reports nats and perplexity per token, which depend on the tokenizer, and bits per byte of the text, which do not:
they are comparable between models, and with compressors of the same bytes.
"""

import dataclasses
import itertools
import math
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from transformer_jax import losses, models
from transformer_jax.contracts import LAUNCH, Evaluation, Input, Outputs, Prepared, Progress, Sums, no_progress
from transformer_jax.data import corpus, packed, tokenizers
from transformer_jax.decoding import decode
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.nn import params as params_lib
from transformer_jax.tasks.text import TextTask

SAMPLES = "sampling (--sample.max-new-tokens 0 turns it off)"
DECODES = ("init_cache", "prefill", "decode_step", "for_decoding")  # the functions of a family that can be sampled
GZIP_AT_MOST = 64 << 20  # bytes of validation text that are compressed for comparison, in about 3 s


@dataclass(frozen=True)
class Reference:
    """The bytes of the validation text, for bits per byte."""

    predicted_bytes: int
    """UTF-8 bytes that the model predicts."""
    gzip_bits_per_byte: float | None = None
    """The result of gzip; None: the text is too large to compress."""


@dataclass(frozen=True)
class Drawn:
    """How the tokens of a text are drawn (see `decode.Sampling`)."""

    max_new_tokens: int = 200
    """The most new tokens; 0: no sample."""
    temperature: float = 0.8
    """Divides the logits; 0: greedy."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Sample from the fewest tokens that hold this share of the probability."""
    min_p: float = 0.0
    """Sample from the tokens whose probability is at least this share of the likeliest one's."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that are already in the text become less likely."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise InputError(f"sample.max_new_tokens = {self.max_new_tokens}: must be 0 or more")
        self.sampling()

    def sampling(self, *, max_new_tokens: int = 1, stop_ids: tuple[int, ...] = ()) -> decode.Sampling:
        """These settings for `decode`.

        Args:
          max_new_tokens: the most new tokens.
          stop_ids: tokens that end the text.

        Raises:
          InputError: a setting out of range.
        """
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
class Sample(Drawn):
    """The text printed when training ends, and the defaults of `predict`."""

    prompt: str = ""
    """Text to continue; empty: the end-of-text token, or a newline where the tokenizer has none."""


@dataclass(frozen=True)
class Continue(Sample):
    """The options of `predict`."""

    seed: int = 0
    """Of the sampled text."""
    chat: bool = False
    """Hold a conversation, by the tokenizer's own chat template: each input is what the user says, a terminal asks."""
    system: str = ""
    """A system message before the conversation; empty: none."""


@dataclass(frozen=True)
class CausalLM(TextTask):
    """Cross-entropy of the next token."""

    pipeline_tag: ClassVar[str] = "text-generation"
    label_smoothing: float = 0.0
    """The share of each target that is spread over the vocabulary (Szegedy et al. 2016, section 7). The reported loss
    is without it."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a sampled text, besides the tokenizer's end of text, such as the end of a turn."""
    defaults: Sample = field(default_factory=Sample, metadata=LAUNCH)
    """The default sampling settings; of imported models, those of generation_config.json."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"task.label_smoothing = {self.label_smoothing}: must be in [0, 1)")

    def check(self, model_cfg: Any, data: corpus.TextCorpus) -> None:
        """Refuses a model without `hidden` and `head`, and examples that are longer than its positions."""
        models.require(model_cfg, "task CausalLM", ("hidden", "head"), ("vocab_size", "max_length", "width"))
        super().check(model_cfg, data)

    def example(self, data: corpus.TextCorpus) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example, [T]."""
        T = data.length
        dtypes = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}
        if data.documents == "packed":
            dtypes["segments"] = np.int32
        return {name: jax.ShapeDtypeStruct((T,), dtype) for name, dtype in dtypes.items()}

    def prepare(self, data: corpus.TextCorpus, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The training and validation windows of the corpus, which is tokenised on first use.

        Raises:
          InputError: a missing, empty or too short corpus, or a tokenizer with more ids than the model.
        """
        made = corpus.prepare(data, seed=seed, tokenizer=workdir_tokenizer)
        if made.tokenizer.vocab_size > model_cfg.vocab_size:
            raise InputError(
                f"the tokenizer has ids up to {made.tokenizer.vocab_size - 1}, but model.vocab_size is "
                f"{model_cfg.vocab_size}; give --model.vocab-size {made.tokenizer.vocab_size} or more"
            )
        validation = made.validation_documents
        facts: dict[str, Any] = {
            "vocabulary": made.tokenizer.vocab_size,
            "training_tokens": len(made.train_tokens.tokens),
            "training_bytes": made.train_tokens.bytes,
            "validation_tokens": len(made.validation_tokens.tokens),
            "validation_bytes": made.validation_tokens.bytes,
        }
        if isinstance(made.train, packed.Packed):
            facts["padding"] = round(made.train.padding, 4)
        if validation is not None and validation.nbytes <= GZIP_AT_MOST:
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
        """(sum, weight, {"loss": (sum, weight)}) in nats over the targets of a batch.

        Training minimises the first pair. The pair in the dict is the cross-entropy without smoothing.
        `losses.linear_cross_entropy` never holds all logits in memory if they are large.
        """
        family = models.family(model_cfg)
        x_BTD = family.hidden(params, model_cfg, batch["inputs"], segments=batch.get("segments"), key=key)
        kernel_DV = family.head(params, model_cfg)
        total, weight, plain = losses.linear_cross_entropy(
            x_BTD,
            kernel_DV,
            batch["targets"],
            batch["weights"],
            cap=getattr(model_cfg, "logit_cap", 0.0),
            label_smoothing=self.label_smoothing,
        )
        return total, weight, {"loss": (plain, weight)}

    def logits_and_states(
        self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> tuple[Any, Any, Any]:
        """(logits [B, T, V], hidden states [B, T, D], the weights of the targets [B, T])."""
        family = models.family(model_cfg)
        x_BTD = family.hidden(params, model_cfg, batch["inputs"], segments=batch.get("segments"), key=key)
        made = losses.logits(x_BTD, family.head(params, model_cfg), cap=getattr(model_cfg, "logit_cap", 0.0))
        return made, x_BTD, batch["weights"]

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats and perplexity per token, and bits per byte of the text."""
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
        """The FLOPs of a training step on one example, forward and backward (PaLM, appendix B).

        Per token: 6 per parameter that multiplies it (kernels and the output matrix, not the embeddings), and
        12 L N H T for attention, masked pairs included.
        """
        T = data.length
        head = 6.0 * model_cfg.width * model_cfg.vocab_size * T  # counted here, since a tied head is not a kernel
        scores = config.attention_width(model_cfg) * T * T
        declaration = models.family(model_cfg).declare(model_cfg)
        return head + params_lib.flops(declaration, lambda path: T * (path != "head/kernel"), scores)

    def default_sample(self) -> Sample:
        """The default sampling settings."""
        return self.defaults

    def snapshot_settings(self) -> dict[str, Any]:
        """The tokens that end a text."""
        return {"stop_ids": self.stop_ids}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> corpus.TextCorpus:
        """The embedded corpus."""
        return corpus.TextCorpus(tokenizer=tokenizer, length=min(model_cfg.max_length, 1024))

    def predict_options(self, defaults: Sample) -> "Continue":
        """The sampling settings and the seed."""
        return Continue(**dataclasses.asdict(defaults))

    def read(self, given: Sequence[str], options: Any) -> Sequence[Input] | None:
        """ "-" for a conversation whose turns are read from the terminal one by one."""
        return [Input("-", "stdin", {})] if options.chat and list(given) in ([], ["-"]) else None

    def respond(
        self, loaded: Any, inputs: Sequence[Input], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[str]:
        """The prompt and its continuation, streamed; or a conversation.

        Raises:
          InputError: several prompts.
        """
        if options.chat:
            from transformer_jax.tasks.chat import talk  # it builds on this task

            yield from talk.respond(loaded, inputs, options, stop_ids=self.stop_ids)
            return
        if len(inputs) > 1:
            raise InputError(
                f"a language model continues one prompt, but {len(inputs)} are given; quote a prompt with spaces"
            )
        options = dataclasses.replace(options, prompt=inputs[0].query)
        yield from self.sample(loaded.params, loaded.config, loaded.tokenizer, options, seed=options.seed)
        yield "\n"

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Sample) -> None:
        """Refuses a model that cannot decode, and a prompt that the tokenizer cannot encode."""
        if options.max_new_tokens:
            models.require(model_cfg, SAMPLES, DECODES)
            tokenizers.prompt_ids(tokenizer, options.prompt)

    def sample(self, params: Any, model_cfg: Any, tokenizer: Any, options: Any, *, seed: int) -> Iterator[str]:
        """The prompt and its continuation, streamed as text.

        A prompt that leaves no room for the new tokens loses its beginning (`decode.fit`); stderr reports it.
        """
        family, asked = models.family(model_cfg), options.max_new_tokens
        if asked == 0:
            return
        models.require(model_cfg, SAMPLES, DECODES)
        model_cfg = config.for_decoding(model_cfg)
        eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        stop_ids = tuple(dict.fromkeys((*eos, *self.stop_ids)))
        ids = tokenizers.prompt_ids(tokenizer, options.prompt)
        kept, new = decode.fit(len(ids), asked, model_cfg.max_length)
        if kept < len(ids) or new < asked:
            print(
                f"the prompt's {len(ids)} tokens and {asked} new ones exceed the model's {model_cfg.max_length}: using "
                f"the last {kept} tokens of the prompt and generating {new}",
                file=sys.stderr,
            )
        # Padding to a multiple of 32 lets prompts of similar lengths share one compilation.
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
        text_ids = ids[1:] if ids[:1] == [tokenizer.bos_id] else ids
        yield from tokenizers.stream_decode(tokenizer, made, after=text_ids if options.prompt else ())


def gzip_bits_per_byte(documents: Iterable[tuple[str, str]]) -> float:
    """The bits per byte of `gzip -9` on these documents, each compressed separately.

    Args:
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
