"""Logits of a GGUF file in llama.cpp, for scripts that run in edgetok's environment.

    PEER_PYTHON benchmarks/peers/peer_logits.py FILE.gguf FOLDER [--type Q2_K] [--threads 2]

FOLDER holds `ids.npy` int32, all windows one behind the other, and `lengths.npy`. Writes the logits
to FOLDER/logits.npy, float32 [tokens, vocabulary]. With --type llama.cpp's own quantiser stores
FILE as that type before, in FOLDER/TYPE.gguf. The environment needs llama-cpp-python and numpy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llama_cpp
import numpy as np
from peer_gguf import TYPES


def logits(path: Path, ids: np.ndarray, lengths: np.ndarray, threads: int = 1) -> np.ndarray:
    """Logits float32 [T, V] of token ids [T]: windows of the given lengths, each read afresh."""
    longest = int(max(lengths))
    model = llama_cpp.Llama(
        str(path),
        n_ctx=longest,
        n_batch=longest,
        logits_all=True,
        verbose=False,
        n_threads=threads,
        n_threads_batch=threads,
    )
    result, first = [], 0
    for length in lengths:
        model.reset()
        model.eval(ids[first : first + length].tolist())
        result.append(np.array(model.scores[:length], np.float32))
        first += int(length)
    return np.concatenate(result)


def quantise(source: Path, path: Path, kind: str, threads: int = 1) -> None:
    """Store a GGUF file as another type, without an importance matrix."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    params.nthread = threads
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params):
        raise SystemExit(f"llama.cpp could not quantise {source} to {kind}")


def main() -> None:
    """Write the logits of one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--type", choices=TYPES)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    path = args.file
    if args.type:
        path = args.folder / f"{args.type}.gguf"
        quantise(args.file, path, args.type, args.threads)
    ids, lengths = (np.load(args.folder / name) for name in ("ids.npy", "lengths.npy"))
    np.save(args.folder / "logits.npy", logits(path, ids, lengths, args.threads))


if __name__ == "__main__":
    main()
