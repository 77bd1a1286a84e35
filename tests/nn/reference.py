"""The transformer once more, in NumPy and float64, as the papers write it: loops over examples, layers and heads.

Nothing here is shared with the product but the names of the parameters and of the config's fields. Sources: Vaswani et
al. 2017 (attention, sinusoids), Radford et al. 2019 (GPT-2's pre-norm), Ba et al. 2016 and Zhang and Sennrich 2019
(norms), Hendrycks and Gimpel 2016 (GELU), Shazeer 2020 (gated MLP), Su et al. 2021 (rotary), Ainslie et al. 2023
(grouped queries), Raffel et al. 2020 (prefix, buckets), Press et al. 2022 (ALiBi), Dubey et al. 2024 (Llama 3.1's
frequencies).

T queries, S keys, D width, H head width, V vocabulary; one example at a time, so there is no B.
"""

import math

import numpy as np


def layer_norm(x, scale, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * scale
    return y if bias is None else y + bias


def rms_norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def activate(x, name):
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return {"relu": np.maximum(x, 0), "silu": x / (1 + np.exp(-x)), "quick_gelu": x / (1 + np.exp(-1.702 * x))}[name]


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention_head(q_TH, k_SH, v_SH, allowed_TS, bias_TS=0.0, scaled=True):
    """One head: softmax(q k^T / sqrt(H) + bias) v over the allowed keys; T5 leaves out the root."""
    scores_TS = q_TH @ k_SH.T / (math.sqrt(q_TH.shape[-1]) if scaled else 1.0) + bias_TS
    return softmax(np.where(allowed_TS, scores_TS, -np.inf)) @ v_SH


def allowed(T, segments=None, prefix=0):
    """Position t sees position s if s <= t or s is in the prefix, and both are of one segment."""
    segments = [0] * T if segments is None else segments
    return np.array([[(s <= t or s < prefix) and segments[s] == segments[t] for s in range(T)] for t in range(T)])


def sinusoid(position, width, halves=False):
    """Sine and cosine in turn, as the paper has them; or first all sines, as Marian has them."""
    row = np.zeros(width)
    for i in range(width // 2):
        row[2 * i] = math.sin(position / 10_000 ** (2 * i / width))
        row[2 * i + 1] = math.cos(position / 10_000 ** (2 * i / width))
    return np.concatenate([row[0::2], row[1::2]]) if halves else row


def rotary_frequencies(H, theta, scaling=None):
    frequencies = []
    for i in range(H // 2):
        frequency = theta ** (-2 * i / H)
        if scaling is not None:
            wavelength = 2 * math.pi / frequency
            if wavelength > scaling.original_length / scaling.low_freq_factor:
                frequency /= scaling.factor
            elif wavelength > scaling.original_length / scaling.high_freq_factor:
                smooth = scaling.original_length / wavelength - scaling.low_freq_factor
                smooth /= scaling.high_freq_factor - scaling.low_freq_factor
                frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
        frequencies.append(frequency)
    return frequencies


def rotate(x_TH, frequencies):
    """Columns i and i + H/2 of row t are one complex number, multiplied by e^(i t frequency)."""
    half = x_TH.shape[-1] // 2
    numbers = x_TH[:, :half] + 1j * x_TH[:, half:]
    rotated = numbers * np.exp(1j * np.arange(len(x_TH))[:, None] * np.array(frequencies)[None])
    return np.concatenate([rotated.real, rotated.imag], axis=-1)


def bucket(distance, num_buckets, max_distance):
    """T5's bucket of one distance to the left; keys on the right count as distance 0."""
    distance, exact = max(distance, 0), num_buckets // 2
    if distance < exact:
        return distance
    far = math.log(distance / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    return min(exact + int(far), num_buckets - 1)


def two_sided_bucket(distance, num_buckets, max_distance):
    """The encoder's: the first half of the buckets for this position and those to the left, the other for the right."""
    half = num_buckets // 2
    return bucket(abs(distance), half, max_distance) + (half if distance < 0 else 0)


def alibi_slopes(heads):
    """The paper's rule for powers of two, and for other counts the released code's: every second slope of the next."""
    if math.log2(heads).is_integer():
        return [2 ** (-8 / heads * (i + 1)) for i in range(heads)]
    power = 2 ** int(math.log2(heads))
    return alibi_slopes(power) + alibi_slopes(2 * power)[0::2][: heads - power]


def _layer(tree, i):
    return {k: _layer(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def _dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _norm(p, x, cfg):
    if cfg.norm == "rms":
        return rms_norm(x, p["scale"], cfg.norm_eps)
    return layer_norm(x, p["scale"], p.get("bias"), cfg.norm_eps)


def _attend(p, cfg, h_TD, allowed_TS, frequencies, bias_NTS, memory_SD=None):
    """The keys and values are those of h, or of another sequence's states (cross-attention)."""
    N, H = cfg.num_heads, cfg.head_dim or cfg.width // cfg.num_heads
    memory_SD = h_TD if memory_SD is None else memory_SD
    query, key, value = _dense(p["query"], h_TD), _dense(p["key"], memory_SD), _dense(p["value"], memory_SD)
    outputs = []
    for n in range(N):
        kv = n // (N // cfg.kv_heads)
        q_TH, k_SH, v_SH = query[:, n * H :][:, :H], key[:, kv * H :][:, :H], value[:, kv * H :][:, :H]
        if cfg.qk_norm:
            q_TH = rms_norm(q_TH, p["query_norm"]["scale"], cfg.norm_eps)
            k_SH = rms_norm(k_SH, p["key_norm"]["scale"], cfg.norm_eps)
        if cfg.position == "rotary":
            q_TH, k_SH = rotate(q_TH, frequencies), rotate(k_SH, frequencies)
        bias_TS, scaled = 0.0 if bias_NTS is None else bias_NTS[n], getattr(cfg, "scale_scores", True)
        outputs.append(attention_head(q_TH, k_SH, v_SH, allowed_TS, bias_TS, scaled))
    return _dense(p["out"], np.concatenate(outputs, axis=-1))


def _mlp(p, cfg, h_TD):
    if cfg.gated:
        return _dense(p["down"], activate(_dense(p["gate"], h_TD), cfg.activation) * _dense(p["up"], h_TD))
    return _dense(p["down"], activate(_dense(p["up"], h_TD), cfg.activation))


def _block(p, cfg, x_TD, allowed_TS, frequencies, bias_NTS=None, memory_SD=None):
    def attend(h_TD):
        return _attend(p["attention"], cfg, h_TD, allowed_TS, frequencies, bias_NTS)

    def cross(h_TD):
        return _attend(p["cross"], cfg, h_TD, np.ones((len(h_TD), len(memory_SD)), bool), frequencies, None, memory_SD)

    def mlp(h_TD):
        return _mlp(p["mlp"], cfg, h_TD)

    sublayers = {"attention_norm": attend, **({} if memory_SD is None else {"cross_norm": cross}), "mlp_norm": mlp}
    for norm, sublayer in sublayers.items():
        if cfg.norm_order == "pre":
            x_TD = x_TD + sublayer(_norm(p[norm], x_TD, cfg))
        else:
            x_TD = _norm(p[norm], x_TD + sublayer(x_TD), cfg)
    return x_TD


def gpt_logits(params, cfg, tokens_T, segments=None, prefix=0):
    """Logits [T, V] of one sequence."""
    T, N, H = len(tokens_T), cfg.num_heads, cfg.head_dim or cfg.width // cfg.num_heads
    segments_T = list(np.zeros(T, int) if segments is None else segments)
    where_T = [t - segments_T.index(segments_T[t]) for t in range(T)]  # positions restart in each segment
    x_TD = params["embed"]["token"]["embedding"][tokens_T]
    if cfg.position == "learned":
        x_TD = x_TD + params["embed"]["position"]["embedding"][where_T]
    if cfg.position == "sinusoidal":
        x_TD = x_TD + np.stack([sinusoid(t, cfg.width) for t in where_T])
    bias_NTS = np.zeros((N, T, T))
    for n in range(N):
        for t in range(T):
            for s in range(T):
                if cfg.position == "relative":
                    bias_NTS[n, t, s] = params["relative_bias"]["embedding"][bucket(t - s, 32, 128), n]
                if cfg.position == "alibi":
                    bias_NTS[n, t, s] = -alibi_slopes(N)[n] * abs(t - s)
    frequencies = rotary_frequencies(H, cfg.rope_theta, cfg.rope_scaling)

    for i in range(cfg.num_layers):
        x_TD = _block(_layer(params["blocks"], i), cfg, x_TD, allowed(T, segments, prefix), frequencies, bias_NTS)
    if cfg.norm_order == "pre":
        x_TD = _norm(params["final_norm"], x_TD, cfg)
    return x_TD @ (params["embed"]["token"]["embedding"].T if cfg.tie_embeddings else params["head"]["kernel"])


def bert_hidden(params, cfg, tokens_T, types_T=None):
    """Hidden states [T, D] of one sequence without padding (Devlin et al. 2019; ALBERT's sharing and factorisation, Lan
    et al. 2020; local layers, Beltagy et al. 2020)."""
    T, H = len(tokens_T), cfg.head_dim or cfg.width // cfg.num_heads
    embed = params["embed"]
    x_TD = embed["token"]["embedding"][tokens_T]
    if cfg.position == "learned":
        x_TD = x_TD + embed["position"]["embedding"][cfg.position_offset :][:T]
    if cfg.num_types:
        x_TD = x_TD + embed["type"]["embedding"][np.zeros(T, int) if types_T is None else types_T]
    x_TD = _norm(embed["norm"], x_TD, cfg)
    if "project" in embed:
        x_TD = _dense(embed["project"], x_TD)
    for i in range(cfg.num_layers):
        local = cfg.local_window > 0 and i % cfg.global_every != 0
        near = np.array([[abs(t - s) <= cfg.local_window or not local for s in range(T)] for t in range(T)])
        frequencies = rotary_frequencies(H, cfg.local_rope_theta if local else cfg.rope_theta)
        p = _layer(params["blocks"], 0 if cfg.share_layers else i)
        x_TD = _block(p, cfg, x_TD, near, frequencies)
    return _norm(params["final_norm"], x_TD, cfg) if cfg.norm_order == "pre" else x_TD


def seq2seq_logits(params, cfg, source_S, target_T):
    """(encoder's states [S, D], logits [T, V]) of one unpadded pair (Vaswani et al. 2017; T5, Raffel et al. 2020;
    BART, Lewis et al. 2020; Marian, Junczys-Dowmunt et al. 2018)."""
    table = params["embed"]["token"]["embedding"]

    def side(p, num_layers, tokens_T, allowed_TT, bucket_of, memory_SD):
        T = len(tokens_T)
        x_TD = table[tokens_T] * (math.sqrt(cfg.width) if cfg.scale_embedding else 1.0)
        if cfg.position == "learned":
            x_TD = x_TD + p["position"]["embedding"][cfg.position_offset :][:T]
        if cfg.position in ("sinusoidal", "sinusoidal_halves"):
            x_TD = x_TD + np.stack([sinusoid(t, cfg.width, cfg.position == "sinusoidal_halves") for t in range(T)])
        if cfg.embedding_norm:
            x_TD = _norm(p["embed_norm"], x_TD, cfg)
        bias_NTT = np.zeros((cfg.num_heads, T, T))
        if cfg.position == "relative":
            for t in range(T):
                for s in range(T):
                    row = bucket_of(t - s, cfg.relative_buckets, cfg.relative_max_distance)
                    bias_NTT[:, t, s] = p["relative_bias"]["embedding"][row]
        for i in range(num_layers):
            x_TD = _block(_layer(p["blocks"], i), cfg, x_TD, allowed_TT, None, bias_NTT, memory_SD)
        return _norm(p["final_norm"], x_TD, cfg) if cfg.norm_order == "pre" else x_TD

    S, T = len(source_S), len(target_T)
    x_SD = side(params["encoder"], cfg.num_layers, source_S, np.ones((S, S), bool), two_sided_bucket, None)
    y_TD = side(params["decoder"], cfg.decoder_layers, target_T, allowed(T), bucket, x_SD)
    if cfg.scale_head:
        y_TD = y_TD / math.sqrt(cfg.width)
    logits_TV = y_TD @ (table.T if cfg.tie_embeddings else params["head"]["kernel"])
    return x_SD, logits_TV + (params["head"]["bias"] if cfg.logits_bias else 0.0)


def sincos_2d(row, column, width):
    """MoCo v3's position of one patch: a quarter of the features for each of four functions."""
    rates = [1 / 10_000 ** (i / (width // 4 - 1)) for i in range(width // 4)]
    pairs = ((math.sin, column), (math.cos, column), (math.sin, row), (math.cos, row))
    return np.array([f(place * rate) for f, place in pairs for rate in rates])


def vit_hidden(params, cfg, image_YXC):
    """Hidden states [T, D] of one image (Dosovitskiy et al. 2021; Touvron et al. 2021, distillation token and
    LayerScale; Darcet et al. 2024, registers; Chen et al. 2021, two-dimensional sines and cosines)."""
    embed, side, patches = params["embed"], cfg.patch_size, []
    special = [embed[name]["embedding"][0] for name in ("class", "distillation") if name in embed]
    for y in range(0, cfg.sides[0], side):
        for x in range(0, cfg.sides[1], side):
            patch = image_YXC[y : y + side, x : x + side]
            values_P = np.concatenate([patch[..., c].ravel() for c in range(cfg.channels)])
            patches.append(_dense(embed["patch"], values_P))
            if cfg.position == "sincos2d":
                patches[-1] += sincos_2d(y // side, x // side, cfg.width)
    if cfg.position == "learned":
        table = embed["position"]["embedding"]
        special = [token + row for token, row in zip(special, table, strict=False)]
        patches = [patch + row for patch, row in zip(patches, table[len(special) :], strict=True)]
    registers = list(embed["registers"]["embedding"]) if "registers" in embed else []
    x_TD = np.stack([*special, *registers, *patches])
    everything = np.ones((len(x_TD), len(x_TD)), bool)
    for i in range(cfg.num_layers):
        p = _layer(params["blocks"], i)
        y_TD = _attend(p["attention"], cfg, _norm(p["attention_norm"], x_TD, cfg), everything, None, None)
        x_TD = x_TD + y_TD * (p["attention"]["layer_scale"]["scale"] if cfg.layer_scale else 1.0)
        y_TD = _mlp(p["mlp"], cfg, _norm(p["mlp_norm"], x_TD, cfg))
        x_TD = x_TD + y_TD * (p["mlp"]["layer_scale"]["scale"] if cfg.layer_scale else 1.0)
    return _norm(params["final_norm"], x_TD, cfg)


def vit_pooled(params, cfg, x_TD):
    """What the head reads of one image's states, [D] (Zhai et al. 2022 and its code, for the probe)."""
    patches_TD = x_TD[cfg.num_special :]
    if cfg.pool == "class":
        y_D = x_TD[0]
    elif cfg.pool == "mean":
        y_D = patches_TD.mean(0)
    else:
        p, H, outputs = params["pool"], cfg.width // cfg.num_heads, []
        query, key, value = (
            _dense(p["attention"][name], x)
            for name, x in (("query", p["probe"]["embedding"]), ("key", patches_TD), ("value", patches_TD))
        )
        for n in range(cfg.num_heads):
            q_1H, k_TH, v_TH = (x[:, n * H :][:, :H] for x in (query, key, value))
            outputs.append(attention_head(q_1H, k_TH, v_TH, np.ones((1, len(patches_TD)), bool)))
        y_1D = _dense(p["attention"]["out"], np.concatenate(outputs, axis=-1))
        y_D = (y_1D + _mlp(p["mlp"], cfg, _norm(p["norm"], y_1D, cfg)))[0]
    return np.tanh(_dense(params["pre_logits"], y_D)) if cfg.pre_logits else y_D


def random_params(declaration, seed):
    """Float64 values for a tree of `Param`s, large enough that every one of them shows in the result."""
    rng = np.random.default_rng(seed)

    def values(tree, name=""):
        if isinstance(tree, dict):
            return {name: values(branch, name) for name, branch in tree.items()}
        return float(name == "scale") + 0.3 * rng.standard_normal(tree.shape)

    return values(declaration)
