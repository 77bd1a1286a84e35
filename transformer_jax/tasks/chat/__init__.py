"""Chat: fine-tuning on conversations, with the loss on the assistant's tokens alone.

It reports nats per assistant token, beside those of the tokens' frequencies alone. With `metrics`, the assistant's
turns are generated at the end, each after the true turns before it, and compared with what the conversation holds.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax import files, metrics, models, sharding
from transformer_jax.contracts import LAUNCH, Evaluation, Input, Outputs, Prepared, Progress, Sums, no_progress
from transformer_jax.data import chat_templates
from transformer_jax.data.chat_templates import Template
from transformer_jax.data.conversations import Messages
from transformer_jax.decoding import decode, sets
from transformer_jax.errors import InputError
from transformer_jax.nn import config
from transformer_jax.tasks import encoder
from transformer_jax.tasks.causal_lm import DECODES, CausalLM, Drawn
from transformer_jax.tasks.chat import packed, talk
from transformer_jax.tasks.chat.packed import Chats as Chats

EXAMPLES = 5  # turns that `score` logs


@dataclass(frozen=True)
class Reply(Drawn):
    """The options of `predict`."""

    seed: int = 0
    """Of the sampled replies."""
    system: str = ""
    """A system message before the conversation; empty: none."""


@dataclass(frozen=True)
class Turns(Drawn):
    """The conversation that is printed when training ends, and the defaults of `predict`."""

    inputs: tuple[str, ...] = ()
    """What the user says, turn by turn."""
    system: str = ""
    """A system message before the conversation; empty: none."""


@dataclass(frozen=True)
class Held:
    """A finite set of conversations, for `score`."""

    conversations: Sequence[Any]
    template: Any
    unigram_nats: float


@dataclass(frozen=True)
class Chat(CausalLM):
    """The cross-entropy of the assistant's tokens."""

    template: Template = field(default_factory=Template)
    """How a conversation is written; empty: the tokenizer's own chat template."""
    train_on: Literal["assistant", "all"] = "assistant"
    """The tokens that training predicts; evaluation always counts the assistant's."""
    metrics: tuple[Literal["exact_match"], ...] = ()
    """The final scores of generated turns: exact match; (): nothing is generated at the end."""
    defaults: Turns = field(default_factory=Turns, metadata=LAUNCH)  # type: ignore[assignment]
    """The default conversation and sampling settings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_on not in ("assistant", "all"):
            raise InputError(f"task.train_on = {self.train_on!r}: must be 'assistant' or 'all'")
        for metric in self.metrics:
            if metric != "exact_match":
                raise InputError(f"task.metrics has {metric!r}; there is exact_match")

    def example(self, data: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example, [T]."""
        T = data.length
        shapes = {name: jax.ShapeDtypeStruct((T,), np.int32) for name in ("inputs", "targets", "segments")}
        return shapes | {"weights": jax.ShapeDtypeStruct((T,), np.float32)}

    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """The encoded and packed conversations.

        Raises:
          InputError: what `packed.prepare` refuses, or a tokenizer with more ids than the model.
        """
        made = packed.prepare(
            data, self.template, seed=seed, train_all=self.train_on == "all", tokenizer=workdir_tokenizer
        )
        encoder.check_ids(model_cfg, made.tokenizer)
        if self.metrics:
            models.require(model_cfg, f"task.metrics = {self.metrics}", DECODES)
        held = {
            side: Evaluation(rows, Held(made.conversations[side], made.template, made.unigram_nats[side]))
            for side, rows in made.sides.items()
        }
        return Prepared(
            made.sides["train"], held["validation"], made.facts, made.tokenizer, held.get("test"), made.identity
        )

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "nats_per_assistant_token"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats and perplexity per token of the assistant, the end of its turns included; a unigram model's beside."""
        nats = sums["loss"][0] / sums["loss"][1]
        return {
            "nats_per_assistant_token": nats,
            "perplexity_per_assistant_token": math.exp(min(nats, 700.0)),
            "unigram_nats_per_assistant_token": evaluation.reference.unigram_nats,
        }

    def score(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        evaluation: Evaluation,
        folder: Path,
        name: str,
        *,
        mesh: Mesh,
        log: Callable[[str], None],
        progress: Progress = no_progress,
    ) -> dict[str, float | str]:
        """Exact match of each turn that the model generates greedily, after the true turns before it.

        Writes FOLDER/NAME.turns.jsonl: what was asked, the reference and the reply. Every process generates all.
        """
        if not self.metrics:
            return {}
        held = evaluation.reference
        asked = [
            (one.messages[:i], message["content"])
            for one in held.conversations
            for i, message in enumerate(one.messages)
            if i and message["role"] == "assistant"
        ]
        if not asked:
            return {}
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            params = multihost_utils.process_allgather(params, tiled=True)
            mesh = sharding.make_mesh(devices=jax.local_devices())
        references = [reference for _, reference in asked]
        longest = max(len(ids) for ids in tokenizer.encode_batch(references))
        sampling = decode.Sampling(
            min(longest + 8, model_cfg.max_length),
            temperature=0.0,
            stop_ids=talk.stops(held.template, tokenizer, self.stop_ids),
        )
        prompts = held.template.prompts(tokenizer, [messages for messages, _ in asked])
        with jax.set_mesh(mesh):
            found = sets.continuations(
                models.family(model_cfg),
                params,
                config.for_decoding(model_cfg),
                prompts,
                sampling,
                key=jax.random.key(0),
                progress=progress,
            )
        replies = [tokenizer.decode(ids).strip() for ids in found]
        lines = [
            {"asked": messages[-1]["content"], "reference": reference, "reply": reply}
            for (messages, reference), reply in zip(asked, replies, strict=True)
        ]
        if jax.process_index() == 0:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            files.write(folder / f"{name}.turns.jsonl", text)
        for i in sorted(set(np.linspace(0, len(lines) - 1, EXAMPLES).astype(int).tolist())):
            log("\n    ".join(f"{key:11}{value}" for key, value in lines[i].items()))
        log(f"{len(lines):,} turns: {folder / name}.turns.jsonl")
        copied = metrics.exact_match([line["asked"] for line in lines], references)
        return {
            **metrics.exact_match(replies, references),
            **{f"{key}_of_the_question": value for key, value in copied.items() if key == "exact_match"},
        }

    # ---- Talking

    def default_sample(self) -> Any:
        """The default sampling settings."""
        return self.defaults

    def default_data(self, tokenizer: Any, model_cfg: Any) -> Any:
        """Files that the user must provide."""
        return Chats(Messages(("chats.jsonl",)), tokenizer, length=min(model_cfg.max_length, 1024))

    def predict_options(self, defaults: Any) -> Any:
        """The sampling settings, the seed and the system message."""
        return Reply(**{f.name: getattr(defaults, f.name) for f in dataclasses.fields(Turns) if f.name != "inputs"})

    def read(self, given: Sequence[str], options: Any) -> Sequence[Input] | None:
        """The user's turns, or "-" for those of the terminal, which are read one by one."""
        return None if given and list(given) != ["-"] else [Input("-", "stdin", {})]

    def respond(
        self, loaded: Any, inputs: Sequence[Input], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[str]:
        """The replies to the user's turns, streamed; without inputs, a conversation in the terminal."""
        return talk.respond(loaded, inputs, options, template=self.template, stop_ids=self.stop_ids)

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Any) -> None:
        """Refuses a model that cannot decode."""
        if options.inputs and options.max_new_tokens:
            models.require(model_cfg, "a conversation (--sample.max-new-tokens 0 turns it off)", DECODES)

    def sample(self, params: Any, model_cfg: Any, tokenizer: Any, options: Any, *, seed: int) -> Iterator[str]:
        """A conversation of the user's turns in `options` and the model's replies."""
        if not options.inputs or not options.max_new_tokens:
            return
        template = chat_templates.of(self.template, tokenizer)
        yield from talk.converse(
            params,
            model_cfg,
            tokenizer,
            template,
            talk.given(options.inputs),
            dataclasses.replace(self.predict_options(options), seed=seed),
            stop_ids=talk.stops(template, tokenizer, self.stop_ids),
        )
