"""The other side of `tools/bench/translate.py`: Transformers' `generate` or CTranslate2, in a process of its own.

    python tools/bench/translate_torch.py transformers FOLDER      (translate.py starts it)
    python tools/bench/translate_torch.py ctranslate2 FOLDER

FOLDER is a Marian snapshot. It prints one line of JSON when it is ready. Then each line it reads is {"sources": [[id,
...], ...], "batch_size": N, "beam": {"width": ..., "length_penalty": ..., "extra_tokens": ...}}; it translates the
sources and answers {"seconds": ..., "cpu_seconds": ..., "tokens": [[...], ...]} in the order of
the sources. It needs torch and Transformers, and for the second CTranslate2, all as they come.
"""

import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import torch
import transformers

Translate = Callable[[list[list[int]], int, dict[str, Any]], list[list[int]]]


def batches(sources: list[list[int]], batch_size: int) -> list[tuple[int, list[int]]]:
    """Numbers of sources, the longest first, each batch of one length: its limit of new tokens is then theirs."""
    by_length: dict[int, list[int]] = {}
    for number in sorted(range(len(sources)), key=lambda i: -len(sources[i])):
        by_length.setdefault(len(sources[number]), []).append(number)
    return [
        (length, numbers[first : first + batch_size])
        for length, numbers in by_length.items()
        for first in range(0, len(numbers), batch_size)
    ]


def with_transformers(folder: str) -> tuple[Translate, dict[str, Any]]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
    cfg = model.config

    def translate(sources: list[list[int]], batch_size: int, beam: dict[str, Any]) -> list[list[int]]:
        tokens: list[list[int]] = [[]] * len(sources)
        for length, batch in batches(sources, batch_size):
            rows = torch.tensor([sources[i] for i in batch])
            generation = transformers.GenerationConfig(
                num_beams=beam["width"],
                length_penalty=beam["length_penalty"],
                early_stopping=False,
                max_new_tokens=length + beam["extra_tokens"],
                do_sample=False,
                pad_token_id=cfg.pad_token_id,
                eos_token_id=cfg.eos_token_id,
                decoder_start_token_id=cfg.decoder_start_token_id,
            )
            model.generation_config = transformers.GenerationConfig()  # nothing of the model's own
            with torch.inference_mode():
                made = model.generate(rows, attention_mask=torch.ones_like(rows), generation_config=generation)
            for i, row in zip(batch, made[:, 1:].tolist(), strict=True):
                end = row.index(cfg.eos_token_id) + 1 if cfg.eos_token_id in row else len(row)
                tokens[i] = row[:end]
        return tokens

    return translate, {"torch": torch.__version__, "transformers": transformers.__version__}


def with_ctranslate2(folder: str) -> tuple[Translate, dict[str, Any]]:
    import ctranslate2

    class Converter(ctranslate2.converters.TransformersConverter):
        """With a vocabulary of numbers: the snapshot has no tokenizer."""

        def load_tokenizer(self, tokenizer_class: Any, path: str, **kwargs: Any) -> Any:
            cfg = transformers.AutoConfig.from_pretrained(path)
            names = {str(i): i for i in range(cfg.vocab_size)}
            del names[str(cfg.pad_token_id)]
            names["<pad>"] = cfg.pad_token_id
            eos = str(cfg.eos_token_id)
            return types.SimpleNamespace(get_vocab=lambda: names, bos_token=eos, eos_token=eos, unk_token="1")

    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as converted:
        Converter(folder).convert(converted, force=True)
        translators = {
            f"{inter} x {threads // inter}": ctranslate2.Translator(
                converted, device="cpu", compute_type="float32", inter_threads=inter, intra_threads=threads // inter
            )
            for inter in sorted({1, threads})
        }

    def translate(sources: list[list[int]], batch_size: int, beam: dict[str, Any]) -> list[list[int]]:
        tokens: list[list[int]] = [[]] * len(sources)
        running = []
        for length, batch in batches(sources, batch_size):  # all queued, so that no worker waits
            asked = translators[beam["workers"]].translate_batch(
                [[str(i) for i in sources[number]] for number in batch],
                beam_size=beam["width"],
                length_penalty=beam["length_penalty"],
                max_decoding_length=length + beam["extra_tokens"],
                return_end_token=True,
                asynchronous=True,
            )
            running.append((batch, asked))
        for batch, asked in running:
            for number, answer in zip(batch, asked, strict=True):
                tokens[number] = [int(token) for token in answer.result().hypotheses[0]]
        return tokens

    return translate, {"ctranslate2": ctranslate2.__version__, "workers": list(translators)}


def main(engine: str, folder: str) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    threads = torch.get_num_threads()
    translate, facts = {"transformers": with_transformers, "ctranslate2": with_ctranslate2}[engine](folder)
    print(json.dumps({**facts, "threads": threads}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began, cpu_began = time.perf_counter(), time.process_time()
        tokens = translate(request["sources"], request["batch_size"], request["beam"])
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
