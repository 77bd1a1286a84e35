"""Recommendation: which item does a user choose next?

    causal    each item from those before it: SASRec (Kang and McAuley 2018) on `gpt`, with the full softmax in place of
              one sampled negative (Klenitskiy and Vasilev 2023)
    masked    hidden items from both sides: BERT4Rec (Sun et al. 2019) on `bert`; in prediction the last is hidden

The softmax is over all items, in tiles of positions (`losses.linear_cross_entropy`), so a million items need no
sampling. Reported are the hit rate and NDCG of the full ranking, beside baselines that only count.

Letters: B rows, T length, D width, S seen items, V vocabulary, K answers.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import losses, models, sharding
from transformer_jax.contracts import Evaluation, Outputs, Predict, Prepared, Sums
from transformer_jax.data.tokenizers.items import FIRST, ItemTokenizer
from transformer_jax.errors import InputError
from transformer_jax.nn import layers
from transformer_jax.objectives.masking import Masking
from transformer_jax.tasks import encoder
from transformer_jax.tasks.next_item import histories, ranking
from transformer_jax.tasks.text import TextTask

Objective = Literal["causal", "masked"]
PREDICT_ROWS = 16  # histories in a batch of `predict`
MASK = 1


@dataclass(frozen=True)
class NextItem(TextTask):
    """The cross-entropy of the next item, or of hidden ones, over all items."""

    unit: ClassVar[str] = "items"
    objective: Objective = "causal"
    """causal (SASRec) or masked (BERT4Rec)."""
    masking: Masking = field(default_factory=lambda: Masking(rate=0.2, mask_share=1.0, random_share=0.0))
    """The share of a history that is hidden; of masked alone."""
    unseen: bool = False
    """Items of the history are no candidates: of films, which are not recommended twice. The metrics' names say so,
    because it changes them."""

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise InputError(f"task.objective = {self.objective!r}: must be one of {', '.join(get_args(Objective))}")
        if (self.masking.unit, self.masking.mask_share) != ("token", 1.0):
            raise InputError(
                "task.masking: an item is one token, and all chosen ones are masked; only rate is settable"
            )

    @property
    def _masks(self) -> Masking | None:
        return self.masking if self.objective == "masked" else None

    def check(self, model_cfg: Any, data: histories.Histories) -> None:
        """Refuses a model without the functions of the objective, and histories longer than its positions."""
        functions = ("hidden", "head") if self.objective == "causal" else ("apply", "mlm_states", "mlm_kernel")
        models.require(model_cfg, f"task NextItem, {self.objective},", functions, ("vocab_size", "max_length", "width"))
        if self.objective == "masked":
            encoder.check_head(model_cfg, "mlm")
        super().check(model_cfg, data)

    def example(self, data: histories.Histories) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of one example."""
        T = (data.length,)
        dtypes = {"tokens": np.int32, "targets": np.int32, "weights": np.float32, "popularity": np.float32}
        made = {name: jax.ShapeDtypeStruct(T, dtype) for name, dtype in dtypes.items()}
        return made | ({"seen": jax.ShapeDtypeStruct((data.longest,), np.int32)} if self.unseen else {})

    def prepare(
        self, data: histories.Histories, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None
    ) -> Prepared:
        """The histories, and what counting reaches on the validation set.

        Raises:
          InputError: bad events (`interactions.read`), none to ask for, or more items than the model has.
        """
        self.check(model_cfg, data)
        sides = histories.divide(data, workdir_tokenizer)
        encoder.check_ids(model_cfg, sides.tokenizer)
        popularity_V, masks = sides.popularity(model_cfg.vocab_size), self._masks
        longest = data.longest if self.unseen else 0
        facts = dict(sides.facts)
        if spare := model_cfg.vocab_size - sides.tokenizer.vocab_size:
            facts["ids_that_are_no_item_and_count_as_wrong"] = spare
        sets = {}
        for name, cases in (("validation", sides.validation), ("test", sides.test)):
            facts[f"{name}_users"] = len(cases.at)
            new = ~np.isin(sides.items[cases.at], sides.items[sides.in_training()])
            facts |= {f"{name}_items_never_trained_on": int(new.sum())} if new.any() else {}
            rows = histories.evaluation(sides, cases, data, masks, popularity_V, longest)
            sets[name] = Evaluation(rows, ranking.baselines(sides, cases, unseen=self.unseen))
        facts |= {f"validation_{name}": value for name, value in sets["validation"].reference.items()}
        train = histories.training(sides, data, masks, popularity_V, seed=seed, longest=longest)
        facts["training_rows"] = len(train.los)
        return Prepared(train, sets["validation"], facts, sides.tokenizer, sets["test"])

    # ---- Loss ----

    def loss(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Any:
        """(sum, weight, {"loss", "gain_on_popularity"}) in nats per item.

        The gain is the loss of predicting each item by its share of the training events, minus the model's: 0 until
        the model learns more than that.
        """
        x_BTD = self._states(params, model_cfg, batch["tokens"], key)
        kernel_DV, bias_V = self._output(params, model_cfg)
        total, weight, plain = losses.linear_cross_entropy(
            x_BTD, kernel_DV, batch["targets"], batch["weights"], bias_V=bias_V
        )
        gain = -jnp.sum(batch["popularity"] * batch["weights"]) - plain
        return total, weight, {"loss": (plain, weight), "gain_on_popularity": (gain, weight)}

    def _states(self, params: Any, model_cfg: Any, tokens_BT: jax.Array, key: jax.Array | None) -> jax.Array:
        """What the output matrix multiplies, [B, T, D]."""
        family = models.family(model_cfg)
        if self.objective == "causal":
            return family.hidden(params, model_cfg, tokens_BT, key=key)
        x_BTD = family.apply(params, model_cfg, tokens_BT, lengths=_lengths(tokens_BT), key=key)
        return family.mlm_states(params, model_cfg, x_BTD)

    def _output(self, params: Any, model_cfg: Any) -> tuple[jax.Array, jax.Array | None]:
        """The output matrix [D, V] and its bias."""
        family = models.family(model_cfg)
        if self.objective == "causal":
            return family.head(params, model_cfg), None
        return family.mlm_kernel(params, model_cfg)

    def _scores(self, params: Any, model_cfg: Any, tokens_BT: jax.Array) -> jax.Array:
        """Logits float32 [B, V] of the item after each history, or under the mask that ends it; -inf for no item."""
        x_BTD = self._states(params, model_cfg, tokens_BT, None)
        kernel_DV, bias_V = self._output(params, model_cfg)
        with sharding.replicated_length():
            x_B1D = layers.last_token(x_BTD, _lengths(tokens_BT))
            logits_BV = losses.logits(x_B1D, kernel_DV, bias_V)[:, 0]
        return jnp.where(jnp.arange(logits_BV.shape[1]) < FIRST, -jnp.inf, logits_BV)

    # ---- Evaluation ----

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """The sums of `loss`, and {"rank": int32 [B]} of the right item among all, from 1.

        An item with an equal score counts as better, so that equal scores everywhere are the worst result. Where the
        right item is none of the candidates its rank is V.
        """
        scores_BV = sharding.constrain(self._scores(params, model_cfg, batch["tokens"]), ("batch", None))
        target_B = jnp.max(batch["targets"] * (batch["weights"] > 0), axis=1)
        nats_B = jax.nn.logsumexp(scores_BV, axis=1) - jnp.take_along_axis(scores_BV, target_B[:, None], axis=1)[:, 0]
        if self.unseen:
            scores_BV = jnp.put_along_axis(scores_BV, batch["seen"], -jnp.inf, axis=1, inplace=False)
        own_B1 = jnp.take_along_axis(scores_BV, target_B[:, None], axis=1)
        # The item itself is not compared: XLA may compute its score twice, with other last bits.
        is_other_BV = jnp.arange(scores_BV.shape[1]) != target_B[:, None]
        rank_B = 1 + jnp.sum(is_other_BV & ~(scores_BV < own_B1), axis=1).astype(jnp.int32)
        rank_B = jnp.where(jnp.isfinite(own_B1[:, 0]), rank_B, scores_BV.shape[1])
        weight_B = jnp.max(batch["weights"], axis=1)
        nats, gain = jnp.sum(jnp.where(weight_B > 0, nats_B, 0)), -jnp.sum(batch["popularity"] * batch["weights"])
        weight = jnp.sum(weight_B)
        return {"loss": (nats, weight), "gain_on_popularity": (gain - nats, weight)}, {"rank": rank_B}

    def best_metric(self) -> str:
        """The loss of the validation set."""
        return "loss_nats_per_item"

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """Nats per item, hit rate, NDCG and reciprocal rank over the full ranking, and those of the baselines."""
        found = ranking.numbers(outputs["rank"], ranking.protocol(self.unseen))
        means = {name: total / max(weight, 1e-9) for name, (total, weight) in sums.items()}
        nats = {"loss_nats_per_item": means["loss"], "gain_on_popularity_nats_per_item": means["gain_on_popularity"]}
        return nats | found | dict(evaluation.reference)

    def flops(self, model_cfg: Any, data: histories.Histories) -> float:
        """The FLOPs of a training step on one history, forward and backward."""
        head = 6.0 * model_cfg.width * model_cfg.vocab_size * data.length
        return head + encoder.flops(model_cfg, data.length)

    # ---- Prediction ----

    def default_sample(self) -> Predict:
        """Ten items per history."""
        return Predict(top=10)

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: ItemTokenizer, inputs: Iterable[str], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """For each history {"text", "history", "unknown", "items": [{"item", "name", "probability"}, ...]}.

        A history is a list of items by name or key, "Heat, Toy Story", the latest last. "unknown" are those that the
        model does not know, which are ignored; a history of such items alone has {"text", "error"}. The probabilities
        are among the candidates: all items, or with `unseen` those that are not in the history.
        """
        rest = iter(inputs)
        while group := list(itertools.islice(rest, PREDICT_ROWS)):
            yield from self._answered(params, model_cfg, tokenizer, group, top)

    def _answered(
        self, params: Any, model_cfg: Any, tokenizer: ItemTokenizer, texts: list[str], top: int
    ) -> Iterator[dict[str, Any]]:
        T, room = model_cfg.max_length, model_cfg.max_length - (self.objective == "masked")
        tokens_BT = np.zeros((PREDICT_ROWS, T), np.int32)
        barred_BV = np.zeros((PREDICT_ROWS, model_cfg.vocab_size), bool)
        barred_BV[:, tokenizer.vocab_size :] = True
        read: list[tuple[list[int], list[str]] | InputError] = []
        for b, text in enumerate(texts):
            try:
                ids, unknown = tokenizer.known(text)
                if not ids:
                    raise InputError(_no_history(tokenizer, unknown))
                read.append((ids, unknown))
            except InputError as error:
                read.append(error)
                continue
            barred_BV[b, ids] = self.unseen
            latest = ids[-room:] + [MASK] * (T - room)
            tokens_BT[b, : len(latest)] = latest
        top = min(top, tokenizer.vocab_size - FIRST)
        best = jax.device_get(_best(params, model_cfg, self, tokens_BT, barred_BV, top))
        for text, found, log_p_K, ids_K in zip(texts, read, *best, strict=False):
            if isinstance(found, InputError):
                yield {"text": text, "error": str(found)}
                continue
            items = [
                {"item": tokenizer.keys[i - FIRST], "name": tokenizer.titles[i - FIRST], "probability": math.exp(p)}
                for i, p in zip(ids_K.tolist(), log_p_K.tolist(), strict=True)
                if math.isfinite(p)
            ]
            yield {"text": text, "history": list(tokenizer.pieces(found[0])), "unknown": found[1], "items": items}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The history, then an item on each line."""
        unknown = f"  (unknown, ignored: {', '.join(prediction['unknown'])})" if prediction["unknown"] else ""
        items = [
            f"  {number:2}. {one['name']}"
            + (f" [{one['item']}]" if one["item"] != one["name"] else "")
            + f"  {one['probability']:.1%}"
            for number, one in enumerate(prediction["items"], 1)
        ]
        return "\n".join([", ".join(prediction["history"]) + unknown, *items])


@partial(jax.jit, static_argnames=("model_cfg", "task", "top"))
def _best(
    params: Any, model_cfg: Any, task: NextItem, tokens_BT: jax.Array, barred_BV: jax.Array, top: int
) -> tuple[jax.Array, jax.Array]:
    """(log-probabilities float32 [B, K], ids int32 [B, K]) of the likeliest items that are not barred."""
    scores_BV = jnp.where(barred_BV, -jnp.inf, task._scores(params, model_cfg, tokens_BT))
    return jax.lax.top_k(jax.nn.log_softmax(scores_BV), top)


def _lengths(tokens_BT: jax.Array) -> jax.Array:
    """int32 [B]: the tokens of each row before its padding, whose id is 0; at least 1."""
    return jnp.maximum(jnp.sum(tokens_BT != 0, axis=1), 1)


def _no_history(tokenizer: ItemTokenizer, unknown: list[str]) -> str:
    if not unknown:
        return "it names no item, and nothing is known of a user without a history; give one item or more"
    try:
        tokenizer.encode(unknown[0])
    except InputError as error:
        return f"{error}; give at least one item that the model knows"
    raise AssertionError(unknown)
