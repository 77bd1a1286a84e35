"""What a model looks at as a page: one HTML file and the pictures in it, as PNGs.

`look` asks what the model's family can do: encode and decode a pair, read pixels, predict the next token, fill masks or
classify. L layers, B = 1, N heads, T queries, S keys.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax import extras, looking, pages
from transformer_jax.data import image_files
from transformer_jax.data.tokenizers.batch import around
from transformer_jax.errors import InputError
from transformer_jax.nn import watch

MOST = 64  # the most tokens of a text, so that the tokens can be read in a picture
TOP = 3  # the most probable tokens of each layer that the logit lens shows
NOTE = (
    "Attention shows where a head reads, not why the model answers as it does. Rows are the tokens that read, columns "
    "those that are read; each row sums to 1."
)


@dataclass
class Looked:
    """A page in the making.

    Attributes:
      title: the title of the page.
      sections: the sections of the page.
      pictures: {name: PNG}, in the page too.
    """

    title: str
    sections: list[Any] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def add(self, title: str, remark: str, *content: Any) -> None:
        """Adds a section: its `title`, a `remark`, and its content."""
        self.sections.append(pages.section(title, pages.element("p", remark), *content))

    def draw(self, name: str, alt: str, figure: Any) -> pages.Html:
        """The picture of a `figure` of matplotlib, kept under `name`; `alt` says in words what it shows."""
        written = io.BytesIO()
        figure.savefig(written, dpi=110, format="png")
        self.pictures[name] = written.getvalue()
        return pages.picture(self.pictures[name], alt)

    def html(self) -> str:
        """The page."""
        return pages.page(self.title, self.sections, lead=NOTE)


def look(loaded: Any, asked: str) -> Looked:
    """What a model looks at for an input.

    Args:
      loaded: a `restore.Loaded`.
      asked: a text; or the path of an image, where the model reads pixels.

    Raises:
      InputError: the input cannot be read, or the model has no attention to look at.
    """
    functions = vars(loaded.family)
    if "attention_weights" not in functions:
        raise InputError("this model's family has no attention_weights, so there is nothing to look at")
    if "encode" in functions:
        return _pair(loaded, asked)
    if hasattr(loaded.config, "patch_size"):
        return _image(loaded, asked)
    return _text(loaded, asked)


# ---- Texts ---------------------------------------------------------------------------------------------------------


def _text(loaded: Any, asked: str) -> Looked:
    """Of a decoder, the next token after the text; of an encoder, its masks, or its label."""
    before, after = around(loaded.tokenizer)
    is_decoder = "prefill" in vars(loaded.family)
    ids = np.concatenate([before, loaded.tokenizer.encode_prompt(asked), [] if is_decoder else after]).astype(np.int32)
    _check(loaded, ids, asked)
    names = _names(loaded.tokenizer, ids)
    family, cfg, tokens = loaded.family, watch.open_up(loaded.config), ids[None]
    heads = getattr(cfg, "heads", ())
    mask = loaded.tokenizer.special.mask

    def logits(params: Any, cfg: Any) -> jax.Array:
        """[T, V], or of a classifier [1, C]."""
        if is_decoder:
            return family.apply(params, cfg, tokens)[0]
        x_BTD = family.apply(params, cfg, tokens)
        if "mlm" in heads:
            return family.mlm(params, cfg, x_BTD)[0]
        return (
            family.classify(params, cfg, x_BTD) if "classification" in heads else jnp.sum(x_BTD, -1, keepdims=True)[0]
        )

    if is_decoder:
        at, what = len(ids) - 1, "the next token"
    elif "mlm" in heads:
        masks = np.flatnonzero(ids == mask)
        at, what = (int(masks[0]), "the first mask") if len(masks) else (len(ids) // 2, "the token in the middle")
    else:
        at, what = 0, "the label"
    spelled = (
        (lambda i: loaded.tokenizer.decode([i]) or f"<{i}>")
        if is_decoder or "mlm" in heads
        else (lambda i: (getattr(loaded.task, "labels", ()) or {}.get(i, ()) or [str(i)] * (i + 1))[i])
    )

    @jax.jit
    def computed(params: Any) -> Any:
        whole = logits(params, cfg)
        chosen = jnp.argmax(whole[min(at, len(whole) - 1)])

        def score() -> jax.Array:
            return logits(params, cfg)[min(at, len(whole) - 1)][chosen]

        def loss() -> jax.Array:
            return -jax.nn.log_softmax(logits(params, cfg)[min(at, len(whole) - 1)])[chosen]

        weights, gradients = looking.gradients(score)
        lens = [x[min(at, len(x) - 1)] for x in looking.logit_lens(params, cfg, logits)]
        flow, found = looking.rollout(weights), looking.relevance(weights, gradients)
        return whole, weights, flow[0], found[0], looking.head_importance(loss, weights), lens

    whole, weights, flow_TT, found_TT, importance_LN, lens = jax.device_get(computed(loaded.params))
    page = Looked(f"What the model looks at: {_short(asked)}")
    answer = spelled(int(np.argmax(whole[min(at, len(whole) - 1)])))
    page.add(
        "What each token has to do with the answer",
        f"The answer is {what}, {answer!r}, asked at the token {at + 1}, {names[at]!r}. Rollout multiplies the "
        "attention of the layers; attention times gradient counts what raises the answer's score (Chefer et al. 2021).",
        _shares(names, flow_TT[at], found_TT[at] - np.eye(len(ids))[at]),
    )
    _views(page, "Attention", "attention", [x[0] for x in weights], names, names)
    _lens(page, lens, spelled, what)
    _importance(page, importance_LN)
    return page


def _pair(loaded: Any, asked: str) -> Looked:
    """Of a translator: its own translation, and what each of its tokens reads of the source."""
    (answer,) = loaded.task.predict(loaded.params, loaded.config, loaded.tokenizer, [asked], top=1)
    if "error" in answer:
        raise InputError(f"{_short(asked)}: {answer['error']}")
    translated = answer["hypotheses"][0]
    before, after = around(loaded.tokenizer)
    source = np.concatenate([before, loaded.tokenizer.encode(asked), after]).astype(np.int32)
    writes, start = loaded.tokenizer.target, loaded.config.decoder_start_id or 0
    target = np.concatenate([[start], writes.encode(translated)]).astype(np.int32)
    _check(loaded, source, asked)
    _check(loaded, target, translated)
    cfg = watch.open_up(loaded.config)
    found = jax.device_get(
        jax.jit(lambda params: loaded.family.attention_weights(params, cfg, source[None], target[None]))(loaded.params)
    )
    sources, targets = _names(loaded.tokenizer, source), _names(writes, target)
    page = Looked(f"What the model looks at: {_short(asked)}")
    aligned_TS = np.mean(found.cross[-1, 0], axis=0)
    page.add(
        "Alignment",
        f"{asked} → {translated}. Each row is a token of the translation that the decoder has read, and shows what the "
        "last layer's cross-attention reads of the source, the mean of its heads, to write the token after it.",
        page.draw(
            "alignment.png",
            f"Alignment of {len(targets)} target tokens with {len(sources)} source tokens",
            _matrix(aligned_TS, targets, sources),
        ),
    )
    _views(page, "Cross-attention", "cross", found.cross[:, 0], targets, sources)
    _views(page, "Encoder", "encoder", found.encoder[:, 0], sources, sources)
    _views(page, "Decoder", "decoder", found.decoder[:, 0], targets, targets)
    return page


def _image(loaded: Any, asked: str) -> Looked:
    """Of a Vision Transformer: the patches that the class token, or the mean of all, reads."""
    try:
        pixels = image_files.pixels(Path(asked).read_bytes(), loaded.task.preprocess)
    except (OSError, image_files.Broken) as error:
        raise InputError(f"{asked}: {getattr(error, 'strerror', None) or error}; give the file of an image") from None
    family, cfg, how = loaded.family, loaded.config, loaded.task.preprocess
    mean_C, std_C = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    image = (pixels[None].astype(np.float32) / 255.0 - mean_C) / std_C

    @jax.jit
    def computed(params: Any) -> Any:
        weights = family.attention_weights(params, cfg, image)
        return weights[:, 0], family.rollout(weights, cfg)[0]

    weights_LNTT, flow_RC = jax.device_get(computed(loaded.params))
    page = Looked(f"What the model looks at: {Path(asked).name}")
    page.add(
        "Rollout",
        "The share of each patch in what the head reads: the attention of the layers, multiplied (Abnar and Zuidema "
        "2020).",
        page.draw("rollout.png", f"The image, and the share of each of {flow_RC.size} patches", _over(pixels, flow_RC)),
    )
    rows, columns = flow_RC.shape
    read_LNP = weights_LNTT[..., weights_LNTT.shape[-1] - rows * columns :]
    read_LNP = read_LNP[:, :, 0] if getattr(cfg, "has_class_token", False) else read_LNP.mean(2)
    maps = [list(layer.reshape(-1, rows, columns)) for layer in read_LNP]
    page.add(
        "Each head",
        "Rows are layers, columns heads: what the class token reads of each patch, or without one the patches' mean.",
        page.draw("heads.png", f"{len(maps)} layers of {len(maps[0])} heads over the patches", _grid(maps)),
    )
    return page


# ---- Parts of a page -----------------------------------------------------------------------------------------------


def _check(loaded: Any, ids: np.ndarray, asked: str) -> None:
    if not len(ids):
        raise InputError("the input has no token; give some text")
    if len(ids) > min(MOST, loaded.config.max_length):
        raise InputError(
            f"{_short(asked)}: {len(ids)} tokens, more than the {min(MOST, loaded.config.max_length)} that a page "
            "shows; give a shorter text"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _names(tokenizer: Any, ids: np.ndarray) -> list[str]:
    special = {id: f"[{role.upper()}]" for role, id in tokenizer.special.present().items()}
    return [special.get(int(i)) or tokenizer.decode([int(i)]).strip() or f"<{int(i)}>" for i in ids]


def _shares(names: Sequence[str], flow_T: np.ndarray, found_T: np.ndarray) -> pages.Html:
    total = max(float(found_T.sum()), 1e-9)
    rows = [
        [f"{number}. {name}", f"{flow:.3f}", f"{one / total:.3f}"]
        for number, (name, flow, one) in enumerate(zip(names, flow_T, found_T, strict=True), 1)
    ]
    return pages.table("Share of each token", ("token", "rollout", "attention × gradient"), rows)


def _views(
    page: Looked, title: str, name: str, weights: Sequence[np.ndarray], queries: Sequence[str], keys: Sequence[str]
) -> None:
    last = np.mean(weights[-1], axis=0)
    page.add(
        title,
        f"Rows are the {len(weights)} layers, columns the {len(weights[0])} heads; below, the mean of the last layer.",
        page.draw(
            f"{name}_heads.png",
            f"{title}: {len(weights)} layers of {len(weights[0])} heads",
            _grid([list(layer) for layer in weights]),
        ),
        page.draw(f"{name}_last.png", f"{title}: the mean of the last layer's heads", _matrix(last, queries, keys)),
    )


def _lens(page: Looked, lens: Sequence[np.ndarray], spelled: Callable[[int], str], what: str) -> None:
    rows = []
    for number, logits_V in enumerate(lens, 1):
        odds_V = np.exp(logits_V - logits_V.max())
        odds_V = odds_V / odds_V.sum()
        best = np.argsort(-odds_V)[:TOP]
        rows.append([number, *(f"{spelled(int(i))!r} {odds_V[i]:.1%}" for i in best)])
    header = ("layers", *(f"{n}." for n in range(1, len(rows[0]))))
    page.add(
        "Logit lens",
        f"What the model would answer for {what} if its head read the states of an earlier layer.",
        pages.table("The likeliest answers after each layer", header, rows),
    )


def _importance(page: Looked, importance_LN: np.ndarray) -> None:
    header = ("layer", *(f"head {n}" for n in range(1, importance_LN.shape[1] + 1)))
    rows = [[number, *(f"{x:.3g}" for x in layer)] for number, layer in enumerate(importance_LN, 1)]
    page.add(
        "Importance of heads",
        "How fast the answer's loss changes, in nats, as a head's output is scaled down (Michel et al. 2019).",
        pages.table("Nats per unit of scale", header, rows),
    )


# ---- Figures -------------------------------------------------------------------------------------------------------


def _grid(maps: Sequence[Sequence[np.ndarray]]) -> Any:
    """Small maps: a row for each layer, a column for each head."""
    extras.need("matplotlib", "a picture of attention")
    from matplotlib.figure import Figure

    rows, columns = len(maps), len(maps[0])
    figure = Figure(figsize=(min(1.1 * columns + 0.4, 14), min(1.1 * rows + 0.3, 20)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for layer, one in enumerate(maps):
        for head, values in enumerate(one):
            axes[layer, head].imshow(values, cmap="Blues", vmin=0, aspect="auto")
            axes[layer, head].set_xticks([])
            axes[layer, head].set_yticks([])
            if layer == 0:
                axes[layer, head].set_title(f"{head + 1}", fontsize=8)
        axes[layer, 0].set_ylabel(f"{layer + 1}", fontsize=8)
    return figure


def _matrix(values_TS: np.ndarray, queries: Sequence[str], keys: Sequence[str]) -> Any:
    """One map with the names of its tokens."""
    extras.need("matplotlib", "a picture of attention")
    from matplotlib.figure import Figure

    side = 0.24
    figure = Figure(figsize=(side * len(keys) + 2.2, side * len(queries) + 1.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values_TS, cmap="Blues", vmin=0, aspect="equal")
    axes.set_xticks(range(len(keys)), keys, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(queries)), queries, fontsize=8, parse_math=False)
    return figure


def _over(pixels_YXC: np.ndarray, flow_RC: np.ndarray) -> Any:
    """The image, and beside it the image under the map."""
    extras.need("matplotlib", "a picture of attention")
    from matplotlib.figure import Figure

    shown = pixels_YXC[..., 0] if pixels_YXC.shape[-1] == 1 else pixels_YXC
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    extent = (0, shown.shape[1], shown.shape[0], 0)
    for one in axes:
        one.imshow(shown, cmap="gray", extent=extent)
        one.set_axis_off()
    axes[1].imshow(flow_RC, cmap="magma", alpha=0.6, extent=extent, interpolation="nearest")
    return figure
