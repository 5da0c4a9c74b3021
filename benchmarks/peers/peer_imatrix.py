"""llama.cpp's quantiser with an importance matrix, and the logits of what it makes.

    PEER_PYTHON benchmarks/peers/peer_imatrix.py float32 FILE.gguf OUT.gguf
    PEER_PYTHON benchmarks/peers/peer_imatrix.py TYPE FILE.gguf FOLDER [--threads 2]

The first stores every tensor in float32. The second reads from FOLDER `imatrix.npz`, the mean
square of each input by the name of the weights in transformers, `ids.npy` and `lengths.npy` (see
`peer_logits.py`), and writes FOLDER/TYPE.json, the bytes of all tensors and how many there are of
each type, and FOLDER/TYPE.npy, the logits. The environment needs gguf, llama-cpp-python and numpy.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from peer_gguf import TYPES
from peer_logits import logits


def _names(source: Path) -> gguf.TensorNameMap:
    """Names of a GGUF file's tensors, by those of a checkpoint."""
    fields = gguf.GGUFReader(source).fields
    name = fields["general.architecture"].contents()
    arch = next(a for a, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    return gguf.get_tensor_name_map(arch, int(fields[f"{name}.block_count"].contents()))


def quantise(source: Path, path: Path, kind: int, imatrix: Path | None, threads: int) -> None:
    """Write a GGUF file of another type (llama.h's llama_ftype)."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = kind, threads, True
    kept = []
    if imatrix is not None:
        names = _names(source)
        with np.load(imatrix) as importance:
            entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
            for entry, name in zip(entries, importance, strict=False):
                values = np.ascontiguousarray(importance[name], np.float32)
                text = names.get_name(name, (".weight",)).encode()
                kept += [values, text]
                entry.name, entry.size = text, values.size
                entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params):
        raise SystemExit(f"llama.cpp could not quantise {source} to {path.stem}")


def main() -> None:
    """Write one file, or its logits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("type", choices=["float32", *TYPES])
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.type == "float32":
        quantise(args.file, args.out, 0, None, args.threads)
        return
    path = args.out / f"{args.type}.gguf"
    quantise(args.file, path, TYPES[args.type], args.out / "imatrix.npz", args.threads)
    tensors = gguf.GGUFReader(path).tensors
    types = Counter(tensor.tensor_type.name for tensor in tensors)
    size = sum(int(tensor.n_bytes) for tensor in tensors)
    ids, lengths = np.load(args.out / "ids.npy"), np.load(args.out / "lengths.npy")
    np.save(args.out / f"{args.type}.npy", logits(path, ids, lengths, args.threads))
    path.unlink()
    (args.out / f"{args.type}.json").write_text(json.dumps({"bytes": size, "types": types}))


if __name__ == "__main__":
    main()
