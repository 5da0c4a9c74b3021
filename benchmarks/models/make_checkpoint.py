"""Make random-weight Hugging Face checkpoints of real shapes, to measure speed on.

    python benchmarks/models/make_checkpoint.py CONFIG.json... [--out out/checkpoints]

A config `NAME.config.json` becomes the folder OUT/NAME: float16 weights from a normal distribution
of standard deviation 0.02, norms of 1, in safetensors shards, with a byte tokenizer that runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_STD = 0.02
_SHARD_BYTES = 1 << 30


def make_checkpoint(config_path: Path, out: Path, seed: int = 0) -> Path:
    """Write one checkpoint and return its folder."""
    config: dict[str, Any] = json.loads(config_path.read_text())
    folder = out / config_path.name.removesuffix(".config.json").removesuffix(".json")
    folder.mkdir(parents=True, exist_ok=True)
    config.pop("dtype", None)
    config["torch_dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    rng = np.random.default_rng(seed)
    shards: list[dict[str, np.ndarray]] = [{}]
    pending = total = number = 0
    weight_map = {}
    names = _shapes(config)
    for name, shape in names.items():
        if len(shape) == 1:
            values = np.full(shape, name.endswith("norm.weight"), np.float16)
        else:
            values = (rng.standard_normal(shape, np.float32) * _STD).astype(np.float16)
        if pending and pending + values.nbytes > _SHARD_BYTES:
            number = _write(folder, shards, number)
            pending = 0
        shards[0][name] = values
        weight_map[name] = number
        pending += values.nbytes
        total += values.nbytes
    count = _write(folder, shards, number)
    for n in range(count):
        (folder / f"shard-{n}").rename(folder / _shard_name(n, count))
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: _shard_name(n, count) for name, n in weight_map.items()},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _write_tokenizer(folder)
    return folder


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, from transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {k: v for k, v in config.items() if k != "model_type"}
    hf_config = AutoConfig.for_model(config["model_type"], **known)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if not config.get("tie_word_embeddings") and "lm_head.weight" not in shapes:
        raise SystemExit("the model has no output head of its own and none is tied")
    return shapes


def _write(folder: Path, shards: list[dict[str, np.ndarray]], number: int) -> int:
    save_file(shards[0], folder / f"shard-{number}", metadata={"format": "pt"})
    shards[0] = {}
    return number + 1


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_tokenizer(folder: Path) -> None:
    """One token for each byte: any text can be written, and ids stay below every vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def main() -> None:
    """Make what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/checkpoints"))
    args = parser.parse_args()
    for config in args.configs:
        print(make_checkpoint(config, args.out), flush=True)


if __name__ == "__main__":
    main()
