"""Transformers' side of `tools/bench/generate.py`: `generate` on a snapshot folder, in a process of its own.

    python tools/bench/generate_torch.py FOLDER      (generate.py starts it)

It prints one line of JSON when it is ready. Then each line it reads is {"tokens": [[...], ...], "new": N}; it continues
the prompts greedily by exactly N tokens and answers {"seconds": ..., "tokens": [[...], ...]}. It needs torch and
Transformers alone, both as they come.
"""

import json
import sys
import time

import torch
import transformers


def main(folder: str) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**facts, "device": device}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        tokens = torch.tensor(request["tokens"], device=device)
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=request["new"],
                min_new_tokens=request["new"],
                do_sample=False,
                pad_token_id=0,
            )
        made = out[:, tokens.shape[1] :].tolist()
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": made}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
