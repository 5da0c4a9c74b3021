"""Let a small published story model write more stories: 1.4 MB of text is too little.

    python training/synthetic_stories.py checkpoints/synthetic_stories.txt --count 8000

The writer is stories260K (MIT), trained on TinyStories. After ten passes over the real stories the
model knew them by heart (loss 2.0 on them, 3.3 on held-out ones); invented ones are never the same.
A file per batch, each a function of its number; those that are there are not made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import corpus
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_BATCH = 256


def main() -> None:
    """Write stories, separated by `<|endoftext|>`, in batches of 256 runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=8000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = corpus.data_dir() / "models" / "stories260k"
    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    begin = torch.full((_BATCH, 1), model.config.bos_token_id)
    for batch in range(-(-args.count // _BATCH)):
        part = args.out.with_suffix(f".{batch}.txt")
        if part.exists():
            continue
        torch.manual_seed(batch)
        clock = time.monotonic()
        with torch.inference_mode():
            out = model.generate(
                begin,
                attention_mask=torch.ones_like(begin),
                do_sample=True,
                temperature=0.7,
                top_k=0,
                top_p=0.92,
                max_new_tokens=440,
                pad_token_id=model.config.eos_token_id,
            )
        texts = []
        for row in out.tolist():
            # The writer goes on with another story after the end of one.
            rows = [[]]
            for token in row:
                if token in (model.config.bos_token_id, model.config.eos_token_id):
                    rows.append([])
                else:
                    rows[-1].append(token)
            texts += [tok.decode(r).strip() for r in rows if len(r) > 100]
        lines = []
        for whole in texts:
            cut = max(whole.rfind(mark) for mark in (".", "!", '"'))
            lines.append(whole[: cut + 1] + f"\n{corpus.END}\n")
        part.write_text("".join(lines), encoding="utf-8")
        print(f"{batch}: {time.monotonic() - clock:.0f} s", flush=True)


if __name__ == "__main__":
    main()
