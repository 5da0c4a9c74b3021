"""Write a training checkpoint as an ordinary Hugging Face folder.

python training/export.py checkpoints/default/state.pt models/default [--last]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from model import ModelConfig, to_hf
from safetensors.torch import save_file
from tokenizers import Tokenizer


def export(state: Path, folder: Path, *, averaged: bool = True) -> int:
    """Write config.json, generation_config.json and model.safetensors; the tokenizer is there.

    Args:
        state: checkpoint of `train.py`.
        folder: Hugging Face folder that already holds the tokenizer.
        averaged: the running average of the weights instead of the last ones.

    Returns: tokens the checkpoint was trained on.
    """
    saved = torch.load(state, weights_only=True)
    c = ModelConfig()
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    im_end, end = tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")
    ids = {"bos_token_id": None, "eos_token_id": [im_end, end], "pad_token_id": end}
    config = c.hf() | {"bos_token_id": None, "eos_token_id": im_end, "pad_token_id": end}
    generation = ids | {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_length": 2048}
    for name, content in (("config", config), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    tensors = to_hf(saved["average" if averaged else "model"], c)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    return int(saved["tokens"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("state", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--last", action="store_true", help="last weights, not the average")
    args = parser.parse_args()
    print(f"{export(args.state, args.folder, averaged=not args.last)} tokens")
