"""The PyTorch side of `tools/bench --against torch`: a model trained step by step, in a process of its own.

    python tools/bench/train_torch.py '{"num_layers": 4, ...}'      (tools.bench starts it)

It prints one line of JSON when it is ready. Then it reads numbers, one a line: it runs that many training steps and
answers with their seconds, CPU time and page faults; after 0 it answers with its peak memory and ends. It needs only
torch.

The model is GPT-2's (Radford et al. 2019) written the plain way: pre-norm, fused attention, tied head. The step is the
one that nanoGPT's train.py makes: forward, mean cross-entropy, backward, clip, AdamW, gradients set to None; on a GPU
under bfloat16 autocast with the fused optimiser. With "nanogpt" the model and its optimiser come from that checkout.
An encoder ("kind": "bert") is Transformers' BertForSequenceClassification as it comes, eager, in train mode. A Vision
Transformer ("kind": "vit") is its ViTForImageClassification likewise; the images are normalised beforehand. An
encoder-decoder ("kind": "seq2seq") is made of PyTorch's own Transformer layers; its batches are padded, of pairs of
about the same length, as many as a budget of tokens holds.
"""

import contextlib
import importlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Norm(nn.Module):
    """LayerNorm whose bias is optional."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.bias)


class Block(nn.Module):
    """Attention and MLP, each behind its norm and added to the residual stream."""

    def __init__(self, width: int, num_heads: int, bias: bool, dropout: float, tanh: bool):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.attention_norm, self.mlp_norm = Norm(width, bias), Norm(width, bias)
        self.query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.up, self.down = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.gelu = nn.GELU(approximate="tanh" if tanh else "none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        rate = self.dropout if self.training else 0.0
        heads = self.query_key_value(self.attention_norm(x)).view(B, T, 3, self.num_heads, D // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + F.dropout(self.out(a.transpose(1, 2).reshape(B, T, D)), rate)
        return x + F.dropout(self.down(self.gelu(self.up(self.mlp_norm(x)))), rate)


class GPT(nn.Module):
    """tokens, targets -> (logits, mean loss in nats), the interface of nanoGPT's model."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        self.token = nn.Embedding(cfg["vocab_size"], cfg["width"])
        self.position = nn.Embedding(cfg["max_length"], cfg["width"])
        self.dropout = nn.Dropout(cfg["dropout"])
        tanh = cfg["activation"] == "gelu_tanh"
        self.blocks = nn.ModuleList(
            Block(cfg["width"], cfg["num_heads"], cfg["bias"], cfg["dropout"], tanh) for _ in range(cfg["num_layers"])
        )
        self.norm = Norm(cfg["width"], cfg["bias"])
        for name, p in self.named_parameters():
            if p.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg["num_layers"]) if residual else 0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.dropout(self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.token.weight)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


HIDDEN_ACT = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}  # as Transformers names them


class Classifier(nn.Module):
    """tokens, labels -> (logits, mean loss in nats) of Transformers' BERT with a sequence-classification head."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        transformers = importlib.import_module("transformers")
        settings = transformers.BertConfig(
            vocab_size=cfg["vocab_size"], hidden_size=cfg["width"], num_hidden_layers=cfg["num_layers"],
            num_attention_heads=cfg["num_heads"], intermediate_size=4 * cfg["width"], num_labels=cfg["num_labels"],
            max_position_embeddings=cfg["max_length"], hidden_act=HIDDEN_ACT[cfg["activation"]],
            hidden_dropout_prob=cfg["dropout"], attention_probs_dropout_prob=cfg["dropout"],
        )  # fmt: skip
        self.inner = transformers.BertForSequenceClassification(settings)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.inner(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels)
        return out.logits, out.loss


class ImageClassifier(nn.Module):
    """images [B, C, Y, X], labels -> (logits, mean loss in nats) of Transformers' ViT with its fused attention."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        transformers = importlib.import_module("transformers")
        settings = transformers.ViTConfig(
            hidden_size=cfg["width"], num_hidden_layers=cfg["num_layers"], num_attention_heads=cfg["num_heads"],
            intermediate_size=4 * cfg["width"], image_size=cfg["image_size"], patch_size=cfg["patch_size"],
            num_channels=cfg["channels"], num_labels=cfg["num_classes"], hidden_act=HIDDEN_ACT[cfg["activation"]],
            layer_norm_eps=cfg["norm_eps"], hidden_dropout_prob=cfg["dropout"], attn_implementation="sdpa",
        )  # fmt: skip
        self.inner = transformers.ViTForImageClassification(settings)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.inner(pixel_values=images, labels=labels)
        return out.logits, out.loss


class Translator(nn.Module):
    """(source, inputs), targets -> (logits, mean loss in nats); id 0 is padding. Vaswani et al. 2017, post-norm."""

    def __init__(self, cfg: dict[str, Any]):
        super().__init__()
        D, rate, self.smoothing = cfg["width"], cfg["dropout"], cfg["label_smoothing"]
        self.token = nn.Embedding(cfg["vocab_size"], D)
        nn.init.normal_(self.token.weight, std=D**-0.5)
        angles = torch.arange(cfg["max_length"])[:, None] * torch.exp(-math.log(1e4) * torch.arange(0, D, 2) / D)
        self.register_buffer("position", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
        self.dropout = nn.Dropout(rate)
        sizes: dict[str, Any] = {
            "d_model": D, "nhead": cfg["num_heads"], "dim_feedforward": cfg["mlp_width"] or 4 * D, "dropout": rate,
            "activation": cfg["activation"], "batch_first": True,
        }  # fmt: skip
        encoder, decoder = nn.TransformerEncoderLayer(**sizes), nn.TransformerDecoderLayer(**sizes)
        for layer in (encoder, decoder):  # PyTorch drops here as well; Vaswani et al. and our model do not
            layer.dropout = nn.Identity()
        encoder.self_attn.dropout = decoder.self_attn.dropout = decoder.multihead_attn.dropout = 0.0
        self.encoder = nn.TransformerEncoder(encoder, cfg["num_layers"], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, cfg["num_layers"])

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.token(tokens) * math.sqrt(self.token.embedding_dim) + self.position[: tokens.shape[1]])

    def forward(self, tokens: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> Any:
        source, inputs = tokens
        padding = None if source.all() else source == 0
        causal = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], source.device, dtype=torch.bool)
        states = self.encoder(self.embed(source), src_key_padding_mask=padding)
        options: dict[str, Any] = {"tgt_mask": causal, "tgt_is_causal": True, "memory_key_padding_mask": padding}
        logits = F.linear(self.decoder(self.embed(inputs), states, **options), self.token.weight)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0, label_smoothing=self.smoothing)
        return logits, loss


NAMES = {"gpt": "plain torch", "bert": "Transformers", "seq2seq": "torch's layers", "vit": "Transformers"}
MODELS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "gpt": GPT, "bert": Classifier, "seq2seq": Translator, "vit": ImageClassifier
}  # fmt: skip


def own(cfg: dict[str, Any], device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model above and AdamW: decay on matrices alone, the fused kernel on a GPU and the default elsewhere."""
    model = MODELS[cfg["kind"]](cfg).to(device)
    # A convolution's kernel is a matrix as well; a ViT's class token and positions, [1, T, D], are none.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim in (2, 4)], "weight_decay": cfg["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]
    fused = {"fused": True} if device == "cuda" else {}
    return model, torch.optim.AdamW(groups, lr=cfg["peak_lr"], betas=tuple(cfg["betas"]), **fused)


def nanogpt(cfg: dict[str, Any], device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The user's checkout of nanoGPT: its model and its optimiser, as they are."""
    sys.path.insert(0, cfg["nanogpt"])
    theirs = importlib.import_module("model")
    model = theirs.GPT(
        theirs.GPTConfig(
            block_size=cfg["max_length"], vocab_size=cfg["vocab_size"], n_layer=cfg["num_layers"],
            n_head=cfg["num_heads"], n_embd=cfg["width"], dropout=cfg["dropout"], bias=cfg["bias"],
        )
    ).to(device)  # fmt: skip
    return model, model.configure_optimizers(cfg["weight_decay"], cfg["peak_lr"], tuple(cfg["betas"]), device)


def random_batches(cfg: dict[str, Any], device: str) -> list[tuple[Any, torch.Tensor, int]]:
    """(inputs, targets, how many tokens or images to learn from) of each batch, random and on the device."""
    torch.manual_seed(0)
    if cfg["kind"] == "vit":
        shape = (4, cfg["batch_size"], cfg["channels"], cfg["image_size"], cfg["image_size"])
        pixels = torch.randint(256, shape, device=device) / 127.5 - 1.0
        labels = torch.randint(cfg["num_classes"], shape[:2], device=device)
        return [(x, y, cfg["batch_size"]) for x, y in zip(pixels, labels, strict=True)]
    if cfg["kind"] != "seq2seq":
        batches = torch.randint(cfg["vocab_size"], (4, 2, cfg["batch_size"], cfg["length"]), device=device)
        size = cfg["batch_size"] * cfg["length"]
        return [(x, y[:, 0] % cfg["num_labels"] if cfg["kind"] == "bert" else y, size) for x, y in batches]

    def padded(lengths: list[int]) -> torch.Tensor:
        rows = [torch.randint(3, cfg["vocab_size"], (length,), device=device) for length in lengths]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    made: list[list[list[int]]] = [[]]
    for pair in sorted(cfg["pairs"], key=lambda pair: (max(pair), pair)):
        if max(pair) * (len(made[-1]) + 1) > cfg["batch_size"] * cfg["length"]:
            made.append([])
        made[-1].append(pair)
    order = torch.randperm(len(made)).tolist()
    sides = [[list(side) for side in zip(*made[i], strict=True)] for i in order]
    return [((padded(source), padded(target)), padded(target), sum(target)) for source, target in sides]


def make_step(cfg: dict[str, Any], device: str, model: nn.Module, optimizer: Any) -> Callable[[], tuple[Any, int]]:
    """One training step on a batch that is on the device already; returns the loss there, and the batch's size."""
    batches = random_batches(cfg, device)
    narrow = torch.bfloat16 if cfg["dtype"] == "bfloat16" else None
    count = 0

    def step() -> tuple[torch.Tensor, int]:
        nonlocal count
        inputs, targets, size = batches[count % len(batches)]
        count += 1
        with torch.autocast(device, narrow) if narrow else contextlib.nullcontext():
            _, loss = model(inputs, targets)
        loss.backward()
        if cfg["clip_norm"]:
            nn.utils.clip_grad_norm_(model.parameters(), cfg["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach(), size

    return step


def main() -> None:
    cfg = json.loads(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    with contextlib.redirect_stdout(sys.stderr):  # nanoGPT prints; standard output is for tools.bench alone
        model, optimizer = (nanogpt if cfg["nanogpt"] else own)(cfg, device)
        model.train()
        step = make_step(cfg, device, model, optimizer)
        first_loss = step()[0].item()

    def say(value: Any) -> None:
        print(json.dumps(value), flush=True)

    say({
        "name": "nanoGPT, torch" if cfg["nanogpt"] else NAMES[cfg["kind"]],
        "parameters": sum(p.numel() for p in model.parameters()),
        "first_loss": first_loss,
        "versions": f"torch {torch.__version__}"
        + (f", transformers {sys.modules['transformers'].__version__}" if "transformers" in sys.modules else ""),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    })  # fmt: skip
    for line in sys.stdin:
        if int(line) == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            say({"peak_resident_bytes": peak})
            return
        seconds: list[float] = []
        sizes: list[int] = []
        cpu, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(int(line)):
            began = time.perf_counter()
            sizes.append(step()[1])
            finish()
            seconds.append(time.perf_counter() - began)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        say({"seconds": seconds, "sizes": sizes, "cpu_seconds": time.process_time() - cpu, "page_faults": faults})


if __name__ == "__main__":
    main()
